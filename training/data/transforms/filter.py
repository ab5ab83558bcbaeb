"""Dropping instances that are too small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.errors import ConfigError, DatasetError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS


@TRANSFORMS.register()
class FilterAnnotations(Transform):
    """Drop instances whose box or mask is too small.

    Args:
        min_gt_bbox_wh: Boxes must be wider and higher than these (pixels).
        min_gt_mask_area: Masks must have at least this area (pixels).
        by_box: Whether to look at boxes.
        by_mask: Whether to look at masks.
        keep_empty: In MMDetection's meaning: whether a sample that has lost *all* its instances
            gives ``None``, so that another image is drawn. One without instances to begin with
            passes.

    Raises:
        ConfigError: Neither boxes nor masks are looked at.
    """

    def __init__(
        self,
        min_gt_bbox_wh: Sequence[float] = (1.0, 1.0),
        min_gt_mask_area: float = 1,
        by_box: bool = True,
        by_mask: bool = False,
        keep_empty: bool = True,
    ) -> None:
        if not (by_box or by_mask):
            raise ConfigError("FilterAnnotations needs by_box or by_mask")
        self.min_width, self.min_height = float(min_gt_bbox_wh[0]), float(min_gt_bbox_wh[1])
        self.min_gt_mask_area = min_gt_mask_area
        self.by_box = by_box
        self.by_mask = by_mask
        self.keep_empty = keep_empty

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Drop what is too small."""
        if not len(sample.boxes):
            return sample
        kept = np.ones(len(sample.boxes), bool)
        if self.by_box:
            width, height = (sample.boxes[:, 2:] - sample.boxes[:, :2]).T
            kept &= (width > self.min_width) & (height > self.min_height)
        if self.by_mask:
            if sample.masks is None:
                raise DatasetError(
                    f"{sample.record.path}: FilterAnnotations(by_mask=True) needs masks; set "
                    f"with_mask=True in LoadAnnotations"
                )
            kept &= sample.masks.areas >= self.min_gt_mask_area
        if not kept.any() and self.keep_empty:
            return None
        sample.keep(kept)
        return sample
