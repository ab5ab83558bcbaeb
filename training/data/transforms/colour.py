"""Changes of colour."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError, DatasetError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS


@TRANSFORMS.register()
class YOLOXHSVRandomAug(Transform):
    """Shift hue, saturation and value, each with probability one half (YOLOX, arXiv:2107.08430).

    Args:
        hue_delta: Largest shift of the hue, in OpenCV's units of two degrees.
        saturation_delta: Largest shift of the saturation, of 255.
        value_delta: Largest shift of the value, of 255.
    """

    def __init__(
        self, hue_delta: int = 5, saturation_delta: int = 30, value_delta: int = 30
    ) -> None:
        self.deltas = np.array([hue_delta, saturation_delta, value_delta], np.float64)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Shift the colours of a uint8 image."""
        if sample.image.dtype != np.uint8:
            raise DatasetError(
                f"{sample.record.path}: YOLOXHSVRandomAug needs uint8 images, got "
                f"{sample.image.dtype}; leave out to_float32 and PhotoMetricDistortion before it"
            )
        shifts = rng.uniform(-1, 1, 3) * self.deltas
        shifts *= rng.integers(0, 2, 3)
        hsv = cv2.cvtColor(sample.image, cv2.COLOR_BGR2HSV)
        cv2.LUT(hsv, _shift_table(shifts.astype(np.int16)), dst=hsv)
        sample.set_image(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
        return sample


def _shift_table(shifts: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Return what each value of hue, saturation and value becomes, uint8 [1, 256, 3]."""
    values = np.arange(256, dtype=np.int16)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (values + shifts[0]) % 180
    table[0, :, 1] = np.clip(values + shifts[1], 0, 255)
    table[0, :, 2] = np.clip(values + shifts[2], 0, 255)
    return table


@TRANSFORMS.register()
class PhotoMetricDistortion(Transform):
    """Change brightness, contrast, saturation, hue and channel order, each every other time.

    From SSD (arXiv:1512.02325). The result is float32 and, as in MMDetection, not clipped to
    0..255.

    Args:
        brightness_delta: Largest addend.
        contrast_range: (lowest, highest) factor, applied before or after the change of colour.
        saturation_range: (lowest, highest) factor.
        hue_delta: Largest shift of the hue in degrees.

    Raises:
        ConfigError: A range is not (lowest, highest).
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: Sequence[float] = (0.5, 1.5),
        saturation_range: Sequence[float] = (0.5, 1.5),
        hue_delta: float = 18,
    ) -> None:
        for name, bounds in (("contrast", contrast_range), ("saturation", saturation_range)):
            if len(bounds) != 2 or bounds[0] > bounds[1]:
                raise ConfigError(
                    f"PhotoMetricDistortion: {name}_range must be (lowest, highest), got {bounds!r}"
                )
        self.brightness_delta = brightness_delta
        self.contrast_range = float(contrast_range[0]), float(contrast_range[1])
        self.saturation_range = float(saturation_range[0]), float(saturation_range[1])
        self.hue_delta = hue_delta

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Change the colours."""
        contrast_first, brightness, contrast, saturation, hue, swap = (
            bool(rng.integers(2)) for _ in range(6)
        )
        addend = rng.uniform(-self.brightness_delta, self.brightness_delta)
        contrast_factor = rng.uniform(*self.contrast_range)
        saturation_factor = rng.uniform(*self.saturation_range)
        hue_shift = rng.uniform(-self.hue_delta, self.hue_delta)
        order = rng.permutation(3)

        image: npt.NDArray[np.float32] = sample.image.astype(np.float32)
        if brightness:
            image += np.float32(addend)
        if contrast and contrast_first:
            image *= np.float32(contrast_factor)
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), dtype=np.float32)
        if saturation:
            hsv[..., 1] *= np.float32(saturation_factor)
            if saturation_factor > 1:
                np.clip(hsv[..., 1], 0, 1, out=hsv[..., 1])
        if hue:
            hsv[..., 0] += np.float32(hue_shift)
            hsv[..., 0][hsv[..., 0] > 360] -= 360
            hsv[..., 0][hsv[..., 0] < 0] += 360
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), dtype=np.float32)
        if contrast and not contrast_first:
            image *= np.float32(contrast_factor)
        if swap:
            image = image[..., order]
        sample.set_image(image)
        return sample
