"""What every form of ``deploykit::MultilevelRoIAlign`` begins with: regions and their levels."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import onnx_ir as ir
import torch

from deploykit.exporters.lowerings.graph_writer import GraphWriter

# Pixels; a region there is outside of every map at every level, so all its samples are zeros.
NOWHERE = -1e6
_INT32, _INT64 = ir.DataType.INT32.value, ir.DataType.INT64.value


def write_usable_rois(write: GraphWriter, rois: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Write regions whose sides are not negative and whose numbers are finite.

    Args:
        write: Where to.
        rois: float32 [R, 5], (image, x1, y1, x2, y2).

    Returns:
        int64 [R], the image, and float32 [R, 4]; a region that was not finite is outside of every
        map of image 0.
    """
    # Comparisons with what is not a number are false.
    finite = write("LessOrEqual", write("Abs", rois), float(np.finfo(np.float32).max))
    finite = write("ReduceMin", write("Cast", finite, to=_INT32), [1], keepdims=1)
    finite = write("Cast", finite, to=ir.DataType.BOOL.value)
    image = write("Slice", rois, [0], [1], [1])
    start = write("Slice", rois, [1], [3], [1])
    end = write("Slice", rois, [3], [5], [1])
    boxes = write("Concat", start, write("Max", start, end), axis=1)
    boxes = write("Where", finite, boxes, NOWHERE)
    images = write("Cast", write("Where", finite, image, 0.0), to=_INT64)
    return write("Squeeze", images, [1]), boxes


def write_levels(
    write: GraphWriter, boxes: ir.Value, num_levels: int, finest_scale: int
) -> ir.Value:
    """Write the pyramid level of each region.

    Args:
        write: Where to.
        boxes: float32 [R, 4], with no negative sides.
        num_levels: Number of levels.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.

    Returns:
        int64 [R].
    """
    start = write("Slice", boxes, [0], [2], [1])
    end = write("Slice", boxes, [2], [4], [1])
    width, height = write.several(2, "Split", write("Sub", end, start), axis=1, num_outputs=2)
    size = write("Sqrt", write("Mul", width, height))
    relative = write("Add", write("Div", size, float(finest_scale)), 1e-6)
    if num_levels == 1:
        shape = write("Shape", boxes, start=0, end=1)
        return write("Expand", 0, shape)
    limits = [level_threshold(level) for level in range(1, num_levels)]
    reached = write("Cast", write("GreaterOrEqual", relative, limits), to=_INT64)
    return write("ReduceSum", reached, [1], keepdims=0)


@cache
def level_threshold(level: int) -> float:
    """Return the least float32 whose ``torch.log2`` is at least this level.

    That is not always the power of two: the logarithm of the number below it may round up. The
    engines' logarithms round in other ways; a comparison is the same in all of them.
    """
    value = np.float32(2.0**level)
    while True:
        below = np.nextafter(value, np.float32(0))
        if math.floor(torch.log2(torch.tensor(below)).item()) < level:
            return float(value)
        value = below
