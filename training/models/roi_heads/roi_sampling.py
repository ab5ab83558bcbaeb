"""Which proposals the second stage is trained with, and towards what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.samplers.sampling import add_objects
from deploykit.training.registry import TASK_UTILS


@dataclass(frozen=True)
class Proposals:
    """Boxes that may hold an object.

    Args:
        boxes: float32 [B, P, 4], xyxy in pixels of the network input.
        mask: bool [B, P], ``False`` in empty rows.
    """

    boxes: Tensor
    mask: Tensor

    @classmethod
    def of_counts(cls, boxes: Tensor, counts: Tensor) -> Proposals:
        """Return the proposals of ``boxes`` [B, P, 4] whose first ``counts`` [B] rows are real."""
        rows = torch.arange(boxes.shape[1], device=boxes.device)
        return cls(boxes, rows < counts[:, None])

    @classmethod
    def of_boxes(cls, boxes: Tensor) -> Proposals:
        """Return the proposals of ``boxes`` [B, P, 4], of which those without area are empty."""
        return cls(boxes, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1))

    def to_rois(self) -> Tensor:
        """Return all rows, empty ones too, as float32 [B * P, 5] (image, x1, y1, x2, y2)."""
        batch, count = self.boxes.shape[:2]
        image = torch.arange(batch, device=self.boxes.device, dtype=self.boxes.dtype)
        rows = torch.cat((image[:, None, None].expand(-1, count, -1), self.boxes), dim=2)
        return rows.flatten(0, 1)


@dataclass(frozen=True)
class SampledRoIs:
    """The R regions of a batch that are trained.

    Args:
        rois: float32 [R, 5], (image, x1, y1, x2, y2).
        image: int64 [R], index of the image.
        proposal: int64 [R], index of the proposal; negative for objects that were added to them.
        positive: bool [R], regions that stand for an object.
        gt_index: int64 [R], index of that object in its image; 0 for background.
        gt_boxes: float32 [R, 4], box of the object; zeros for background.
        gt_labels: int64 [R], class of the object; 0 for background.
    """

    rois: Tensor
    image: Tensor
    proposal: Tensor
    positive: Tensor
    gt_index: Tensor
    gt_boxes: Tensor
    gt_labels: Tensor

    def __len__(self) -> int:
        return len(self.rois)

    def labels(self, background: int) -> Tensor:
        """Return int64 [R], the class of each region."""
        return torch.where(self.positive, self.gt_labels, background)


class RoITrainConfig:
    """The ``train_cfg.rcnn`` of a two-stage detector, or of one stage of a cascade.

    Args:
        config: ``assigner``, ``sampler``, and optionally ``pos_weight`` (weight of positive regions
            in the class loss, 1 if it is not positive), ``mask_size`` (side, or height and width,
            of the mask targets) and ``soft_mask_target`` (whether those are not rounded).

    Raises:
        ConfigError: A key is missing or unknown.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        required = {"assigner", "sampler"}
        optional = {"pos_weight", "mask_size", "soft_mask_target", "debug"}
        if not required <= config.keys() <= required | optional:
            raise ConfigError(
                f"train_cfg.rcnn must have {sorted(required)} and may have {sorted(optional)}, got "
                f"{sorted(config)}"
            )
        self.assigner = TASK_UTILS.build(config["assigner"])
        self.sampler = TASK_UTILS.build(config["sampler"])
        weight = config.get("pos_weight", -1)
        self.pos_weight = float(weight) if weight > 0 else 1.0
        size = config.get("mask_size", 28)
        self.mask_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.soft_mask_target = bool(config.get("soft_mask_target", False))

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: PaddedTargets) -> SampledRoIs:
        """Assign objects to proposals and draw those that are trained.

        Args:
            proposals: What the first stage found.
            targets: Ground truth of the images.
        """
        assignment = self.assigner.assign(proposals.boxes, targets, proposals.mask)
        boxes, added = proposals.boxes, 0
        if self.sampler.add_gt_as_proposals:
            boxes, assignment = add_objects(boxes, assignment, targets)
            added = targets.mask.shape[1]
        sampling = self.sampler.sample(assignment)
        image, row = torch.nonzero(sampling.positive | sampling.negative, as_tuple=True)
        positive = sampling.positive[image, row]
        gt_index = torch.where(positive, sampling.gt_index[image, row], 0)
        chosen = boxes[image, row]
        gt_boxes, gt_labels = torch.zeros_like(chosen), torch.zeros_like(gt_index)
        if targets.mask.shape[1]:
            gt_boxes = torch.where(positive[:, None], targets.boxes[image, gt_index], 0.0)
            gt_labels = torch.where(positive, targets.labels[image, gt_index], 0)
        rois = torch.cat((image[:, None].to(chosen.dtype), chosen), dim=1)
        return SampledRoIs(rois, image, row - added, positive, gt_index, gt_boxes, gt_labels)
