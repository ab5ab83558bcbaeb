"""How many windows of which regions are computed ahead, without looking at their number.

Regions are sorted by the number of windows they need, and the sorted list is cut into tiers of a
fixed length: of the regions of a tier the first windows are computed, as many as the tier says.
What is left after that is a list whose length depends on the regions; it is usually empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploykit.exporters.lowerings.graph_writer import GraphWriter, Operand

_FLOAT, _INT64 = ir.DataType.FLOAT.value, ir.DataType.INT64.value
# Regions are filled up to a multiple of this if their number is not known.
UNIT = 128
# (windows, regions of every UNIT) from the front of the list. Of the 1000 proposals of a photo with
# Mask R-CNN's rule for levels, 37 % needed more than one window and 2 % more than two.
TIERS = ((4, 8), (2, 64), (1, 56))
# Windows in one product: 8 MiB of cells with 256 channels in float32. With more than that a CPU
# takes up to 1.8 times as long, since they exceed what its page table cache holds.
CHUNK = 16


@dataclass(frozen=True)
class Tier:
    """A stretch of the sorted regions.

    Args:
        windows: How many windows of each are computed.
        begin: Where it begins, in regions, or in units of an unknown number of them.
        rows: Its length.
    """

    windows: int
    begin: int
    rows: int

    def split(
        self, write: GraphWriter, column: ir.Value, known: bool, each: int = 1
    ) -> Sequence[ir.Value]:
        """Split a column so that the product of a part fits into a cache.

        Args:
            write: Takes the nodes.
            column: Of this tier, with ``each`` rows per region.
            known: The number of regions is known.
            each: Rows per region.
        """
        if known:
            size = max(CHUNK // self.windows, 1)
            sizes = [min(size, self.rows - start) * each for start in range(0, self.rows, size)]
            if len(sizes) == 1:
                return [column]
            return write.several(len(sizes), "Split", column, sizes, axis=0)
        # With 1024 regions as many windows as above, or twice as many.
        count = self.rows // max(CHUNK * UNIT // 1024 // self.windows, 1)
        return write.several(count, "Split", column, axis=0, num_outputs=count)


@dataclass(frozen=True)
class Tiers:
    """All tiers.

    Args:
        items: The tiers, most windows first.
        count: Number of regions, or ``None``.
        most: How many windows a region can have, or ``None``.
    """

    items: tuple[Tier, ...]
    count: int | None
    most: int | None

    @classmethod
    def of(cls, count: int | None, most: int | None) -> Tiers:
        """Cut a number of regions, or ``UNIT`` of an unknown number, into tiers."""
        rows: dict[int, int] = {}
        end = begin = 0
        for windows, share in TIERS:
            end += share
            edge = end if count is None else -(-count * end // UNIT)
            windows = windows if most is None else min(windows, most)
            rows[windows] = rows.get(windows, 0) + edge - begin
            begin = edge
        items, begin = [], 0
        for windows, length in rows.items():
            if length:
                items.append(Tier(windows, begin, length))
            begin += length
        return cls(tuple(items), count, most)

    @property
    def complete(self) -> bool:
        """Whether no region can have windows beyond those of its tier."""
        return self.most is not None and self.items[-1].windows >= self.most

    def order(self, write: GraphWriter, windows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Write the order of regions by tier, a stable counting sort.

        Sorting by counting has no limit; TensorRT's TopK has one.

        Args:
            write: Takes the nodes.
            windows: How many each region needs, float32 [R, 1].

        Returns:
            The regions in their order, and the place of each region in it; both int64 [R].
        """
        sizes = [float(tier.windows) for tier in self.items]
        # The first kind needs more than the second tier has, the next more than the third, ...
        above = write("Cast", write("Greater", windows, [*sizes[1:], -1.0]), to=_INT64)
        kinds = write("ReduceSum", above, [1], keepdims=1)
        own = write("Equal", kinds, list(range(len(sizes), 0, -1)))
        own = write("Transpose", write("Cast", own, to=_INT64), perm=[1, 0])
        ranks = write("CumSum", write("Reshape", own, [-1]), 0)
        ranks = write("Mul", own, write("Reshape", ranks, write("Shape", own)))
        place = write("Sub", write("ReduceSum", ranks, [0], keepdims=0), 1)
        numbers = write("Range", 0, write("Squeeze", write("Shape", place), [0]), 1)
        return write("ScatterElements", numbers, place, numbers, axis=0), place

    def windows(self, write: GraphWriter, order: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Write the region, int64 [W], and the slot, float32 [W, 1], of all windows of all tiers.

        Args:
            write: Takes the nodes.
            order: The regions in their order, int64 [R].
        """
        regions, slots = [], []
        for tier in self.items:
            own = write("Slice", order, *self._edges(write, order, tier.begin, tier.rows), [0])
            shape = write("Concat", write("Shape", own), [tier.windows], axis=0)
            own = write("Expand", write("Unsqueeze", own, [1]), shape)
            regions.append(write("Reshape", own, [-1]))
            slot = write("Expand", [float(slot) for slot in range(tier.windows)], shape)
            slots.append(write("Reshape", slot, [-1, 1]))
        if len(regions) == 1:
            return regions[0], slots[0]
        return write("Concat", *regions, axis=0), write("Concat", *slots, axis=0)

    def capacities(self, write: GraphWriter, order: ir.Value) -> ir.Value:
        """Write how many windows of each region in the order were computed, int64 [R]."""
        parts = []
        for tier in self.items:
            _, length = self._edges(write, order, 0, tier.rows)
            parts.append(write("Expand", tier.windows, length))
        return parts[0] if len(parts) == 1 else write("Concat", *parts, axis=0)

    def stretches(
        self, write: GraphWriter, order: ir.Value, columns: Sequence[ir.Value]
    ) -> list[list[ir.Value]]:
        """Write the part of each tier of columns with one row per window.

        Args:
            write: Takes the nodes.
            order: The regions in their order, int64 [R].
            columns: [W, ...].
        """
        begin, stretches = 0, []
        for tier in self.items:
            length = tier.rows * tier.windows
            edges = self._edges(write, order, begin, length)
            begin += length
            stretches.append([write("Slice", column, *edges, [0]) for column in columns])
        return stretches

    def _edges(
        self, write: GraphWriter, order: ir.Value, begin: int, length: int
    ) -> tuple[Operand, Operand]:
        """Return where a stretch begins and ends, [1] each; write them if they depend on R."""
        if self.count is not None:
            return [begin], [begin + length]
        unit = write("Div", write("Shape", order), UNIT)
        return write("Mul", unit, begin), write("Mul", unit, begin + length)
