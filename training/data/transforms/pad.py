"""Padding at the bottom and right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from deploykit.errors import ConfigError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.resize import as_pair
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

_BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}


@TRANSFORMS.register()
class Pad(Transform):
    """Pad the image at the bottom and right; an image that is larger stays as it is.

    Args:
        size: (width, height) to pad to.
        size_divisor: Pad to the next multiple of this; after ``pad_to_square`` if both are given.
        pad_to_square: Whether to pad to a square.
        pad_val: Padding value: a number, one number per channel in the image's order, or
            ``dict(img=...)`` of either.
        padding_mode: ``"constant"``, ``"edge"``, ``"reflect"`` or ``"symmetric"``.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        size_divisor: int | None = None,
        pad_to_square: bool = False,
        pad_val: Any = 0,
        padding_mode: str = "constant",
    ) -> None:
        if pad_to_square and size is not None:
            raise ConfigError("Pad: size and pad_to_square exclude each other")
        if not pad_to_square and (size is None) == (size_divisor is None):
            raise ConfigError("Pad needs one of size=(width, height), size_divisor, pad_to_square")
        if size_divisor is not None and (not isinstance(size_divisor, int) or size_divisor < 1):
            raise ConfigError(f"Pad: size_divisor must be a positive number, got {size_divisor!r}")
        if padding_mode not in _BORDERS:
            raise ConfigError(
                f"Pad: padding_mode must be one of {', '.join(_BORDERS)}, got {padding_mode!r}"
            )
        self.size = None if size is None else as_pair(size, "Pad: size")
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square
        self.pad_val = as_colour(
            pad_val.get("img", 0) if isinstance(pad_val, Mapping) else pad_val, "Pad"
        )
        self.padding_mode = padding_mode

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Pad image and masks; boxes stay where they are."""
        height, width = sample.size
        new_height, new_width = self._target(height, width)
        if (new_height, new_width) == (height, width):
            return sample
        padded = cv2.copyMakeBorder(
            sample.image,
            0,
            new_height - height,
            0,
            new_width - width,
            _BORDERS[self.padding_mode],
            value=self.pad_val,
        )
        sample.set_image(padded)
        if sample.masks is not None:
            sample.masks = sample.masks.place(new_height, new_width, 0, 0)
        return sample

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.size is not None:
            return max(height, self.size[1]), max(width, self.size[0])
        new_height, new_width = height, width
        if self.pad_to_square:
            new_height = new_width = max(height, width)
        if self.size_divisor is not None:
            new_height = math.ceil(new_height / self.size_divisor) * self.size_divisor
            new_width = math.ceil(new_width / self.size_divisor) * self.size_divisor
        return new_height, new_width


def as_colour(value: Any, name: str) -> tuple[float, float, float]:
    """Return a number or three numbers as three floats.

    Raises:
        ConfigError: It is neither.
    """
    colour = (value,) * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(colour, Sequence)
        or len(colour) != 3
        or not all(isinstance(part, int | float) for part in colour)
    ):
        raise ConfigError(f"{name}: pad_val must be a number or three numbers, got {value!r:.80}")
    return float(colour[0]), float(colour[1]), float(colour[2])
