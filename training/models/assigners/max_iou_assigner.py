"""Maximum IoU assignment, the label assigner of anchor-based and two-stage detectors."""

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

# Images are assigned together as long as their (object, prior) pairs number no more than this. On a
# CPU larger tensors are slower: the memory of each is mapped, and cleared, anew.
_MAX_PAIRS = {"cpu": 2**21}
_MAX_PAIRS_ELSEWHERE = 2**25


@TASK_UTILS.register()
class MaxIoUAssigner:
    """Give each prior the object that it overlaps most, if it overlaps it enough.

    In order: priors whose best IoU is in the range of ``neg_iou_thr`` are background; those whose
    best IoU is at least ``pos_iou_thr`` get that object; and the best priors of an object get it
    whatever else they overlap, if that IoU is at least ``min_pos_iou`` (of several such objects the
    last one). What remains is not trained.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1.2; rules and order are those
    of MMDetection.

    Args:
        pos_iou_thr: IoU from which a prior is positive.
        neg_iou_thr: IoU below which a prior is background, or (from, below).
        min_pos_iou: IoU from which an object takes its best priors.
        gt_max_assign_all: An object takes all priors that share its highest IoU, instead of the
            first of them.
        ignore_iof_thr: Priors that lie in an ignored region by more than this fraction are not
            trained (unless the image has no object at all); negative or 0: no such rule.
        ignore_wrt_candidates: The fraction is of the prior's area, instead of the region's.
        match_low_quality: Whether objects take their best priors.
        gpu_assign_thr: Assign on the CPU when an image has more objects than this (to save memory);
            negative: never.
        iou_calculator: Accepted for compatibility; must be ``dict(type="BboxOverlaps2D")``.
        perm_repeat_gt_cfg: Must be ``None``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | Sequence[float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        match_low_quality: bool = True,
        gpu_assign_thr: float = -1,
        iou_calculator: Mapping[str, Any] | None = None,
        perm_repeat_gt_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        if iou_calculator and dict(iou_calculator) != {"type": "BboxOverlaps2D"}:
            raise ConfigError(
                "MaxIoUAssigner: iou_calculator must be dict(type='BboxOverlaps2D'), got "
                f"{iou_calculator!r}"
            )
        if perm_repeat_gt_cfg:
            raise ConfigError("MaxIoUAssigner: perm_repeat_gt_cfg is not supported")
        bounds = (0.0, neg_iou_thr) if isinstance(neg_iou_thr, int | float) else tuple(neg_iou_thr)
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1 or not 0 <= pos_iou_thr <= 1:
            raise ConfigError(
                "MaxIoUAssigner: pos_iou_thr must be from 0 to 1 and neg_iou_thr too, or two such "
                f"numbers in growing order, got {pos_iou_thr} and {neg_iou_thr}"
            )
        self.pos_iou_thr = pos_iou_thr
        self.background_range = bounds
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.match_low_quality = match_low_quality
        self.gpu_assign_thr = gpu_assign_thr

    @torch.no_grad()
    def assign(
        self, priors: Tensor, targets: PaddedTargets, prior_mask: Tensor | None = None
    ) -> Assignment:
        """Assign the objects of a batch; no image influences another.

        Args:
            priors: float32 [P, 4] for all images or [B, P, 4], xyxy.
            targets: Ground truth of the images.
            prior_mask: bool [B, P], priors that may take part; all by default. The others are
                ``IGNORED``.

        Returns:
            The object of every prior, and its IoU with the object that it overlaps most (-1 in
            ignored regions).
        """
        batch, num_objects = targets.mask.shape
        num_priors = priors.shape[-2]
        if prior_mask is None:
            prior_mask = priors.new_ones((batch, num_priors), dtype=torch.bool)
        if num_objects == 0 or num_priors == 0:
            index = torch.full((batch, num_priors), BACKGROUND, device=priors.device)
            overlap = priors.new_zeros((batch, num_priors))
            return Assignment(torch.where(prior_mask, index, IGNORED), overlap)
        device = priors.device
        if 0 < self.gpu_assign_thr < num_objects:
            priors, targets, prior_mask = priors.cpu(), targets.to("cpu"), prior_mask.cpu()
        most_pairs = _MAX_PAIRS.get(priors.device.type, _MAX_PAIRS_ELSEWHERE)
        step = max(1, most_pairs // (num_objects * num_priors))
        parts = []
        for start in range(0, batch, step):
            images = slice(start, start + step)
            own = priors if priors.dim() == 2 else priors[images]
            parts.append(self._assign(own, targets[images], prior_mask[images]))
        return Assignment(
            torch.cat([part.gt_index for part in parts]).to(device),
            torch.cat([part.overlap for part in parts]).to(device),
        )

    def _assign(self, priors: Tensor, targets: PaddedTargets, prior_mask: Tensor) -> Assignment:
        overlaps = pairwise_iou(targets.boxes, priors)  # [B, G, P]
        takes_part = prior_mask & ~self._in_ignored_region(priors, targets)
        overlaps.masked_fill_(~targets.mask[:, :, None], -1.0)
        overlaps.masked_fill_(~takes_part[:, None, :], -1.0)
        best, best_object = overlaps.max(dim=1)
        low, high = self.background_range
        index = torch.full_like(best_object, IGNORED)
        index = torch.where((best >= low) & (best < high), BACKGROUND, index)
        index = torch.where(best >= self.pos_iou_thr, best_object, index)
        if self.match_low_quality:
            taker = self._taking_object(overlaps)
            index = torch.where(taker >= 0, taker, index)
        # As in MMDetection, ignored regions count only where there are objects.
        empty = ~targets.mask.any(dim=1, keepdim=True)
        index = torch.where(empty & prior_mask, BACKGROUND, index)
        return Assignment(index, torch.where(empty, 0.0, best))

    def _in_ignored_region(self, priors: Tensor, targets: PaddedTargets) -> Tensor:
        """Return bool [B, P] or [B, 1]."""
        regions, mask = targets.ignored_boxes, targets.ignored_mask
        if self.ignore_iof_thr <= 0 or regions is None or mask is None or regions.shape[1] == 0:
            return torch.zeros_like(targets.mask[:, :1])
        if self.ignore_wrt_candidates:
            covered = pairwise_iof(priors, regions).transpose(-1, -2)
        else:
            covered = pairwise_iof(regions, priors)
        return ((covered > self.ignore_iof_thr) & mask[:, :, None]).any(dim=1)

    def _taking_object(self, overlaps: Tensor) -> Tensor:
        """Return int64 [B, P]: the last object whose best prior this is, or -1."""
        highest, first_prior = overlaps.max(dim=2)
        may_take = (highest >= self.min_pos_iou) & (highest >= 0)
        if self.gt_max_assign_all:
            takes = overlaps == highest[:, :, None]
        else:
            takes = torch.zeros_like(overlaps, dtype=torch.bool)
            takes.scatter_(2, first_prior[:, :, None], True)
        takes &= may_take[:, :, None]
        # Few pairs are left, so that to list them is cheaper than to search along the objects.
        image, taker, prior = takes.nonzero(as_tuple=True)
        last = overlaps.new_full(takes.shape[::2], -1, dtype=torch.int64)
        place = image * last.shape[1] + prior
        return last.flatten().scatter_reduce_(0, place, taker, "amax").view_as(last)
