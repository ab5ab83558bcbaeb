"""``deploykit::MultilevelRoIAlign`` as gathers and matrix products, of the ``primitive`` lowering.

All levels become one table of cells, from which windows of each region are gathered and reduced by
the weights of both axes (``roi_windows``). A fixed number of windows is computed ahead, more of
them for the regions that need more (``roi_tiers``). A loop computes what is left, in no steps for
most inputs, so the result is exact for every input and no region has to share with another.

Source: He et al., "Mask R-CNN", arXiv:1703.06870, for RoIAlign.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256

import numpy as np
import onnx_ir as ir

from deploykit.exporters import seam
from deploykit.exporters.lowerings.graph_writer import GraphWriter
from deploykit.exporters.lowerings.rewriting import Limits, add_written_function
from deploykit.exporters.lowerings.roi_levels import NOWHERE
from deploykit.exporters.lowerings.roi_tiers import CHUNK, UNIT, Tiers
from deploykit.exporters.lowerings.roi_windows import LONG, SHORT, Regions, Windows
from deploykit.exporters.seam import RoIAlignAttributes

_FLOAT = ir.DataType.FLOAT.value
_FLOATS, _INT64 = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)
_BOOL = ir.TensorType(ir.DataType.BOOL)
# Windows in one step of the loop: one of this many regions, within these limits.
STEP, LARGEST_STEP = 16, 256


def rewrite(model: ir.Model, node: ir.Node) -> Limits:
    """Replace a ``deploykit::MultilevelRoIAlign`` node, in place.

    Args:
        model: Where the node is.
        node: The node.

    Returns:
        No limits.
    """
    del model
    rois, *features = (value for value in node.inputs if value is not None)
    write = GraphWriter()
    body = Body(write, RoIAlignAttributes.of(node), Shapes.of(node))
    result = body.crops(rois, features)
    write.take_place_of(node, result)
    return {}


def add_body(model: ir.Model, node: ir.Node) -> Limits:
    """Give a ``deploykit::MultilevelRoIAlign`` node, which stays, a body and its output a shape.

    Nodes with other attributes or shapes have bodies of their own: overloads of one function.

    Args:
        model: Where the node is.
        node: The node.

    Returns:
        No limits.
    """
    rois, *features = (value for value in node.inputs if value is not None)
    body = Body(GraphWriter(), RoIAlignAttributes.of(node), Shapes.of(node))
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
    return {}


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

    def most_windows(self, options: RoIAlignAttributes) -> int | None:
        """Return how many windows a region can have, or ``None`` if the maps are not known."""
        if self.maps is None:
            return None
        square = options.output_size[0] == options.output_size[1]
        covers = []
        for height, width in self.maps:
            long, short = (width, height) if not square else sorted((height, width), reverse=True)
            covers.append(math.ceil(long / LONG) * math.ceil(short / SHORT))
        return max(covers)


@dataclass(frozen=True)
class Body:
    """Writes the operator.

    Args:
        write: Takes the nodes.
        options: The attributes of the operator.
        shapes: What is known of the inputs.
    """

    write: GraphWriter
    options: RoIAlignAttributes
    shapes: Shapes

    def crops(self, rois: ir.Value, features: Sequence[ir.Value]) -> ir.Value:
        """Write the crops [R, C, height, width] of ``rois`` [R, 5] from the features."""
        write, options = self.write, self.options
        count = write("Shape", rois, start=0, end=1)
        known = self.shapes.count or None  # an engine may refuse products of no regions
        regions = Regions.of(write, self._filled(rois, known), list(features), options)
        table = self._table(features)
        tiers = Tiers.of(known, self.shapes.most_windows(options))
        order, place = tiers.order(write, regions.count(write))
        numbers, slots = tiers.windows(write, order)
        windows = Windows.of(write, regions.take(write, numbers), slots, options.output_size)
        columns = [windows.cells, windows.long_weights, windows.short_weights]
        product = Product(table, options.output_size)
        parts: list[ir.Value] = []
        for tier, own in zip(tiers.items, tiers.stretches(write, order, columns), strict=True):
            each, exact = tier.windows, known is not None
            pieces = [
                tier.split(write, own[0], exact, each),
                tier.split(write, own[1], exact, each),
                tier.split(write, product.in_a_row(write, each, own[2]), exact),
            ]
            shape = product.shape_of_rows(write, each)
            parts += [product.crops(write, shape, *piece) for piece in zip(*pieces, strict=True)]
        crops = parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)
        if not tiers.complete:
            rest = Rest.of(write, regions, order, tiers)
            crops = rest.added(write, crops, product)
        crops = self._in_order(crops, place, regions.flipped, count, product.channels(write))
        return write("Cast", crops, to=ir.DataType.FLOAT16.value) if self.shapes.half else crops

    def _filled(self, rois: ir.Value, known: int | None) -> ir.Value:
        """Write at least one more region, up to a whole number of units, if it is not known."""
        if known is not None:
            return rois
        write = self.write
        count = write("Shape", rois, start=0, end=1)
        shape = write("Sub", UNIT, write("Mod", count, UNIT))
        shape = write("Concat", shape, [5], axis=0)
        return write("Concat", rois, write("Expand", [0.0, *[NOWHERE] * 4], shape), axis=0)

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

    def _in_order(
        self,
        crops: ir.Value,
        place: ir.Value,
        flipped: ir.Value | None,
        count: ir.Value,
        channels: ir.Value,
    ) -> ir.Value:
        """Write crops in the order of the regions and upright, [R, C, height, width]."""
        write = self.write
        height, width = self.options.output_size
        bins = np.arange(height * width).reshape(height, width)
        upright: ir.Value | list[int] = bins.flatten().tolist()
        if flipped is not None:
            upright = write("Where", flipped, bins.T.flatten().tolist(), upright)
        starts = write("Unsqueeze", write("Mul", place, height * width), [1])
        rows = write("Slice", write("Add", starts, upright), [0], count, [0])
        crops = write("Reshape", crops, write("Concat", [-1], channels, axis=0))
        crops = write("Transpose", write("Gather", crops, rows, axis=0), perm=[0, 2, 1])
        shape = write("Concat", count, channels, [height, width], axis=0)
        return write("Reshape", crops, shape)


@dataclass(frozen=True)
class Product:
    """Writes crops from windows.

    Args:
        table: All cells, float32 [cells, C].
        output_size: (height, width) of a crop.
    """

    table: ir.Value
    output_size: tuple[int, int]

    def channels(self, write: GraphWriter) -> ir.Value:
        """Write C, int64 [1]."""
        return write("Shape", self.table, start=1, end=2)

    def shape_of_rows(self, write: GraphWriter, each: int) -> ir.Value:
        """Write the shape of a product along the long side, int64 [3]."""
        depth = write("Mul", self.channels(write), self.output_size[1])
        return write("Concat", [-1, each * SHORT], depth, axis=0)

    def in_a_row(self, write: GraphWriter, each: int, short_weights: ir.Value) -> ir.Value:
        """Write the weights of all windows of a region side by side, [r, height, each * 16]."""
        if each == 1:
            return short_weights
        height = self.output_size[0]
        apart = write("Reshape", short_weights, [-1, each, height, SHORT])
        apart = write("Transpose", apart, perm=[0, 2, 1, 3])
        return write("Reshape", apart, [-1, height, each * SHORT])

    def crops(
        self,
        write: GraphWriter,
        shape: ir.Value,
        cells: ir.Value,
        long_weights: ir.Value,
        short_weights: ir.Value,
    ) -> ir.Value:
        """Write the sums over windows in succession, float32 [r, height, width * C].

        Args:
            write: Takes the nodes.
            shape: ``shape_of_rows`` for the number of windows of each region.
            cells: Of the windows, as in ``Windows``.
            long_weights: Likewise.
            short_weights: As ``in_a_row`` returns them.
        """
        rows = write("MatMul", long_weights, write("Gather", self.table, cells, axis=0))
        rows = write("Reshape", rows, shape)
        return write("MatMul", short_weights, rows)


@dataclass(frozen=True)
class Rest:
    """The windows that were not computed ahead, as a list; by place of the region in the order.

    Args:
        regions: All regions, in their own order.
        order: The regions by place, int64 [R].
        capacities: How many windows were computed, int64 [R].
        ends: Where the windows of a place end in the list, int64 [R].
        begins: Where they begin.
        step: How many windows are computed at a time, int64 [].
    """

    regions: Regions
    order: ir.Value
    capacities: ir.Value
    ends: ir.Value
    begins: ir.Value
    step: ir.Value

    @classmethod
    def of(cls, write: GraphWriter, regions: Regions, order: ir.Value, tiers: Tiers) -> Rest:
        """Write it."""
        capacities = tiers.capacities(write, order)
        needed = write("Gather", write("Squeeze", regions.count(write), [1]), order)
        left = write("Sub", write("Cast", needed, to=ir.DataType.INT64.value), capacities)
        left = write("Max", left, 0)
        ends = write("CumSum", left, 0)
        share = write("Div", write("Squeeze", write("Shape", order), [0]), STEP)
        step = write("Max", write("Min", share, LARGEST_STEP), CHUNK)
        return cls(regions, order, capacities, ends, write("Sub", ends, left), step)

    def added(self, write: GraphWriter, crops: ir.Value, product: Product) -> ir.Value:
        """Write the sum of crops, by place, and of what these windows add."""
        total = write("ReduceMax", self.ends, keepdims=0)
        steps = write("Div", write("Add", total, write("Sub", self.step, 1)), self.step)
        number = ir.Value(name="number", type=_INT64, shape=ir.Shape([]))
        go_on = ir.Value(name="go_on", type=_BOOL, shape=ir.Shape([]))
        before = ir.Value(name="before", type=_FLOATS)
        inner = GraphWriter()
        more = inner("Identity", go_on)
        after = self._step(inner, product, number, before)
        for place, value in enumerate(v for node in inner.nodes for v in node.outputs):
            value.name = f"rest_of_roi_align_{place}"
        body = ir.Graph([number, go_on, before], [more, after], nodes=inner.nodes, name="rest")
        more.type, more.shape = _BOOL, ir.Shape([])
        after.type = _FLOATS
        always = write("Cast", 1, to=ir.DataType.BOOL.value)
        return write("Loop", steps, always, crops, body=body)

    def _step(
        self, write: GraphWriter, product: Product, number: ir.Value, crops: ir.Value
    ) -> ir.Value:
        """Write the sum of crops and of the windows of one step."""
        index = write("Add", write("Mul", number, self.step), write("Range", 0, self.step, 1))
        index = write("Unsqueeze", index, [1])  # [W, 1]
        # Behind the end of the list it is the last place, which has no such windows.
        ended = write("Cast", write("LessOrEqual", self.ends, index), to=ir.DataType.INT64.value)
        last = write("Sub", write("Shape", self.ends), 1)
        place = write("Min", write("ReduceSum", ended, [1], keepdims=0), last)  # [W]
        slots = write("Unsqueeze", write("Gather", self.capacities, place), [1])
        begins = write("Unsqueeze", write("Gather", self.begins, place), [1])
        slots = write("Add", slots, write("Sub", index, begins))
        regions = self.regions.take(write, write("Gather", self.order, place))
        slots = write("Cast", slots, to=_FLOAT)
        windows = Windows.of(write, regions, slots, product.output_size)
        shape = product.shape_of_rows(write, 1)
        columns = windows.cells, windows.long_weights, windows.short_weights
        parts = product.crops(write, shape, *columns)
        # Windows of one region: each gets the sum of all, so it does not matter which is written.
        column = write("Unsqueeze", place, [1])
        same = write("Equal", column, write("Unsqueeze", place, [0]))
        flat = write("Reshape", parts, [0, -1])
        sums = write("MatMul", write("Cast", same, to=_FLOAT), flat)
        sums = write("Reshape", sums, write("Shape", parts))
        return write("ScatterND", crops, column, write("Add", write("Gather", crops, place), sums))
