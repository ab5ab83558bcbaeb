"""MixUp: the mean of two images, with the objects of both.

From "mixup" (Zhang et al., arXiv:1710.09412) in YOLOX's form; the cached one is RTMDet's (Lyu et
al., arXiv:2212.07784). Geometry, draws and rounding are those of MMDetection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import ConfigError
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.canvas import blank_canvas
from deploykit.training.data.transforms.flip import flip_sample
from deploykit.training.data.transforms.mosaic import check_probability, merge_instances
from deploykit.training.data.transforms.pad import as_colour
from deploykit.training.data.transforms.resize import as_pair, resize_image
from deploykit.training.data.transforms.transform import CachingTransform, MixingTransform
from deploykit.training.registry import TRANSFORMS

# How many samples fill the cache before the first mix of an epoch.
PRIMED_SAMPLES = 2


class Mixer:
    """Mixes one sample into another.

    Args:
        img_scale: (width, height) that the partner is fitted into and padded to.
        ratio_range: The padded partner is then scaled by a ratio from this range.
        flip_ratio: Probability that the partner is *not* flipped (MMDetection's meaning; the two
            agree at the usual 0.5).
        pad_val: Value around the partner.
        bbox_clip_border: Whether to clip boxes to the image.
        name: Type name, for messages.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int],
        ratio_range: Sequence[float],
        flip_ratio: float,
        pad_val: Any,
        bbox_clip_border: bool,
        name: str,
    ) -> None:
        self.width, self.height = as_pair(img_scale, f"{name}: img_scale")
        if len(ratio_range) != 2 or not 0 < ratio_range[0] <= ratio_range[1]:
            raise ConfigError(
                f"{name}: ratio_range must be (lowest, highest) > 0, got {ratio_range!r}"
            )
        self.ratio_range = float(ratio_range[0]), float(ratio_range[1])
        self.flip_ratio = flip_ratio
        self.pad_val = as_colour(pad_val, name)
        self.bbox_clip_border = bbox_clip_border

    def mix(self, sample: Sample, partner: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample with the partner mixed in.

        Args:
            sample: Gives the size and meta data of the result.
            partner: A sample with objects; it is not changed.
            rng: The source of all randomness.
        """
        jitter = rng.uniform(*self.ratio_range)
        flipped = rng.random() > self.flip_ratio
        placed = self._fit(partner, jitter)
        if flipped:
            placed = flip_sample(placed, "horizontal")
        height, width = sample.size
        self._cut(placed, height, width, rng)
        result = merge_instances([sample, placed])
        result.set_image(mean_image(sample.image, placed.image))
        result.keep(box_ops.touch_image(result.boxes, height, width))
        return result

    def _fit(self, partner: Sample, jitter: float) -> Sample:
        """Return the partner resized, padded and scaled by the jitter."""
        fitted = partner.copy()
        height, width = partner.size
        ratio = min(self.height / height, self.width / width)
        new_width, new_height = max(int(width * ratio), 1), max(int(height * ratio), 1)
        canvas = blank_canvas(self.height, self.width, self.pad_val, partner.image.dtype)
        canvas[:new_height, :new_width] = resize_image(partner.image, new_width, new_height)
        scaled_width = max(int(self.width * jitter), 1)
        scaled_height = max(int(self.height * jitter), 1)
        fitted.set_image(_resize_truncating(canvas, scaled_width, scaled_height))
        ratio *= jitter
        fitted.boxes = box_ops.scale(partner.boxes, ratio, ratio)
        if self.bbox_clip_border:
            fitted.boxes = box_ops.clip(fitted.boxes, scaled_height, scaled_width)
        if partner.masks is not None:
            on_canvas = partner.masks.resize(new_height, new_width)
            on_canvas = on_canvas.place(self.height, self.width, 0, 0)
            if (scaled_height, scaled_width) != (self.height, self.width):
                on_canvas = on_canvas.resize(scaled_height, scaled_width)
            fitted.masks = on_canvas
        return fitted

    def _cut(self, placed: Sample, height: int, width: int, rng: np.random.Generator) -> None:
        """Cut a window of (height, width) at random, padded where the partner is smaller."""
        from_height, from_width = placed.size
        top = int(rng.integers(from_height - height)) if from_height > height else 0
        left = int(rng.integers(from_width - width)) if from_width > width else 0
        window = placed.image[top : top + height, left : left + width]
        if window.shape[:2] != (height, width):
            cut, window = window, blank_canvas(height, width, self.pad_val, window.dtype)
            window[: cut.shape[0], : cut.shape[1]] = cut
        placed.set_image(window)
        placed.boxes = box_ops.shift(placed.boxes, -left, -top)
        if self.bbox_clip_border:
            placed.boxes = box_ops.clip(placed.boxes, height, width)
        if placed.masks is not None:
            placed.masks = placed.masks.place(height, width, -left, -top)


def _resize_truncating(image: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[Any]:
    """Resize in double precision and truncate, which is what MMDetection's MixUp comes to."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image.astype(np.float64), (width, height)).astype(image.dtype)


def mean_image(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mean of two images of the same size, rounded down for uint8."""
    if first.dtype == np.uint8 and second.dtype == np.uint8:
        return np.asarray((first & second) + ((first ^ second) >> 1))
    return np.asarray(0.5 * first + 0.5 * second, dtype=first.dtype)


@TRANSFORMS.register()
class MixUp(MixingTransform):
    """MixUp with a sample drawn from the data set; for ``MultiImageMixDataset``.

    Args:
        img_scale: (width, height) that the partner is fitted into.
        ratio_range: Range of the factor that the partner is scaled by after that.
        flip_ratio: Probability that the partner is not flipped.
        pad_val: Value around the partner.
        max_iters: How many samples to draw in search of one with objects.
        bbox_clip_border: Whether to clip boxes to the image.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        ratio_range: Sequence[float] = (0.5, 1.5),
        flip_ratio: float = 0.5,
        pad_val: Any = 114.0,
        max_iters: int = 15,
        bbox_clip_border: bool = True,
    ) -> None:
        self.mixer = Mixer(img_scale, ratio_range, flip_ratio, pad_val, bbox_clip_border, "MixUp")
        self.max_iters = max_iters

    def draw_partners(
        self, draw: Callable[[], Sample | None], rng: np.random.Generator
    ) -> list[Sample] | None:
        """Draw a sample, with objects if one turns up in ``max_iters`` draws."""
        partner = None
        for _ in range(self.max_iters):
            partner = draw()
            if partner is not None and len(partner.boxes):
                break
        return None if partner is None else [partner]

    def mix(self, sample: Sample, partners: list[Sample], rng: np.random.Generator) -> Sample:
        """Mix the partner in, if it has objects."""
        if not len(partners[0].boxes):
            return sample
        return self.mixer.mix(sample, partners[0], rng)


@TRANSFORMS.register()
class CachedMixUp(CachingTransform):
    """MixUp with a sample from a cache of those seen before.

    Args:
        img_scale: (width, height) that the partner is fitted into.
        ratio_range: Range of the factor that the partner is scaled by after that.
        flip_ratio: Probability that the partner is not flipped.
        pad_val: Value around the partner.
        max_iters: How many cached samples to try in search of one with objects.
        bbox_clip_border: Whether to clip boxes to the image.
        max_cached_images: Size of the cache; at least 2.
        random_pop: Whether a full cache drops a random sample, or else the oldest.
        prob: Probability of mixing.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        ratio_range: Sequence[float] = (0.5, 1.5),
        flip_ratio: float = 0.5,
        pad_val: Any = 114.0,
        max_iters: int = 15,
        bbox_clip_border: bool = True,
        max_cached_images: int = 20,
        random_pop: bool = True,
        prob: float = 1.0,
    ) -> None:
        if max_cached_images < 2:
            raise ConfigError(
                f"CachedMixUp: max_cached_images must be at least 2, got {max_cached_images}"
            )
        self.mixer = Mixer(
            img_scale, ratio_range, flip_ratio, pad_val, bbox_clip_border, "CachedMixUp"
        )
        self.prob = check_probability(prob, "CachedMixUp")
        self.max_iters = max_iters
        self.max_cached_images = max_cached_images
        self.random_pop = random_pop
        self.cache: list[Sample] = []

    def reset(self) -> None:
        """Forget all cached samples."""
        self.cache = []

    @property
    def missing(self) -> int:
        """How many samples the cache still needs before the first mix."""
        return max(min(PRIMED_SAMPLES, self.max_cached_images) - len(self.cache), 0)

    def remember(self, sample: Sample, rng: np.random.Generator) -> None:
        """Put a sample into the cache, which drops another (never this one) when it is full."""
        self.cache.append(sample.copy())
        if len(self.cache) > self.max_cached_images:
            self.cache.pop(int(rng.integers(len(self.cache) - 1)) if self.random_pop else 0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Mix an earlier sample in."""
        self.remember(sample, rng)
        if len(self.cache) < 2 or rng.random() > self.prob:
            return sample
        for _ in range(self.max_iters):
            partner = self.cache[int(rng.integers(len(self.cache) - 1))]
            if len(partner.boxes):
                return self.mixer.mix(sample, partner, rng)
        return sample
