"""Dynamic soft label assignment, the label assigner of RTMDet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import Assignment
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.box_overlaps import pairwise_iou
from deploykit.training.registry import TASK_UTILS

_EPS = 1e-7
# Images are assigned together as long as their (object, prior) pairs number no more than this.
_MAX_PAIRS = 2**25


@TASK_UTILS.register()
class DynamicSoftLabelAssigner:
    """Give each object the priors of least cost, as many as its predictions overlap it well.

    The cost of a (prior, object) pair is the quality focal loss towards the IoU as soft label, plus
    ``iou_weight`` times the negative logarithm of the IoU, plus a penalty that grows tenfold with
    every stride of distance from the object's centre. Only priors whose point is inside some object
    take part. An object gets as many priors as the sum of its ``topk`` highest IoUs, at least one.
    A prior that several objects claim goes to the object of the image that costs it least.

    Source: "RTMDet", arXiv:2212.07784, section 3.3, and SimOTA of "YOLOX", arXiv:2107.08430.

    Args:
        soft_center_radius: Distance from the centre, in strides, at which the penalty is 1.
        topk: Number of predictions that decide how many priors an object gets.
        iou_weight: Weight of the IoU cost.
        iou_calculator: Accepted for compatibility; must be ``dict(type="BboxOverlaps2D")``.
    """

    def __init__(
        self,
        soft_center_radius: float = 3.0,
        topk: int = 13,
        iou_weight: float = 3.0,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if iou_calculator and dict(iou_calculator) != {"type": "BboxOverlaps2D"}:
            raise ConfigError(
                "DynamicSoftLabelAssigner: iou_calculator must be dict(type='BboxOverlaps2D'), "
                f"got {iou_calculator!r}"
            )
        if topk < 1:
            raise ConfigError(f"DynamicSoftLabelAssigner: topk must be at least 1, got {topk}")
        self.soft_center_radius = soft_center_radius
        self.topk = topk
        self.iou_weight = iou_weight

    @torch.no_grad()
    def assign(
        self,
        logits: Tensor,
        boxes: Tensor,
        priors: Tensor,
        targets: PaddedTargets,
        prior_mask: Tensor | None = None,
    ) -> Assignment:
        """Assign the objects of a batch; no image influences another.

        Args:
            logits: float32 [B, C, P], class predictions.
            boxes: float32 [B, P, 4], predicted boxes, xyxy.
            priors: float32 [P, 3], (x, y, stride).
            targets: Ground truth of the images.
            prior_mask: bool [B, P], priors that may take part; all by default.

        Returns:
            The object of every prior.
        """
        batch, num_priors = boxes.shape[:2]
        num_objects = targets.boxes.shape[1]
        if prior_mask is None:
            prior_mask = boxes.new_ones((batch, num_priors), dtype=torch.bool)
        step = max(1, _MAX_PAIRS // max(1, num_objects * num_priors))
        if num_objects == 0 or num_priors == 0:
            nothing = boxes.new_zeros((batch, num_priors))
            return Assignment(torch.full_like(nothing, -1, dtype=torch.int64), nothing)
        parts = []
        for start in range(0, batch, step):
            images = slice(start, start + step)
            parts.append(
                self._assign(
                    logits[images], boxes[images], priors, targets[images], prior_mask[images]
                )
            )
        return Assignment(
            torch.cat([part.gt_index for part in parts]),
            torch.cat([part.overlap for part in parts]),
        )

    def _assign(
        self, logits: Tensor, boxes: Tensor, priors: Tensor, targets: PaddedTargets, mask: Tensor
    ) -> Assignment:
        inside = _points_inside(priors[:, :2], targets.boxes) & targets.mask[:, :, None]
        takes_part = inside.any(dim=1) & mask
        pairs = takes_part[:, None, :] & targets.mask[:, :, None]
        overlaps = pairwise_iou(targets.boxes, boxes).masked_fill(~pairs, 0.0)
        cost = self._cost(logits, priors, targets, overlaps)
        # The distance penalty overflows far from an object. Priors that do not take part must still
        # come after every prior that does.
        largest = torch.finfo(cost.dtype).max
        cost = cost.clamp(max=largest).masked_fill(~pairs, float("inf"))
        matching = self._least_cost_matches(cost, overlaps) & pairs
        claims = matching.sum(dim=1)
        best = torch.where(claims > 1, cost.argmin(dim=1), matching.byte().argmax(dim=1))
        overlap = overlaps.gather(1, best[:, None]).squeeze(1)
        positive = claims > 0
        return Assignment(torch.where(positive, best, -1), overlap.masked_fill(~positive, 0.0))

    def _cost(
        self, logits: Tensor, priors: Tensor, targets: PaddedTargets, overlaps: Tensor
    ) -> Tensor:
        """Return the cost float32 [B, G, P] of every pair."""
        centers = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2.0
        dx = priors[:, 0] - centers[..., :1]
        dy = priors[:, 1] - centers[..., 1:]
        distance = (dx.square() + dy.square()).sqrt() / priors[:, 2]
        center_cost = torch.pow(10.0, distance - self.soft_center_radius)
        iou_cost = -torch.log(overlaps + _EPS) * self.iou_weight
        return _class_cost(logits, targets.labels, overlaps) + iou_cost + center_cost

    def _least_cost_matches(self, cost: Tensor, overlaps: Tensor) -> Tensor:
        """Return bool [B, G, P]: the k cheapest priors of each object, k being its own number."""
        count = min(self.topk, cost.shape[2])
        wanted = overlaps.topk(count, dim=2).values.sum(dim=2).int().clamp(min=1)
        cheapest = cost.topk(count, dim=2, largest=False).indices
        chosen = torch.arange(count, device=cost.device) < wanted[:, :, None]
        return torch.zeros_like(cost, dtype=torch.bool).scatter_(2, cheapest, chosen)


def _class_cost(logits: Tensor, labels: Tensor, overlaps: Tensor) -> Tensor:
    """Return the quality focal loss float32 [B, G, P] of each prior with each object's soft label.

    The soft labels of a pair differ from all zeros in one class only, so the sum over the classes
    is that of an empty label with one term replaced: [B, G, P] instead of [B, G, P, C] numbers.
    """
    empty = F.softplus(logits) * logits.sigmoid().square()
    image = torch.arange(len(labels), device=labels.device)[:, None]
    own = logits[image, labels]
    own_entropy = F.binary_cross_entropy_with_logits(own, overlaps, reduction="none")
    own_loss = own_entropy * (overlaps - own.sigmoid()).square()
    return empty.sum(dim=1, keepdim=True) - empty[image, labels] + own_loss


def _points_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return bool [B, G, P]: whether points [P, 2] are strictly inside boxes [B, G, 4]."""
    x, y = points[:, 0], points[:, 1]
    x1, y1, x2, y2 = (boxes[..., i, None] for i in range(4))
    return (x > x1) & (y > y1) & (x < x2) & (y < y2)
