"""Resizing to a size, by a factor, or to a randomly chosen size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError
from deploykit.optional_imports import import_optional
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_PILLOW_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}


def fit_factor(width: int, height: int, scale: tuple[int, int]) -> float:
    """Return the factor that makes an image as large as possible within ``scale``.

    The larger number of ``scale`` bounds the long edge and the smaller one the short edge, whatever
    the orientation of either.
    """
    return min(max(scale) / max(width, height), min(scale) / min(width, height))


def resize_image(
    image: npt.NDArray[Any],
    width: int,
    height: int,
    interpolation: str = "bilinear",
    backend: str = "cv2",
) -> npt.NDArray[Any]:
    """Return the image resized to (width, height) in pixels, always as a new array."""
    if backend == "pillow":
        pillow = import_optional("PIL.Image", "dev", "Resize with backend='pillow'")
        resized = pillow.fromarray(image).resize((width, height), _PILLOW_FILTERS[interpolation])
        return np.array(resized)
    return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[interpolation])


@TRANSFORMS.register()
class Resize(Transform):
    """Resize the image with its boxes and masks.

    Args:
        scale: (width, height) to aim at, or one number for both.
        scale_factor: Factor(s) for (width, height), used when ``scale`` is not given.
        keep_ratio: Whether to keep the aspect ratio, as large as possible within ``scale`` (see
            ``fit_factor``); otherwise the image is stretched to exactly ``scale``.
        clip_object_border: Whether to clip boxes to the image.
        backend: ``"cv2"`` or ``"pillow"``.
        interpolation: ``"nearest"``, ``"bilinear"``, ``"bicubic"``, ``"area"``, ``"lanczos"``.
            Masks always use the nearest neighbour.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    # What turns a scaled edge into pixels: mmcv rounds half up.
    _rounding = 0.5

    def __init__(
        self,
        scale: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        keep_ratio: bool = False,
        clip_object_border: bool = True,
        backend: str = "cv2",
        interpolation: str = "bilinear",
    ) -> None:
        name = type(self).__name__
        if scale is None and scale_factor is None:
            raise ConfigError(f"{name} needs scale=(width, height) or scale_factor")
        known = INTERPOLATIONS if backend == "cv2" else _PILLOW_FILTERS
        if backend not in ("cv2", "pillow") or interpolation not in known:
            raise ConfigError(
                f"{name}: backend must be 'cv2' or 'pillow' and interpolation one of "
                f"{', '.join(known)}; got {backend!r}, {interpolation!r}"
            )
        self.scale = None if scale is None else as_pair(scale, f"{name}: scale")
        self.scale_factor = None if scale_factor is None else _as_factors(scale_factor, name)
        self.keep_ratio = keep_ratio
        self.clip_object_border = clip_object_border
        self.backend = backend
        self.interpolation = interpolation

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Resize to the scale of the config."""
        height, width = sample.size
        if self.scale is not None:
            return self.resize_to(sample, self.scale)
        factors = self.scale_factor or (1.0, 1.0)
        return self.resize_to(
            sample, (int(width * factors[0] + 0.5), int(height * factors[1] + 0.5))
        )

    def resize_to(self, sample: Sample, scale: tuple[int, int]) -> Sample:
        """Resize to (or, keeping the ratio, within) a scale.

        Args:
            sample: The sample; it is changed.
            scale: (width, height) in pixels.
        """
        height, width = sample.size
        new_width, new_height = scale
        if self.keep_ratio:
            factor = fit_factor(width, height, scale)
            new_width = int(width * factor + self._rounding)
            new_height = int(height * factor + self._rounding)
        new_width, new_height = max(new_width, 1), max(new_height, 1)
        sample.set_image(
            resize_image(sample.image, new_width, new_height, self.interpolation, self.backend)
        )
        width_factor, height_factor = new_width / width, new_height / height
        sample.move_boxes(lambda boxes: box_ops.scale(boxes, width_factor, height_factor))
        if self.clip_object_border:
            sample.move_boxes(lambda boxes: box_ops.clip(boxes, new_height, new_width))
        if sample.masks is not None:
            sample.masks = sample.masks.resize(new_height, new_width)
        sample.meta["scale_factor"] = (width_factor, height_factor)
        return sample


@TRANSFORMS.register()
class FixScaleResize(Resize):
    """``Resize`` that truncates the scaled edges instead of rounding them.

    So that an image is never resized to one pixel more than ``scale`` allows.
    """

    _rounding = 0.0


@TRANSFORMS.register()
class RandomResize(Transform):
    """Resize to a random scale.

    Args:
        scale: (width, height) to be multiplied by a ratio drawn from ``ratio_range`` (truncated to
            pixels), or two such pairs between which width and height are drawn separately.
        ratio_range: (lowest, highest) ratio, for a single ``scale``.
        resize_type: ``"Resize"`` or ``"FixScaleResize"``.
        **resize_kwargs: The other arguments of the resize.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        scale: Sequence[Any],
        ratio_range: Sequence[float] | None = None,
        resize_type: str = "Resize",
        **resize_kwargs: Any,
    ) -> None:
        self.resize = _build_resize(resize_type, resize_kwargs)
        self.bounds: tuple[tuple[int, int], tuple[int, int]] | None = None
        if len(scale) == 2 and all(isinstance(edge, int) for edge in scale):
            if ratio_range is None or len(ratio_range) != 2 or ratio_range[0] > ratio_range[1]:
                raise ConfigError(
                    f"RandomResize with one scale needs ratio_range=(lowest, highest), "
                    f"got {ratio_range!r}"
                )
            self.scale = as_pair(scale, "RandomResize: scale")
            self.ratio_range = float(ratio_range[0]), float(ratio_range[1])
        elif len(scale) == 2:
            first, second = (as_pair(each, "RandomResize: scale") for each in scale)
            self.bounds = first, second
        else:
            raise ConfigError(
                f"RandomResize: scale must be (width, height) or two such pairs, got {scale!r:.80}"
            )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Resize to a scale drawn at random."""
        return self.resize.resize_to(sample, self._draw(rng))

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        if self.bounds is not None:
            (width_a, height_a), (width_b, height_b) = self.bounds
            return (
                int(rng.integers(min(width_a, width_b), max(width_a, width_b) + 1)),
                int(rng.integers(min(height_a, height_b), max(height_a, height_b) + 1)),
            )
        low, high = self.ratio_range
        ratio = rng.random() * (high - low) + low
        return int(self.scale[0] * ratio), int(self.scale[1] * ratio)


@TRANSFORMS.register()
class RandomChoiceResize(Transform):
    """Resize to one of several scales.

    Args:
        scales: (width, height) pairs (or single numbers for both) to choose from, all equally
            likely.
        resize_type: ``"Resize"`` or ``"FixScaleResize"``.
        **resize_kwargs: The other arguments of the resize.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self, scales: Sequence[Any], resize_type: str = "Resize", **resize_kwargs: Any
    ) -> None:
        # MMDetection takes a bare tuple (width, height) as a single scale.
        if (
            isinstance(scales, tuple)
            and len(scales) == 2
            and all(isinstance(edge, int) for edge in scales)
        ):
            scales = [scales]
        if not scales:
            raise ConfigError("RandomChoiceResize: scales is empty")
        self.scales = [as_pair(scale, "RandomChoiceResize: scales") for scale in scales]
        self.resize = _build_resize(resize_type, resize_kwargs)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Resize to a scale chosen at random."""
        return self.resize.resize_to(sample, self.scales[int(rng.integers(len(self.scales)))])


def as_pair(value: Any, name: str) -> tuple[int, int]:
    """Return one positive number or a pair of them as a pair of ints.

    Raises:
        ConfigError: It is neither.
    """
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(edge, int) and edge > 0 for edge in pair)
    ):
        raise ConfigError(f"{name} must be (width, height) in whole pixels, got {value!r:.80}")
    return pair[0], pair[1]


def _as_factors(value: Any, name: str) -> tuple[float, float]:
    pair = (value, value) if isinstance(value, int | float) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(factor, int | float) and factor > 0 for factor in pair)
    ):
        raise ConfigError(
            f"{name}: scale_factor must be a positive number or a pair, got {value!r:.80}"
        )
    return float(pair[0]), float(pair[1])


def _build_resize(resize_type: str, options: dict[str, Any]) -> Resize:
    resize = TRANSFORMS.build({"type": resize_type, "scale": 1, **options})
    if not isinstance(resize, Resize):
        raise ConfigError(f"resize_type must be 'Resize' or 'FixScaleResize', got {resize_type!r}")
    return resize
