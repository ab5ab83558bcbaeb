"""Random cropping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


def crop_sample(sample: Sample, x1: int, y1: int, x2: int, y2: int, clip_boxes: bool) -> None:
    """Cut columns x1..x2 and rows y1..y2 out of a sample; its boxes move along, none is dropped.

    Proposals that it leaves out are dropped.
    """
    # A copy, so that the large image does not stay alive behind the cut-out.
    sample.set_image(sample.image[y1:y2, x1:x2].copy())
    height, width = sample.size
    sample.move_boxes(lambda boxes: box_ops.shift(boxes, -x1, -y1))
    if clip_boxes:
        sample.move_boxes(lambda boxes: box_ops.clip(boxes, height, width))
    sample.keep_proposals_inside()
    if sample.masks is not None:
        sample.masks = sample.masks.crop(x1, y1, x1 + width, y1 + height)


@TRANSFORMS.register()
class RandomCrop(Transform):
    """Cut a window out of the image.

    Args:
        crop_size: Meaning by ``crop_type``.
        crop_type: ``"absolute"``: (width, height) in pixels, at most those of the image.
            ``"absolute_range"``: height and width are drawn between ``crop_size[0]`` and
            ``crop_size[1]``, at most those of the image. ``"relative"``: (share of the width, share
            of the height). ``"relative_range"``: the shares of the height and the width are drawn
            from ``crop_size[0]``..1 and ``crop_size[1]``..1.
        allow_negative_crop: Whether a window without objects is good; otherwise it gives ``None``.
        recompute_bbox: Whether boxes are made from the masks' visible part.
        bbox_clip_border: Whether to clip boxes to the window.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        crop_size: Sequence[float],
        crop_type: str = "absolute",
        allow_negative_crop: bool = False,
        recompute_bbox: bool = False,
        bbox_clip_border: bool = True,
    ) -> None:
        if crop_type not in CROP_TYPES:
            raise ConfigError(
                f"RandomCrop: crop_type must be one of {', '.join(CROP_TYPES)}, got {crop_type!r}"
            )
        _check_size(crop_size, crop_type)
        self.crop_size = crop_size[0], crop_size[1]
        self.crop_type = crop_type
        self.allow_negative_crop = allow_negative_crop
        self.recompute_bbox = recompute_bbox
        self.bbox_clip_border = bbox_clip_border

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Cut a window of a size and at a place drawn at random."""
        height, width = sample.size
        crop_height, crop_width = self._draw_size(height, width, rng)
        top = int(rng.integers(max(height - crop_height, 0) + 1))
        left = int(rng.integers(max(width - crop_width, 0) + 1))
        crop_sample(sample, left, top, left + crop_width, top + crop_height, self.bbox_clip_border)
        visible = box_ops.touch_image(sample.boxes, *sample.size)
        if not visible.any() and not self.allow_negative_crop:
            return None
        sample.keep(visible)
        if self.recompute_bbox and sample.masks is not None:
            sample.boxes = sample.masks.boxes()
        return sample

    def _draw_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(int(second), height), min(int(first), width)
        if self.crop_type == "absolute_range":
            low, high = int(first), int(second)
            return (
                int(rng.integers(min(height, low), min(height, high) + 1)),
                int(rng.integers(min(width, low), min(width, high) + 1)),
            )
        if self.crop_type == "relative":
            return max(int(height * second + 0.5), 1), max(int(width * first + 0.5), 1)
        lowest = np.array(self.crop_size, np.float32)
        share_height, share_width = lowest + rng.random(2) * (1 - lowest)
        return max(int(height * share_height + 0.5), 1), max(int(width * share_width + 0.5), 1)


def _check_size(crop_size: Sequence[float], crop_type: str) -> None:
    pair = isinstance(crop_size, Sequence) and len(crop_size) == 2
    if crop_type.startswith("relative"):
        if not pair or not all(0 < share <= 1 for share in crop_size):
            raise ConfigError(
                f"RandomCrop: crop_size must be two shares within 0..1 for crop_type="
                f"{crop_type!r}, got {crop_size!r}"
            )
    elif (
        not pair
        or not all(isinstance(edge, int) and edge > 0 for edge in crop_size)
        or (crop_type == "absolute_range" and crop_size[0] > crop_size[1])
    ):
        expected = "(lowest, highest)" if crop_type == "absolute_range" else "(width, height)"
        raise ConfigError(
            f"RandomCrop: crop_size must be {expected} in whole pixels for crop_type="
            f"{crop_type!r}, got {crop_size!r}"
        )


@TRANSFORMS.register()
class MinIoURandomCrop(Transform):
    """Cut a window that overlaps every object at least so much (SSD, arXiv:1512.02325).

    Objects whose centre is outside are dropped.

    Args:
        min_ious: Smallest overlaps to choose from, beside 0 and "no crop".
        min_crop_size: Smallest edge of the window as a share of the image's.
        bbox_clip_border: Whether to clip boxes to the window.
    """

    ATTEMPTS = 50

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        bbox_clip_border: bool = True,
    ) -> None:
        if not 0 < min_crop_size <= 1:
            raise ConfigError(
                f"MinIoURandomCrop: min_crop_size must be within 0..1, got {min_crop_size!r}"
            )
        self.modes = (1.0, *map(float, min_ious), 0.0)
        self.min_crop_size = min_crop_size
        self.bbox_clip_border = bbox_clip_border

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Cut a window found by trial, or none."""
        while True:
            mode = self.modes[int(rng.integers(len(self.modes)))]
            if mode == 1:
                return sample
            for _ in range(self.ATTEMPTS):
                window = self._draw_window(sample.size, rng)
                if window is None:
                    continue
                kept = self._kept(sample.boxes, window, mode)
                if kept is None:
                    continue
                sample.keep(kept)
                crop_sample(sample, *window, clip_boxes=self.bbox_clip_border)
                return sample

    def _draw_window(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int, int, int] | None:
        height, width = size
        new_width = rng.uniform(self.min_crop_size * width, width)
        new_height = rng.uniform(self.min_crop_size * height, height)
        if not 0.5 <= new_height / new_width <= 2:
            return None
        # MMDetection draws the corner between one pixel and the largest offset.
        left = (width - new_width) + (1 - (width - new_width)) * rng.random()
        top = (height - new_height) + (1 - (height - new_height)) * rng.random()
        x1, y1, x2, y2 = int(left), int(top), int(left + new_width), int(top + new_height)
        return None if x1 == x2 or y1 == y2 else (x1, y1, x2, y2)

    @staticmethod
    def _kept(
        boxes: box_ops.Boxes, window: tuple[int, int, int, int], min_iou: float
    ) -> npt.NDArray[np.bool_] | None:
        """Return which objects stay, bool [N], or ``None`` if the window will not do."""
        if not len(boxes):
            return np.zeros(0, bool)
        area = np.array(window, np.float32)
        if box_ops.iou_with(boxes, area).min() < min_iou:
            return None
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = np.all((centers > area[:2]) & (centers < area[2:]), axis=1)
        return inside if inside.any() else None
