"""Assignment of the priors in the middle of objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND, IGNORED
from deploykit.training.models.box_overlaps import box_area, pairwise_iof
from deploykit.training.registry import TASK_UTILS
from deploykit.training.structures import Targets


@dataclass(frozen=True)
class CenterAssignment:
    """Which object each prior of one image is responsible for.

    Args:
        gt_index: int64 [P], index of the object, ``BACKGROUND`` or ``IGNORED``.
        shadowed: bool [P, G], objects whose class is not trained at a prior.
    """

    gt_index: Tensor
    shadowed: Tensor


@TASK_UTILS.register()
class CenterRegionAssigner:
    """Give an object the priors that touch its middle, if their centre is in it.

    Of several objects the smallest one gets the prior; the classes of the others, and of objects
    whose outer region the prior touches, are not trained there.

    Source: Zhu et al., "Feature Selective Anchor-Free Module", arXiv:1903.00621; rules and order
    are those of MMDetection.

    Args:
        pos_scale: The part of an object's width and height that is its middle.
        neg_scale: The part beyond whose border there is background.
        min_pos_iof: The part of a prior that must lie in a region to touch it.
        ignore_gt_scale: The part of an ignored region's width and height that is not trained.
        foreground_dominate: A prior whose class is also that of a shadow stays positive; otherwise
            it becomes background and the class is not trained.
        iou_calculator: Accepted for compatibility; must be ``dict(type="BboxOverlaps2D")``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        pos_scale: float,
        neg_scale: float,
        min_pos_iof: float = 1e-2,
        ignore_gt_scale: float = 0.5,
        foreground_dominate: bool = False,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if iou_calculator and dict(iou_calculator) != {"type": "BboxOverlaps2D"}:
            raise ConfigError(
                "CenterRegionAssigner: iou_calculator must be dict(type='BboxOverlaps2D'), got "
                f"{iou_calculator!r}"
            )
        self.pos_scale = pos_scale
        self.neg_scale = neg_scale
        self.min_pos_iof = min_pos_iof
        self.ignore_gt_scale = ignore_gt_scale
        self.foreground_dominate = foreground_dominate

    @torch.no_grad()
    def assign(self, priors: Tensor, target: Targets) -> CenterAssignment:
        """Assign the objects of one image.

        Args:
            priors: float32 [P, 4], xyxy.
            target: Ground truth of the image.
        """
        boxes = target.boxes
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        in_core = pairwise_iof(priors, _scaled(boxes, self.pos_scale)) > self.min_pos_iof
        in_core &= _inside(centers, boxes)
        shadowed = pairwise_iof(priors, _scaled(boxes, self.neg_scale)) > self.min_pos_iof
        shadowed &= ~in_core
        index = torch.full((len(priors),), BACKGROUND, device=priors.device)
        if len(boxes):
            # The smallest object first; of equal ones the last.
            rank = box_area(boxes).sort(descending=True).indices.argsort()
            best, winner = torch.where(in_core, rank, -1).max(dim=1)
            positive = best >= 0
            index = torch.where(positive, winner, index)
            own = torch.zeros_like(in_core)
            own[positive, winner[positive]] = True
            shadowed |= in_core & ~own
        regions = _scaled(target.ignored_boxes, self.ignore_gt_scale)
        index = torch.where(_inside(centers, regions).any(dim=1), IGNORED, index)
        if len(boxes):
            # Where a prior stands for a class that is also in shadow.
            own_label = torch.where(index >= 0, target.labels[index.clamp(min=0)], -1)
            clash = shadowed & (target.labels == own_label[:, None])
            if self.foreground_dominate:
                shadowed &= ~clash
            else:
                index = torch.where(clash.any(dim=1), BACKGROUND, index)
        return CenterAssignment(index, shadowed)


def _scaled(boxes: Tensor, scale: float) -> Tensor:
    """Return boxes [N, 4] around the same centres."""
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat((center - half, center + half), dim=1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return bool [P, N]: whether points [P, 2] lie within boxes [N, 4]."""
    inside = (points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])
    return inside.all(dim=-1)
