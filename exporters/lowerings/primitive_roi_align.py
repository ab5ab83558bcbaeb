"""``deploykit::MultilevelRoIAlign`` as gathers and matrix products, of the ``primitive`` lowering.

All levels become one table of cells, from which windows of each region are gathered and reduced by
the weights of both axes (``roi_windows``). The first two windows of every region are computed, and
the further ones of a fixed number of regions, those with the most windows. That number is the
limit of this form; where the sizes of the maps are known and no region can need more than two
windows, or the regions are few, there is none. There must be at least one region.

Source: He et al., "Mask R-CNN", arXiv:1703.06870, for RoIAlign.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from deploykit.exporters import seam
from deploykit.exporters.lowerings.graph_writer import GraphWriter
from deploykit.exporters.lowerings.rewriting import Limits, add_written_function
from deploykit.exporters.lowerings.roi_windows import LONG, SHORT, Regions, Windows
from deploykit.exporters.seam import RoIAlignAttributes

_FLOAT = ir.DataType.FLOAT.value
LIMIT = "elongated_rois"
FIRST_WINDOWS = 2
# Regions in one product, with two windows each: 32 MiB of cells with 256 channels in float32.
CHUNK = 32
# Products if the number of regions is not known.
CHUNKS = 16


@dataclass(frozen=True)
class RoIAlignSize:
    """How much is computed.

    Args:
        elongated: At least how many regions may have more than two windows.
        share: Of all regions, one in how many; the larger number counts.
    """

    elongated: int = 128
    share: int = 6

    def rows(self, count: int) -> int:
        """Return how many of this number of regions may have more than two windows."""
        return min(count, max(self.elongated, count // self.share))


def rewrite(model: ir.Model, node: ir.Node, size: RoIAlignSize | None = None) -> Limits:
    """Replace a ``deploykit::MultilevelRoIAlign`` node, in place.

    Args:
        model: Where the node is.
        node: The node.
        size: How much to compute.

    Returns:
        How many regions may have more than two windows, unless all may.
    """
    del model
    rois, *features = (value for value in node.inputs if value is not None)
    write = GraphWriter()
    body = Body(write, RoIAlignAttributes.of(node), size or RoIAlignSize(), Shapes.of(node))
    result = body.crops(rois, features)
    write.take_place_of(node, result)
    return body.shapes.limits(body.options, body.size)


def add_body(model: ir.Model, node: ir.Node, size: RoIAlignSize | None = None) -> Limits:
    """Give a ``deploykit::MultilevelRoIAlign`` node, which stays, a body and its output a shape.

    Nodes with other attributes or shapes have bodies of their own: overloads of one function.

    Args:
        model: Where the node is.
        node: The node.
        size: How much the body computes.

    Returns:
        How many regions may have more than two windows in the body, unless all may.
    """
    rois, *features = (value for value in node.inputs if value is not None)
    body = Body(GraphWriter(), RoIAlignAttributes.of(node), size or RoIAlignSize(), Shapes.of(node))
    names = ["rois", *(f"feature{level}" for level in range(len(features)))]
    inputs = [ir.Value(name=name) for name in names]
    output = body.crops(inputs[0], inputs[1:])
    kinds = {name: attribute.type for name, attribute in node.attributes.items()}
    key = json.dumps([astuple(body.options), astuple(body.shapes)])
    node.overload = sha256(key.encode()).hexdigest()[:8]
    function = (seam.DOMAIN, seam.MULTILEVEL_ROI_ALIGN)
    add_written_function(model, *function, body.write, inputs, [output], kinds, node.overload)
    crops, channels = node.outputs[0], features[0].shape[1] if features[0].shape else None
    count = rois.shape[0] if rois.shape is not None else None
    crops.type = ir.TensorType(features[0].dtype or ir.DataType.FLOAT)
    crops.shape = ir.Shape([count, channels, *body.options.output_size])
    return body.shapes.limits(body.options, body.size)


@dataclass(frozen=True)
class Shapes:
    """What is known of the inputs when the graph is written.

    Args:
        count: Number of regions, or ``None``.
        maps: (height, width) of each level, or ``None`` if any is not known.
        half: The features are float16.
    """

    count: int | None
    maps: tuple[tuple[int, int], ...] | None
    half: bool

    @classmethod
    def of(cls, node: ir.Node) -> Shapes:
        """Read them from a node."""
        rois, *features = (value for value in node.inputs if value is not None)
        count = rois.shape[0] if rois.shape is not None else None
        sides = [tuple(value.shape or (None,) * 4)[2:] for value in features]
        known = all(isinstance(side, int) for pair in sides for side in pair)
        half = any(value.dtype == ir.DataType.FLOAT16 for value in features)
        maps = tuple((int(h), int(w)) for h, w in sides) if known else None  # type: ignore[arg-type]
        return cls(count if isinstance(count, int) else None, maps, half)

    def limits(self, options: RoIAlignAttributes, size: RoIAlignSize) -> Limits:
        """Return the limit, if there is one."""
        most = self.most_windows(options)
        if most is not None and most <= FIRST_WINDOWS:
            return {}
        if self.count is None:
            return {LIMIT: size.elongated}
        rows = size.rows(self.count)
        return {} if rows == self.count else {LIMIT: rows}

    def most_windows(self, options: RoIAlignAttributes) -> int | None:
        """Return how many windows a region can have, or ``None`` if the maps are not known."""
        if self.maps is None:
            return None
        square = options.output_size[0] == options.output_size[1]
        covers = []
        for height, width in self.maps:
            long, short = (width, height) if not square else sorted((height, width), reverse=True)
            covers.append(math.ceil(long / LONG) * math.ceil(short / SHORT))
        longest = max(side for pair in self.maps for side in pair)
        narrow = math.ceil(longest / (LONG if square else SHORT))
        return min(max(covers), max(bulky_windows(options), narrow, covers[-1]))


def bulky_windows(options: RoIAlignAttributes) -> int:
    """Return how many windows a region can have that is wider than one of them in both directions.

    The rule for levels limits the area of a region, in cells, on all levels but the last.
    """
    levels = enumerate(options.spatial_scales[:-1])
    side = max((2 ** (level + 1) * options.finest_scale * s for level, s in levels), default=0.0)
    area, most = side * side * 1.001, 1
    square = options.output_size[0] == options.output_size[1]
    for along in range((SHORT if square else LONG) + 1, math.ceil(area / (SHORT - 1)) + 3):
        across = math.floor(area / (along - 2) + 2)  # a side of s cells touches s + 2 at most
        across = min(across, along) if square else across
        if across > SHORT:
            most = max(most, math.ceil(along / LONG) * math.ceil(across / SHORT))
    return most


@dataclass(frozen=True)
class Body:
    """Writes the operator.

    Args:
        write: Takes the nodes.
        options: The attributes of the operator.
        size: How much to compute.
        shapes: What is known of the inputs.
    """

    write: GraphWriter
    options: RoIAlignAttributes
    size: RoIAlignSize
    shapes: Shapes

    def crops(self, rois: ir.Value, features: Sequence[ir.Value]) -> ir.Value:
        """Write the crops [R, C, height, width] of ``rois`` [R, 5] from the features."""
        write, options = self.write, self.options
        regions = Regions.of(write, rois, list(features), options)
        table = self._table(features)
        most = self.shapes.most_windows(options)
        count = self.shapes.count
        if most is not None and (most <= FIRST_WINDOWS or self._all_rows):
            crops = self._stage(table, regions, count, 0, most)
        elif count is not None and self._all_rows:
            crops = self._stage(table, regions, count, 0, self._most_windows(features))
        else:
            crops = self._stage(table, regions, count, 0, FIRST_WINDOWS)
            crops = self._with_further_windows(table, regions, features, crops)
        channels = write("Shape", features[0], start=1, end=2)
        shape = write("Concat", [0], channels, list(options.output_size), axis=0)
        crops = write("Reshape", crops, shape)
        return write("Cast", crops, to=ir.DataType.FLOAT16.value) if self.shapes.half else crops

    @property
    def _all_rows(self) -> bool:
        count = self.shapes.count
        return count is not None and self.size.rows(count) == count

    def _table(self, features: Sequence[ir.Value]) -> ir.Value:
        """Write all cells of all levels and images, one per row, float32 [cells, C]."""
        write, parts = self.write, []
        for feature in features:
            cells = write("Transpose", feature, perm=[0, 2, 3, 1])
            channels = write("Shape", feature, start=1, end=2)
            shape = write("Concat", [-1], channels, axis=0)
            parts.append(write("Reshape", cells, shape))
        table = parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)
        return write("Cast", table, to=_FLOAT) if self.shapes.half else table

    def _most_windows(self, features: Sequence[ir.Value]) -> ir.Value:
        """Write how many windows a region can have, int64 [], as ``Shapes.most_windows``."""
        write = self.write
        square = self.options.output_size[0] == self.options.output_size[1]
        covers: list[ir.Value] = []
        longest: ir.Value | None = None
        for feature in features:
            height = write("Squeeze", write("Shape", feature, start=2, end=3), [0])
            width = write("Squeeze", write("Shape", feature, start=3, end=4), [0])
            high = write("Max", height, width)
            long, short = (high, write("Min", height, width)) if square else (width, height)
            covers.append(write("Mul", self._windows(long, LONG), self._windows(short, SHORT)))
            longest = high if longest is None else write("Max", longest, high)
        narrow = self._windows(longest, LONG if square else SHORT)
        most = write("Max", narrow, covers[-1], bulky_windows(self.options))
        return write("Min", most, covers[0] if len(covers) == 1 else write("Max", *covers))

    def _windows(self, cells: ir.Value | None, length: int) -> ir.Value:
        return self.write("Div", self.write("Add", cells, length - 1), length)

    def _with_further_windows(
        self, table: ir.Value, regions: Regions, features: Sequence[ir.Value], crops: ir.Value
    ) -> ir.Value:
        """Write the sum of crops and what the further windows of elongated regions add."""
        write, count = self.write, self.shapes.count
        most: ir.Value | int | None = self.shapes.most_windows(self.options)
        if most is None:
            # At least one, though it may not exist: not every engine takes empty products.
            most = write("Max", self._most_windows(features), FIRST_WINDOWS + 1)
        rows = None if count is None else self.size.rows(count)
        if rows is None:
            total = write("Shape", crops, start=0, end=1)
            share = write("Max", write("Div", total, self.size.share), [self.size.elongated])
            number: ir.Value | list[int] = write("Min", share, total)
        else:
            number = [rows]
        windows = write("Squeeze", regions.count(write), [1])
        _, places = write.several(2, "TopK", windows, number, axis=0)
        further = self._stage(table, regions.take(write, places), rows, FIRST_WINDOWS, most)
        sums = write("Add", write("Gather", crops, places, axis=0), further)
        return write("ScatterND", crops, write("Unsqueeze", places, [1]), sums)

    def _stage(
        self,
        table: ir.Value,
        regions: Regions,
        count: int | None,
        begin: int,
        end: ir.Value | int,
    ) -> ir.Value:
        """Write what the windows ``begin..end`` of each region add to its crop, [R, C, bins]."""
        write = self.write
        slots = write("Cast", write("Range", begin, end, 1), to=_FLOAT)
        slots = write("Unsqueeze", slots, [0])
        windows = Windows.of(write, regions, slots, self.options.output_size)
        columns = [
            write("Unsqueeze", windows.long_cells, [2]),
            write("Unsqueeze", windows.short_cells, [3]),
            windows.long_weights,
            windows.short_weights,
        ]
        if regions.flipped is not None:
            columns.append(self._upright(regions.flipped))
        number = end - begin if isinstance(end, int) else FIRST_WINDOWS
        chunks = self._chunks(columns, count, number)
        parts = [self._product(table, *part) for part in zip(*chunks, strict=True)]
        return parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)

    def _chunks(
        self, columns: list[ir.Value], count: int | None, windows: int
    ) -> list[Sequence[ir.Value]]:
        """Split columns by regions, so that a product fits into memory."""
        write = self.write
        if count is not None:
            chunk = max(CHUNK * FIRST_WINDOWS // windows, 1)
            sizes = [min(chunk, count - start) for start in range(0, count, chunk)]
            if len(sizes) <= 1:
                return [[column] for column in columns]
            return [write.several(len(sizes), "Split", column, sizes, axis=0) for column in columns]
        total = write("Shape", columns[0], start=0, end=1)
        edges = [write("Div", write("Mul", total, i), CHUNKS) for i in range(CHUNKS + 1)]
        return [
            [write("Slice", column, *pair, [0]) for pair in pairwise(edges)] for column in columns
        ]

    def _upright(self, flipped: ir.Value) -> ir.Value:
        """Write which bin of a crop comes where, int64 [R, bins]; flipped crops are transposed."""
        bins = np.arange(math.prod(self.options.output_size)).reshape(self.options.output_size)
        turned = [int(place) for place in bins.T.flatten()]
        return self.write("Where", flipped, turned, [int(place) for place in bins.flatten()])

    def _product(
        self,
        table: ir.Value,
        long_cells: ir.Value,
        short_cells: ir.Value,
        long_weights: ir.Value,
        short_weights: ir.Value,
        order: ir.Value | None = None,
    ) -> ir.Value:
        """Write crops from windows, float32 [r, C, bins]."""
        write = self.write
        height, width = self.options.output_size
        channels = write("Shape", table, start=1, end=2)
        cells = write("Gather", table, write("Add", short_cells, long_cells), axis=0)
        rows = write("MatMul", long_weights, cells)  # [r, K, 16, width, C]
        count = write("Shape", short_weights, start=0, end=1)
        depth = write("Shape", short_weights, start=2, end=3)
        shape = write("Concat", count, depth, write("Mul", channels, width), axis=0)
        crops = write("MatMul", short_weights, write("Reshape", rows, shape))
        bins = height * width
        if order is None:
            shape = write("Concat", count, [bins], channels, axis=0)
            crops = write("Reshape", crops, shape)
        else:
            starts = write("Range", 0, write("Squeeze", count, [0]), 1)
            starts = write("Unsqueeze", write("Mul", starts, bins), [1])
            crops = write("Reshape", crops, write("Concat", [-1], channels, axis=0))
            crops = write("Gather", crops, write("Add", order, starts), axis=0)
        return write("Transpose", crops, perm=[0, 2, 1])
