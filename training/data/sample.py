"""``Sample``: one image with its annotations on the way through the data pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.training.data.boxes import Boxes, touch_image
from deploykit.training.data.masks import InstanceMasks


@dataclass(frozen=True)
class ImageRecord:
    """What an annotation file says about one image.

    Args:
        image_id: The image's id in the annotation file.
        path: The image file.
        width: Width in pixels, as the annotation file has it.
        height: Height in pixels, as the annotation file has it.
        boxes: float64 [N, 4], xyxy in pixels of the image, as annotated (not clipped).
        labels: int64 [N], class indices.
        crowd: bool [N], regions that stand for many objects.
        segmentations: Per instance a COCO segmentation (polygons or RLE) or ``None``.
        proposals: float32 [N, 5] (x1, y1, x2, y2, score) in pixels of the image, best first, if the
            data set has a proposal file.
    """

    image_id: int | str
    path: str
    width: int
    height: int
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    segmentations: tuple[Any, ...]
    proposals: npt.NDArray[np.float32] | None = None


def _no_image() -> npt.NDArray[Any]:
    return np.zeros((0, 0, 3), np.uint8)


@dataclass
class Sample:
    """One image with its annotations.

    Transforms replace fields; they never write into the arrays, which may be shared with a cache.

    Args:
        record: What the annotation file says, for the loading transforms.
        image: uint8 or float32 [H, W, 3], BGR.
        boxes: float32 [N, 4], xyxy in pixels of ``image``.
        labels: int64 [N], class indices.
        ignore_flags: bool [N], instances to be ignored (crowds); ``PackDetInputs`` moves their
            boxes to ``ignored_boxes``.
        masks: Instance masks aligned with ``boxes``, in pixels of ``image``, if loaded.
        ignored_boxes: float32 [M, 4], regions where detections count neither way.
        proposals: float32 [P, 4], xyxy in pixels of ``image``, best first, if loaded.
        meta: ``img_id``, ``img_path``, ``ori_shape`` (h, w), ``img_shape`` (h, w),
            ``scale_factor`` (w, h), ``flip``, ``flip_direction``...
        problems: (kind, example) of what was wrong with the sample's data, see
            ``deploykit.training.data.report``.
    """

    record: ImageRecord
    image: npt.NDArray[Any] = field(default_factory=_no_image)
    boxes: Boxes = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignore_flags: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    masks: InstanceMasks | None = None
    ignored_boxes: Boxes = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    proposals: Boxes | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    def set_image(self, image: npt.NDArray[Any]) -> None:
        """Replace the image and note its size as ``img_shape``."""
        self.image = image
        self.meta["img_shape"] = self.size

    def move_boxes(self, move: Callable[[Boxes], Boxes]) -> None:
        """Replace boxes and proposals by where they are after the image has changed."""
        self.boxes = move(self.boxes)
        if self.proposals is not None:
            self.proposals = move(self.proposals)

    def keep_proposals_inside(self) -> None:
        """Drop the proposals that no longer reach into the image."""
        if self.proposals is not None:
            self.proposals = self.proposals[touch_image(self.proposals, *self.size)]

    def keep(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Drop the instances for which ``chosen`` (bool [N]) is false."""
        self.boxes = self.boxes[chosen]
        self.labels = self.labels[chosen]
        self.ignore_flags = self.ignore_flags[chosen]
        if self.masks is not None:
            self.masks = self.masks.select(chosen)

    def copy(self) -> Sample:
        """Return a sample that can be changed without changing this one; arrays are shared."""
        return replace(self, meta=dict(self.meta), problems=list(self.problems))
