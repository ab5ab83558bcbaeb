"""The kernel of multi-level RoIAlign: constants and launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.plugins_trt.kernel import (
    Kernel,
    Launch,
    Numbers,
    ShapeArithmetic,
    constants,
    float_type,
)

MOST_LEVELS = 6  # as in the source
THREADS = 256
# How many channels a block computes for its region: fewer for few regions, more for many.
CHANNEL_CHOICES = (16, 64, 256)
DEFAULT_CHANNELS = 64


@dataclass(frozen=True)
class RoIAlignParameters:
    """The parameters of ``multilevel_roi_align``.

    Args:
        output_size: (height, width) of the crops.
        sampling_ratio: Samples per bin and axis; 0: as many as the bin has feature cells.
        spatial_scales: Feature cells per pixel, one per level.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.
        aligned: Cell centres lie at half coordinates.

    Raises:
        UsageError: There are no levels, or more than six.
    """

    output_size: tuple[int, int]
    sampling_ratio: int
    spatial_scales: tuple[float, ...]
    finest_scale: int
    aligned: bool

    def __post_init__(self) -> None:
        if not 1 <= len(self.spatial_scales) <= MOST_LEVELS:
            raise UsageError(
                f"multi-level RoIAlign got {len(self.spatial_scales)} levels, expected 1 to "
                f"{MOST_LEVELS}"
            )


def level_bound(level: int) -> float:
    """Return the least float32 size, in units of the finest scale, that belongs to a level.

    The operator takes ``floor(log2(size))`` in float32, where the logarithm of a size just below a
    power of two rounds up. Comparing with the bound gives the same and needs no logarithm, which
    devices round differently.

    Args:
        level: From 1.
    """
    bound = np.float32(2.0**level)
    while np.floor(np.log2(np.nextafter(bound, np.float32(0)))) >= level:
        bound = np.nextafter(bound, np.float32(0))
    return float(bound)


def roi_align_kernel(
    parameters: RoIAlignParameters, dtype: str, channels_per_block: int = DEFAULT_CHANNELS
) -> Kernel:
    """Return the kernel.

    Args:
        parameters: Of the operator.
        dtype: Of features and crops, float32 or float16.
        channels_per_block: How many channels a block computes for its region.
    """
    levels = range(len(parameters.spatial_scales))
    values: dict[str, int | float | str] = {
        "VALUE": float_type(dtype, "features"),
        "NUM_LEVELS": len(levels),
        "OUTPUT_HEIGHT": parameters.output_size[0],
        "OUTPUT_WIDTH": parameters.output_size[1],
        "SAMPLING_RATIO": max(parameters.sampling_ratio, 0),
        "ALIGNED": str(parameters.aligned).lower(),
        "FINEST_SCALE": float(parameters.finest_scale),
        "CHANNELS": channels_per_block,
    }
    for level in levels:
        values[f"SPATIAL_SCALE_{level}"] = float(parameters.spatial_scales[level])
        # Every size is one of the first level at least.
        values[f"LEVEL_BOUND_{level}"] = level_bound(level) if level > 0 else -1.0
    sizes = [f"{side}_{level}" for level in levels for side in ("height", "width")]
    return Kernel(
        "multilevel_roi_align",
        constants(values),
        inputs=("rois", *(f"feature_{level}" for level in levels)),
        scalars=("images", "channels", *sizes),
        outputs=("crops",),
    )


def roi_align_launch(
    regions: Any,
    feature_shapes: Sequence[Sequence[Any]],
    channels_per_block: int = DEFAULT_CHANNELS,
    arithmetic: ShapeArithmetic = Numbers,
) -> Launch:
    """Return the launch: a block per region and group of channels.

    Args:
        regions: Their number.
        feature_shapes: (images, channels, height, width) per level.
        channels_per_block: As of the kernel.
        arithmetic: What to compute with.
    """
    images, channels = feature_shapes[0][:2]
    sizes = [side for shape in feature_shapes for side in shape[2:]]
    grid = (regions, arithmetic.cdiv(channels, channels_per_block), 1)
    return Launch(grid, THREADS, (images, channels, *sizes))
