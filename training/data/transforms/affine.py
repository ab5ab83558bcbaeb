"""Random rotation, scaling, shear and translation, and expansion onto a larger canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.canvas import blank_canvas
from deploykit.training.data.transforms.mosaic import check_probability
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

Matrix = npt.NDArray[np.float32]


@TRANSFORMS.register()
class RandomAffine(Transform):
    """Warp the image by a random affine map about its top left corner (YOLOX, arXiv:2107.08430).

    Args:
        max_rotate_degree: Largest rotation in degrees.
        max_translate_ratio: Largest translation as a share of the result's size.
        scaling_ratio_range: (lowest, highest) factor.
        max_shear_degree: Largest shear in degrees.
        border: (width, height) added on both sides to the size of the result; negative to cut a
            mosaic's canvas down to the size of one image.
        border_val: Value where no pixel of the image lands, in the image's channel order.
        bbox_clip_border: Whether to clip boxes to the result.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        max_rotate_degree: float = 10.0,
        max_translate_ratio: float = 0.1,
        scaling_ratio_range: Sequence[float] = (0.5, 1.5),
        max_shear_degree: float = 2.0,
        border: Sequence[int] = (0, 0),
        border_val: Sequence[int] = (114, 114, 114),
        bbox_clip_border: bool = True,
    ) -> None:
        if not 0 <= max_translate_ratio <= 1:
            raise ConfigError(
                f"RandomAffine: max_translate_ratio must be within 0..1, got {max_translate_ratio}"
            )
        if (
            len(scaling_ratio_range) != 2
            or not 0 < scaling_ratio_range[0] <= scaling_ratio_range[1]
        ):
            raise ConfigError(
                f"RandomAffine: scaling_ratio_range must be (lowest, highest) > 0, got "
                f"{scaling_ratio_range!r}"
            )
        self.max_rotate_degree = max_rotate_degree
        self.max_translate_ratio = max_translate_ratio
        self.scaling_ratio_range = float(scaling_ratio_range[0]), float(scaling_ratio_range[1])
        self.max_shear_degree = max_shear_degree
        self.border = int(border[0]), int(border[1])
        self.border_val = tuple(float(value) for value in border_val)
        self.bbox_clip_border = bbox_clip_border

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Warp image, boxes and masks."""
        height = sample.size[0] + 2 * self.border[1]
        width = sample.size[1] + 2 * self.border[0]
        if height < 1 or width < 1:
            raise ConfigError(
                f"RandomAffine: border {self.border} leaves nothing of an image of "
                f"{sample.size[1]} x {sample.size[0]}"
            )
        matrix = self._draw_matrix(height, width, rng)
        warped = cv2.warpPerspective(
            sample.image, matrix, (width, height), borderValue=self.border_val
        )
        sample.set_image(warped)
        if sample.masks is not None:
            sample.masks = sample.masks.warp(matrix, height, width)
        sample.move_boxes(lambda boxes: box_ops.warp(boxes, matrix))
        if self.bbox_clip_border:
            sample.move_boxes(lambda boxes: box_ops.clip(boxes, height, width))
        sample.keep(box_ops.touch_image(sample.boxes, height, width))
        sample.keep_proposals_inside()
        return sample

    def _draw_matrix(self, height: int, width: int, rng: np.random.Generator) -> Matrix:
        angle = math.radians(rng.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        factor = rng.uniform(*self.scaling_ratio_range)
        shear_x, shear_y = (
            math.tan(math.radians(rng.uniform(-self.max_shear_degree, self.max_shear_degree)))
            for _ in range(2)
        )
        shift_x = rng.uniform(-self.max_translate_ratio, self.max_translate_ratio) * width
        shift_y = rng.uniform(-self.max_translate_ratio, self.max_translate_ratio) * height
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = _matrix([[cos, -sin, 0], [sin, cos, 0]])
        scaling = _matrix([[factor, 0, 0], [0, factor, 0]])
        shear = _matrix([[1, shear_x, 0], [shear_y, 1, 0]])
        translation = _matrix([[1, 0, shift_x], [0, 1, shift_y]])
        return np.asarray(translation @ shear @ rotation @ scaling, dtype=np.float32)


def _matrix(rows: list[list[float]]) -> Matrix:
    return np.array([*rows, [0, 0, 1]], np.float32)


@TRANSFORMS.register()
class Expand(Transform):
    """Put the image at a random place of a larger canvas (SSD, arXiv:1512.02325).

    Args:
        mean: Value of the canvas, in RGB if ``to_rgb``, else in the image's order.
        to_rgb: Whether ``mean`` has to be turned round for a BGR image.
        ratio_range: (lowest, highest) factor between the canvas and the image.
        seg_ignore_label: Accepted for MMDetection's configs.
        prob: Probability of the expansion.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0, 0, 0),
        to_rgb: bool = True,
        ratio_range: Sequence[float] = (1, 4),
        seg_ignore_label: int | None = None,
        prob: float = 0.5,
    ) -> None:
        if len(ratio_range) != 2 or not 1 <= ratio_range[0] <= ratio_range[1]:
            raise ConfigError(
                f"Expand: ratio_range must be (lowest, highest) >= 1, got {ratio_range!r}"
            )
        self.mean = tuple(float(value) for value in (mean[::-1] if to_rgb else mean))
        self.ratio_range = float(ratio_range[0]), float(ratio_range[1])
        self.prob = check_probability(prob, "Expand")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Put the image onto a canvas."""
        if rng.random() > self.prob:
            return sample
        height, width = sample.size
        ratio = rng.uniform(*self.ratio_range)
        new_height, new_width = int(height * ratio), int(width * ratio)
        left = int(rng.uniform(0, width * ratio - width))
        top = int(rng.uniform(0, height * ratio - height))
        canvas = blank_canvas(new_height, new_width, self.mean, sample.image.dtype)
        canvas[top : top + height, left : left + width] = sample.image
        sample.set_image(canvas)
        sample.move_boxes(lambda boxes: box_ops.shift(boxes, left, top))
        if sample.masks is not None:
            sample.masks = sample.masks.place(new_height, new_width, left, top)
        return sample
