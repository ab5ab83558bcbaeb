"""Adaptive training sample selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND, IGNORED, Assignment
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.box_overlaps import pairwise_iof, pairwise_iou
from deploykit.training.registry import TASK_UTILS

# How far inside an object the centre of a prior must be, in pixels.
_LEAST_DISTANCE = 0.01


@TASK_UTILS.register()
class ATSSAssigner:
    """Give an object the priors near its centre that overlap it more than is usual for it.

    Candidates are the ``topk`` priors of every level whose centres are nearest to the object's.
    Those are positive whose IoU is at least the mean plus the standard deviation of the candidates'
    and whose centre is within the object. A prior of several objects goes to the one that it
    overlaps most.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection", arXiv:1912.02424; ``alpha``: Chen et al., "Disentangle Your
    Dense Object Detector", arXiv:2107.02963.

    Args:
        topk: Candidates per level.
        alpha: If given, ``score ** (1 - alpha) * iou ** alpha`` of the predictions takes the place
            of the IoU of the priors.
        iou_calculator: Accepted for compatibility; must be ``dict(type="BboxOverlaps2D")``.
        ignore_iof_thr: Priors that lie in an ignored region by more than this fraction are not
            trained; negative or 0: no such rule.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        topk: int,
        alpha: float | None = None,
        iou_calculator: Mapping[str, Any] | None = None,
        ignore_iof_thr: float = -1,
    ) -> None:
        if iou_calculator and dict(iou_calculator) != {"type": "BboxOverlaps2D"}:
            raise ConfigError(
                "ATSSAssigner: iou_calculator must be dict(type='BboxOverlaps2D'), got "
                f"{iou_calculator!r}"
            )
        if topk < 1:
            raise ConfigError(f"ATSSAssigner: topk must be at least 1, got {topk}")
        self.topk = topk
        self.alpha = alpha
        self.ignore_iof_thr = ignore_iof_thr

    @torch.no_grad()
    def assign(
        self,
        priors: Tensor,
        level_sizes: Sequence[int],
        targets: PaddedTargets,
        prior_mask: Tensor,
        logits: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the objects of a batch; no image influences another.

        Args:
            priors: float32 [P, 4], xyxy, level by level.
            level_sizes: Number of priors of each level.
            targets: Ground truth of the images.
            prior_mask: bool [B, P], priors that may take part. The others are ``IGNORED``.
            logits: float32 [B, P, C], predicted classes; needed with ``alpha``.
            boxes: float32 [B, P, 4], predicted boxes; needed with ``alpha``.

        Returns:
            The object of every prior, and what it was chosen by.
        """
        levels = torch.arange(len(level_sizes), device=priors.device).repeat_interleave(
            torch.tensor(level_sizes, device=priors.device)
        )
        index = torch.full(prior_mask.shape, IGNORED, device=priors.device)
        overlap = priors.new_zeros(prior_mask.shape)
        for image, mask in enumerate(prior_mask):
            objects = targets.boxes[image][targets.mask[image]]
            if len(objects) == 0:
                index[image, mask] = BACKGROUND
                continue
            own = priors[mask]
            if self.alpha is None:
                quality = pairwise_iou(own, objects)
            else:
                assert logits is not None and boxes is not None  # noqa: S101 - for the type checker
                labels = targets.labels[image][targets.mask[image]]
                score = logits[image, mask].sigmoid()[:, labels]
                iou = pairwise_iou(boxes[image, mask], objects)
                quality = score ** (1 - self.alpha) * iou**self.alpha
            ignored = self._in_ignored_region(own, targets, image)
            counts = levels[mask].bincount(minlength=len(level_sizes)).tolist()
            index[image, mask], overlap[image, mask] = self._assign(
                own, counts, objects, quality, ignored
            )
        return Assignment(index, overlap)

    def _assign(
        self,
        priors: Tensor,
        level_sizes: Sequence[int],
        objects: Tensor,
        quality: Tensor,
        ignored: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the objects int64 [N] of the priors [N, 4] of one image, and their quality."""
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        middles = (objects[:, :2] + objects[:, 2:]) / 2
        distances = (centers[:, None] - middles).square().sum(dim=-1).sqrt()
        distances[ignored] = float("inf")
        candidates, start = [], 0
        for size in level_sizes:
            level = distances[start : start + size]
            nearest = level.topk(min(self.topk, size), dim=0, largest=False).indices
            candidates.append(nearest + start)
            start += size
        candidate = torch.cat(candidates)  # [M, G], index of a prior
        chosen = quality.gather(0, candidate)
        positive = chosen >= chosen.mean(dim=0) + chosen.std(dim=0)
        center = centers[candidate]
        low, high = center - objects[:, :2], objects[:, 2:] - center
        inside = torch.minimum(low, high).amin(dim=-1) > _LEAST_DISTANCE
        allowed = torch.zeros_like(quality, dtype=torch.bool)
        allowed.scatter_(0, candidate, positive & inside)
        best, index = quality.masked_fill(~allowed, -1.0).max(dim=1)
        background = torch.where(ignored, IGNORED, BACKGROUND)
        return torch.where(best >= 0, index, background), best.clamp(min=0)

    def _in_ignored_region(self, priors: Tensor, targets: PaddedTargets, image: int) -> Tensor:
        """Return bool [N]."""
        nowhere = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
        if (
            self.ignore_iof_thr <= 0
            or targets.ignored_boxes is None
            or targets.ignored_mask is None
        ):
            return nowhere
        regions = targets.ignored_boxes[image][targets.ignored_mask[image]]
        if len(regions) == 0:
            return nowhere
        return pairwise_iof(priors, regions).amax(dim=1) > self.ignore_iof_thr
