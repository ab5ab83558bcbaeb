"""RoIAlign as matrices: which cells of the feature map a region touches, and with what weights.

The samples of RoIAlign form a grid, so the weight of a cell is a product of a weight along each
axis, and a crop is ``Wy @ cells @ Wx'``. The cells of a region are covered by windows of one fixed
size, their longer side along the longer side of the region.

Along one axis the samples of a bin lie at ``p_k = p_0 + k * step``. The weight of all cells after
``x`` together is ``L(x) = sum_k clamp(p_k - x, 0, 1)``, and that of cell ``x`` is
``L(x - 1) - L(x)``. ``L`` is a difference of ``sum_k max(p_k - t, 0)`` at two ``t``, which is an
arithmetic series: no loop over the samples, so their number may depend on the region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from deploykit.exporters.lowerings.graph_writer import GraphWriter
from deploykit.exporters.lowerings.roi_levels import write_levels, write_usable_rois
from deploykit.exporters.seam import RoIAlignAttributes

_FLOAT, _INT64 = ir.DataType.FLOAT.value, ir.DataType.INT64.value
# Cells of a window along the longer and the shorter side of the region. Two of them cover any
# region of up to 28x28 cells, which is what Mask R-CNN's rule for levels allows a square to have.
LONG, SHORT = 32, 16


@dataclass(frozen=True)
class Regions:
    """Where regions lie in their feature maps; all [R, 2], along the long and the short side.

    Args:
        start: Where the first bin starts, in cells.
        size: Of a bin, in cells.
        step: From sample to sample.
        samples: Per bin.
        limit: Cells of the map.
        first: The first cell touched.
        windows: How many windows cover the region.
        stride: From cell to cell in the table of all cells, int64.
        base: Of the map in that table, int64 [R, 1].
        flipped: The long side is the vertical one, bool [R, 1]; ``None``: it never is.
    """

    start: ir.Value
    size: ir.Value
    step: ir.Value
    samples: ir.Value
    limit: ir.Value
    first: ir.Value
    windows: ir.Value
    stride: ir.Value
    base: ir.Value
    flipped: ir.Value | None

    @classmethod
    def of(
        cls,
        write: GraphWriter,
        rois: ir.Value,
        features: list[ir.Value],
        options: RoIAlignAttributes,
    ) -> Regions:
        """Write them.

        Args:
            write: Takes the nodes.
            rois: float32 [R, 5].
            features: [B, C, H_i, W_i] per level.
            options: The attributes of the operator.
        """
        images, boxes = write_usable_rois(write, rois)
        levels = write_levels(write, boxes, len(features), options.finest_scale)
        scale = write("Unsqueeze", write("Gather", list(options.spatial_scales), levels), [1])
        cells = write("Mul", boxes, scale)
        if options.aligned:
            cells = write("Sub", cells, 0.5)
        start, end = write.several(2, "Split", cells, axis=1, num_outputs=2)
        length = write("Sub", end, start)
        if not options.aligned:
            length = write("Max", length, 1.0)
        height, width = options.output_size
        size = write("Div", length, [float(width), float(height)])
        if options.sampling_ratio > 0:
            samples = write("Expand", float(options.sampling_ratio), write("Shape", size))
        else:
            samples = write("Ceil", size)
        step = write("Div", size, write("Max", samples, 1.0))
        stride, base, limit = _table_places(write, images, levels, features)
        half = write("Mul", step, 0.5)
        first = _clip(write, write("Floor", write("Add", start, half)), limit)
        last = write("Floor", write("Sub", write("Add", start, length), half))
        last = _clip(write, write("Add", last, 1.0), limit)
        span = write("Add", write("Sub", last, first), 1.0)
        values, flipped = [start, size, step, samples, limit, first, span, stride], None
        if height == width:
            x, y = write.several(2, "Split", span, axis=1, num_outputs=2)
            flipped = write("Greater", y, x)
            values = [
                write("Where", flipped, write("Gather", value, [1, 0], axis=1), value)
                for value in values
            ]
        start, size, step, samples, limit, first, span, stride = values
        windows = write("Ceil", write("Div", span, [float(LONG), float(SHORT)]))
        return cls(start, size, step, samples, limit, first, windows, stride, base, flipped)

    def count(self, write: GraphWriter) -> ir.Value:
        """Write how many windows each region has, float32 [R, 1]."""
        along, across = write.several(2, "Split", self.windows, axis=1, num_outputs=2)
        return write("Mul", along, across)

    def take(self, write: GraphWriter, rows: ir.Value) -> Regions:
        """Write some of the regions, by their indices."""
        fields = (cast(ir.Value | None, getattr(self, name)) for name in self.__dataclass_fields__)
        return Regions(
            *(value if value is None else write("Gather", value, rows, axis=0) for value in fields)  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Windows:
    """Cells and weights of windows, one row per window.

    Args:
        cells: Places in the table of all cells, int64 [W, 16, 32].
        long_weights: float32 [W, 1, bins, 32].
        short_weights: float32 [W, bins, 16]; zeros in windows that the region does not have.
    """

    cells: ir.Value
    long_weights: ir.Value
    short_weights: ir.Value

    @classmethod
    def of(
        cls, write: GraphWriter, regions: Regions, slots: ir.Value, output_size: tuple[int, int]
    ) -> Windows:
        """Write them.

        Args:
            write: Takes the nodes.
            regions: The region of each window.
            slots: Which of the windows of its region each is, from 0, float32 [W, 1].
            output_size: (height, width) of the crops.
        """
        along, across = write.several(2, "Split", regions.windows, axis=1, num_outputs=2)
        short_index = write("Floor", write("Div", slots, along))
        long_index = write("Sub", slots, write("Mul", short_index, along))
        exists = write("Less", slots, write("Mul", along, across))
        bins = output_size[1], output_size[0]
        cells, weights = [], []
        for axis, (index, length) in enumerate(((long_index, LONG), (short_index, SHORT))):
            own = _Axis.of(write, regions, axis)
            first = write("Add", own.first, write("Mul", index, float(length)))
            cells.append(own.places(write, first, length))
            weights.append(own.weights(write, first, bins[axis], length))
        places = write("Add", cells[1], write("Unsqueeze", regions.base, [2]))
        mask = write("Unsqueeze", write("Cast", exists, to=_FLOAT), [2])
        return cls(
            write("Add", write("Transpose", places, perm=[0, 2, 1]), cells[0]),
            weights[0],
            write("Mul", write("Squeeze", weights[1], [1]), mask),
        )


@dataclass(frozen=True)
class _Axis:
    """The columns of ``Regions`` for one axis, each [R, 1]."""

    start: ir.Value
    size: ir.Value
    step: ir.Value
    samples: ir.Value
    limit: ir.Value
    first: ir.Value
    stride: ir.Value

    @classmethod
    def of(cls, write: GraphWriter, regions: Regions, axis: int) -> _Axis:
        return cls(
            *(
                write("Slice", getattr(regions, name), [axis], [axis + 1], [1])
                for name in cls.__dataclass_fields__
            )
        )

    def places(self, write: GraphWriter, first: ir.Value, length: int) -> ir.Value:
        """Write where the cells of windows are in the table, int64 [W, 1, length]."""
        cells = write("Add", write("Unsqueeze", first, [2]), [float(i) for i in range(length)])
        last = write("Unsqueeze", write("Sub", self.limit, 1.0), [2])
        cells = write("Cast", write("Min", cells, last), to=_INT64)
        return write("Mul", cells, write("Unsqueeze", self.stride, [2]))

    def weights(self, write: GraphWriter, first: ir.Value, bins: int, length: int) -> ir.Value:
        """Write the weights of the cells of windows, float32 [W, 1, bins, length]."""
        start, size, step, samples, limit = (
            write("Unsqueeze", value, [2, 3])
            for value in (self.start, self.size, self.step, self.samples, self.limit)
        )
        # A bin without a size has all its samples in one place: any step but 0 will do.
        divisor = write("Max", step, 1e-20)
        places = write("Reshape", [float(i) for i in range(bins)], [1, 1, bins, 1])
        origin = write("Add", start, write("Mul", places, size))
        origin = write("Add", origin, write("Mul", step, 0.5))  # [W, 1, bins, 1]
        # Samples more than one cell outside of the map count as zeros: only begin..end is summed.
        begin = write("Ceil", write("Div", write("Sub", -1.0, origin), divisor))
        begin = write("Min", write("Max", begin, 0.0), samples)
        end = write("Floor", write("Div", write("Sub", limit, origin), divisor))
        end = write("Min", write("Max", write("Add", end, 1.0), begin), samples)
        # Coordinates from the first sample on keep their low bits far from the map's corner.
        before = write("Unsqueeze", write("Sub", first, 1.0), [2, 3])  # [W, 1, 1, 1]
        cells = [float(i) for i in range(length + 2)]
        t = write("Add", write("Sub", before, origin), cells)  # [W, 1, bins, length + 2]
        after = write("Floor", write("Div", t, divisor))
        after = write("Min", write("Max", write("Add", after, 1.0), begin), end)
        middle = write("Mul", write("Sub", write("Add", after, end), 1.0), 0.5)
        ramps = write("Mul", write("Sub", end, after), write("Sub", write("Mul", step, middle), t))
        beyond = write(
            "Sub",
            write("Slice", ramps, [0], [-1], [3]),
            write("Slice", ramps, [1], [length + 2], [3]),
        )
        # Samples at the rim of the map lie on its outermost cells.
        x = write("Add", before, cells[:-1])
        beyond = write("Where", write("Less", x, 0.0), write("Sub", end, begin), beyond)
        inside = write("Less", x, write("Sub", limit, 1.0))
        beyond = write("Where", inside, beyond, 0.0)
        weights = write(
            "Sub",
            write("Slice", beyond, [0], [-1], [3]),
            write("Slice", beyond, [1], [length + 1], [3]),
        )
        return write("Div", weights, write("Max", samples, 1.0))


def _clip(write: GraphWriter, cell: ir.Value, limit: ir.Value) -> ir.Value:
    return write("Max", write("Min", cell, write("Sub", limit, 1.0)), 0.0)


def _table_places(
    write: GraphWriter, images: ir.Value, levels: ir.Value, features: list[ir.Value]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return the strides [R, 2], the bases [R, 1] and the sizes [R, 2] of the regions' maps."""
    sides, widths, areas, bases = [], [], [], []
    base = None
    for feature in features:
        size = write("Shape", feature, start=2)
        width = write("Gather", size, [1])
        area = write("Mul", width, write("Gather", size, [0]))
        sides.append(write("Unsqueeze", write("Gather", size, [1, 0]), [0]))
        widths.append(width)
        areas.append(area)
        bases.append(write("Mul", area, 0) if base is None else base)
        total = write("Mul", area, write("Shape", feature, start=0, end=1))
        base = total if base is None else write("Add", base, total)
    limit = write("Gather", write("Concat", *sides, axis=0), levels, axis=0)
    width = write("Unsqueeze", write("Gather", write("Concat", *widths, axis=0), levels), [1])
    stride = write("Concat", write("Add", write("Mul", width, 0), 1), width, axis=1)
    area = write("Gather", write("Concat", *areas, axis=0), levels)
    base = write("Gather", write("Concat", *bases, axis=0), levels)
    base = write("Unsqueeze", write("Add", base, write("Mul", images, area)), [1])
    return stride, base, write("Cast", limit, to=_FLOAT)
