"""Mosaic: four images around a random point of a canvas of twice the size.

From YOLOv4 (Bochkovskiy et al., arXiv:2004.10934) in YOLOX's form; the cached one is RTMDet's (Lyu
et al., arXiv:2212.07784). Geometry and draws are those of MMDetection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deploykit.errors import ConfigError
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.canvas import blank_canvas
from deploykit.training.data.transforms.resize import as_pair, resize_image
from deploykit.training.data.transforms.transform import CachingTransform, MixingTransform
from deploykit.training.registry import TRANSFORMS

# How many samples fill the cache before the first mosaic of an epoch: three partners and a choice.
PRIMED_SAMPLES = 5


class MosaicLayout:
    """Puts four samples around a point.

    Args:
        img_scale: (width, height) that each sample is fitted into; the canvas is twice as large.
        center_ratio_range: The point's coordinates as a share of ``img_scale``.
        bbox_clip_border: Whether to clip boxes to the canvas.
        pad_val: Value of the canvas where no sample lies.
        name: Type name, for messages.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int],
        center_ratio_range: Sequence[float],
        bbox_clip_border: bool,
        pad_val: float,
        name: str,
    ) -> None:
        self.tile_width, self.tile_height = as_pair(img_scale, f"{name}: img_scale")
        self.width, self.height = 2 * self.tile_width, 2 * self.tile_height
        if len(center_ratio_range) != 2 or not 0 <= center_ratio_range[0] <= center_ratio_range[1]:
            raise ConfigError(
                f"{name}: center_ratio_range must be (lowest, highest) >= 0, "
                f"got {center_ratio_range!r}"
            )
        self.center_range = float(center_ratio_range[0]), float(center_ratio_range[1])
        self.bbox_clip_border = bbox_clip_border
        self.pad_val = pad_val

    def fit(self, sample: Sample) -> Sample:
        """Return a copy of the sample, resized to fit into a tile."""
        tile = sample.copy()
        height, width = sample.size
        ratio = min(self.tile_height / height, self.tile_width / width)
        new_width, new_height = max(int(width * ratio), 1), max(int(height * ratio), 1)
        tile.set_image(resize_image(sample.image, new_width, new_height))
        tile.boxes = box_ops.scale(sample.boxes, ratio, ratio)
        if sample.masks is not None:
            tile.masks = sample.masks.resize(new_height, new_width)
        return tile

    def combine(self, tiles: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """Put four fitted samples around a random point.

        Args:
            tiles: For the top left (whose meta data the result gets), top right, bottom left,
                bottom right.
            rng: The source of all randomness.
        """
        center_x = int(rng.uniform(*self.center_range) * self.tile_width)
        center_y = int(rng.uniform(*self.center_range) * self.tile_height)
        dtype = tiles[0].image.dtype
        canvas = blank_canvas(self.height, self.width, (self.pad_val,) * 3, dtype)
        placed = []
        for position, tile in enumerate(tiles):
            height, width = tile.size
            left = center_x - (width if position % 2 == 0 else 0)
            top = center_y - (height if position < 2 else 0)
            x1, x2 = max(left, 0), min(left + width, self.width)
            y1, y2 = max(top, 0), min(top + height, self.height)
            if x1 < x2 and y1 < y2:
                canvas[y1:y2, x1:x2] = tile.image[y1 - top : y2 - top, x1 - left : x2 - left]
            moved = tile.copy()
            moved.boxes = box_ops.shift(tile.boxes, left, top)
            if tile.masks is not None:
                moved.masks = tile.masks.place(self.height, self.width, left, top)
            placed.append(moved)
        result = merge_instances(placed)
        result.set_image(canvas)
        if self.bbox_clip_border:
            result.boxes = box_ops.clip(result.boxes, self.height, self.width)
        result.keep(box_ops.touch_image(result.boxes, self.height, self.width))
        return result


def merge_instances(samples: Sequence[Sample]) -> Sample:
    """Return a copy of the first sample that holds the instances of all of them.

    Raises:
        ConfigError: They have proposals, which are of one image each.
    """
    if any(each.proposals is not None for each in samples):
        raise ConfigError("images with proposals cannot be mixed; leave out Mosaic and MixUp")
    merged = samples[0].copy()
    merged.boxes = np.concatenate([each.boxes for each in samples])
    merged.labels = np.concatenate([each.labels for each in samples])
    merged.ignore_flags = np.concatenate([each.ignore_flags for each in samples])
    if merged.masks is not None:
        others = [each.masks for each in samples[1:] if each.masks is not None]
        merged.masks = merged.masks.concatenate(others)
    return merged


def check_probability(prob: float, name: str) -> float:
    """Return ``prob`` if it is within 0..1.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(prob, int | float) or not 0 <= prob <= 1:
        raise ConfigError(f"{name}: prob must be within 0..1, got {prob!r}")
    return float(prob)


@TRANSFORMS.register()
class Mosaic(MixingTransform):
    """Mosaic with three samples drawn from the data set; for ``MultiImageMixDataset``.

    Args:
        img_scale: (width, height) that each sample is fitted into; the result is twice as large.
        center_ratio_range: Coordinates of the common point as a share of ``img_scale``.
        bbox_clip_border: Whether to clip boxes to the canvas.
        pad_val: Value of the canvas where no sample lies.
        prob: Probability of the mosaic.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        center_ratio_range: Sequence[float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float = 114.0,
        prob: float = 1.0,
    ) -> None:
        self.layout = MosaicLayout(
            img_scale, center_ratio_range, bbox_clip_border, pad_val, "Mosaic"
        )
        self.prob = check_probability(prob, "Mosaic")

    def draw_partners(
        self, draw: Callable[[], Sample | None], rng: np.random.Generator
    ) -> list[Sample] | None:
        """Draw three samples."""
        partners = [partner for _ in range(3) if (partner := draw()) is not None]
        return partners if len(partners) == 3 else None

    def mix(self, sample: Sample, partners: list[Sample], rng: np.random.Generator) -> Sample:
        """Put the sample and its partners around a random point."""
        if rng.random() > self.prob:
            return sample
        tiles = [self.layout.fit(each) for each in (sample, *partners)]
        return self.layout.combine(tiles, rng)


@TRANSFORMS.register()
class CachedMosaic(CachingTransform):
    """Mosaic with three samples from a cache of those seen before.

    The cache holds samples already fitted into a tile, so each is resized once.

    Args:
        img_scale: (width, height) that each sample is fitted into; the result is twice as large.
        center_ratio_range: Coordinates of the common point as a share of ``img_scale``.
        bbox_clip_border: Whether to clip boxes to the canvas.
        pad_val: Value of the canvas where no sample lies.
        prob: Probability of the mosaic.
        max_cached_images: Size of the cache; at least 4.
        random_pop: Whether a full cache drops a random sample, or else the oldest.

    Raises:
        ConfigError: Arguments that make no sense.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        center_ratio_range: Sequence[float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float = 114.0,
        prob: float = 1.0,
        max_cached_images: int = 40,
        random_pop: bool = True,
    ) -> None:
        if max_cached_images < 4:
            raise ConfigError(
                f"CachedMosaic: max_cached_images must be at least 4, got {max_cached_images}"
            )
        self.layout = MosaicLayout(
            img_scale, center_ratio_range, bbox_clip_border, pad_val, "CachedMosaic"
        )
        self.prob = check_probability(prob, "CachedMosaic")
        self.max_cached_images = max_cached_images
        self.random_pop = random_pop
        self.cache: list[Sample] = []

    def reset(self) -> None:
        """Forget all cached samples."""
        self.cache = []

    @property
    def missing(self) -> int:
        """How many samples the cache still needs before the first mosaic."""
        return max(min(PRIMED_SAMPLES, self.max_cached_images) - len(self.cache), 0)

    def remember(self, sample: Sample, rng: np.random.Generator) -> None:
        """Put a sample into the cache, which drops another (never this one) when it is full."""
        self.cache.append(self.layout.fit(sample))
        if len(self.cache) > self.max_cached_images:
            oldest_or_random = int(rng.integers(len(self.cache) - 1)) if self.random_pop else 0
            self.cache.pop(oldest_or_random)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Put the sample and three earlier ones around a random point."""
        self.remember(sample, rng)
        if len(self.cache) < 4 or rng.random() > self.prob:
            return sample
        # As in MMDetection the partners are earlier samples, never the one just cached.
        partners = [self.cache[int(rng.integers(len(self.cache) - 1))] for _ in range(3)]
        return self.layout.combine([self.cache[-1], *partners], rng)
