"""RoIAlign from a feature pyramid in plain numpy: the reference that every implementation meets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


def multilevel_roi_align(
    features: Sequence[FloatArray],
    rois: FloatArray,
    output_size: tuple[int, int],
    sampling_ratio: int,
    spatial_scales: Sequence[float],
    finest_scale: int,
    aligned: bool,
) -> FloatArray:
    """Crop regions out of feature pyramids and resize them to one size.

    This is the definition, written down one sample after the other; it is slow. Samples are
    computed in float64. A side that ends before it starts has length 0; regions that are not finite
    give zeros.

    Args:
        features: float32 [B, C, H_i, W_i] per level, finest first.
        rois: float32 [R, 5], (image, x1, y1, x2, y2) in pixels of the network input.
        output_size: (height, width) of the result.
        sampling_ratio: Samples per bin and axis; 0: as many as the bin has feature cells, rounded
            up.
        spatial_scales: Feature cells per pixel, one per level.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.
        aligned: Cell centres lie at half coordinates.

    Returns:
        float32 [R, C, height, width].
    """
    levels = roi_levels(rois, len(features), finest_scale)
    output = np.zeros((len(rois), features[0].shape[1], *output_size), np.float32)
    for row, (roi, level) in enumerate(zip(rois, levels, strict=True)):
        if not np.isfinite(roi).all():
            continue
        feature = features[level][int(roi[0])]
        box = [float(side) * spatial_scales[level] - (0.5 if aligned else 0.0) for side in roi[1:]]
        rows = _bins(box[1], box[3], output_size[0], sampling_ratio, aligned)
        columns = _bins(box[0], box[2], output_size[1], sampling_ratio, aligned)
        for i, ys in enumerate(rows):
            for j, xs in enumerate(columns):
                samples = [bilinear(feature, y, x) for y in ys for x in xs]
                if samples:
                    output[row, :, i, j] = np.mean(samples, axis=0)
    return output


def roi_levels(rois: FloatArray, num_levels: int, finest_scale: int) -> IndexArray:
    """Return the pyramid level of each region.

    Args:
        rois: float32 [R, 5], (image, x1, y1, x2, y2).
        num_levels: Number of levels.
        finest_scale: Regions of less than twice this size come from level 0.

    Returns:
        int64 [R]; 0 where the size is not a number.
    """
    with np.errstate(invalid="ignore"):
        sides = np.maximum(rois[:, 3:] - rois[:, 1:3], np.float32(0))
        size = np.sqrt(sides[:, 0] * sides[:, 1])
        level = np.floor(np.log2(size / np.float32(finest_scale) + np.float32(1e-6)))
    level = np.where(np.isnan(level), 0, level)
    return np.asarray(np.clip(level, 0, num_levels - 1), np.int64)


def bilinear(feature: FloatArray, y: float, x: float) -> npt.NDArray[np.float64]:
    """Return the value of a feature map between its cells.

    Args:
        feature: float32 [C, H, W].
        y: Row; values from -1 to H count as the nearest row, others as outside.
        x: Column, likewise.

    Returns:
        float64 [C]; zeros outside.
    """
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    values = feature.astype(np.float64)
    upper = values[:, top, left] * (1 - along) + values[:, top, right] * along
    lower = values[:, bottom, left] * (1 - along) + values[:, bottom, right] * along
    return np.asarray(upper * (1 - down) + lower * down)


def _bins(
    start: float, end: float, count: int, sampling_ratio: int, aligned: bool
) -> list[list[float]]:
    """Return the sample coordinates of each bin along one axis, in feature cells."""
    length = max(end - start, 0.0 if aligned else 1.0)
    size = length / count
    samples = sampling_ratio if sampling_ratio > 0 else math.ceil(size)
    return [
        [start + bin_ * size + (k + 0.5) * size / samples for k in range(samples)]
        for bin_ in range(count)
    ]
