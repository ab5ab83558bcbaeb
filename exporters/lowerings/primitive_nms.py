"""``deploykit::BatchedNMS`` in plain ONNX (opset 18), of the ``primitive`` lowering.

No NonMaxSuppression, no NonZero, no control flow, and shapes that do not depend on values: so any
engine builds it, and a CUDA graph can hold it.

1. The best ``candidates`` are sorted by score, ties by lower index.
2. They are cut into blocks. Each block first loses what the survivors of earlier blocks suppress,
   then settles within itself: from ``keep = alive``, ``steps`` times
   ``keep = alive and not (keep @ overlaps)``.
3. The first ``max_out`` survivors are the result.

After ``t`` steps the decision about a box of *depth* up to ``t`` is right; the depth is 0 where no
better box of the block and class overlaps, else one more than that of the deepest of these (by
induction: all of them were right one step before). So the first wrong decision needs ``steps + 2``
boxes of one class in one block, each overlapping the next, and the ``steps + 1`` before it are
right: of all candidates at most ``candidates - steps - 1`` are decided wrongly. With as many steps
as a block has boxes, less one, none is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.exporters import seam
from deploykit.exporters.lowerings.graph_writer import GraphWriter
from deploykit.exporters.lowerings.rewriting import DOMAIN, Limits, add_written_function

# TensorRT's TopK takes no more.
LARGEST_TOPK = 3840

_FLOAT, _INT32, _INT64 = (
    kind.value for kind in (ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64)
)
_ATTRIBUTES = {"iou_threshold": ir.AttributeType.FLOAT, "max_out": ir.AttributeType.INT}


@dataclass(frozen=True)
class NmsSize:
    """How much work suppression is.

    Args:
        candidates: The best so many candidates are examined.
        block: Number of candidates that are settled together.
        steps: Fixed-point steps per block.
    """

    candidates: int = 2048
    block: int = 256
    steps: int = 24

    @classmethod
    def of(cls, max_out: int) -> NmsSize:
        """Return the size for a number of results per image.

        Raises:
            ExportError: These are more results than engines can sort.
        """
        if max_out > LARGEST_TOPK:
            raise ExportError(
                f"max_per_img is {max_out}, but NMS in plain ONNX returns at most {LARGEST_TOPK} "
                "boxes; pass a smaller --max-per-img"
            )
        return cls(min(max(cls.candidates, 2 * max_out), LARGEST_TOPK))

    @property
    def limits(self) -> Limits:
        """What the artefact says about suppression."""
        exact = self.steps >= min(self.block, self.candidates) - 1
        return {
            "nms_candidates": self.candidates,
            "nms_steps": self.steps,
            "nms_unresolved_at_most": 0 if exact else self.candidates - self.steps - 1,
        }


def rewrite(model: ir.Model, node: ir.Node, size: NmsSize | None = None) -> Limits:
    """Turn a ``deploykit::BatchedNMS`` node into a call of a function, in place.

    Args:
        model: Where the node is.
        node: The node.
        size: How much work suppression may be.

    Returns:
        What the result is limited by.

    Raises:
        ExportError: The node asks for more results than engines can sort.
    """
    max_out = node.attributes["max_out"].as_int()
    scores = node.inputs[1]
    count = scores.shape[1] if scores is not None and scores.shape is not None else None
    count = count if isinstance(count, int) else None
    size = size or NmsSize.of(max_out)
    size = replace(size, candidates=min(size.candidates, count or size.candidates))
    name = f"nms_{max_out}_of_{count or 'n'}"
    _add_function(model, DOMAIN, name, size, count, max_out)
    node.domain, node.op_type = DOMAIN, name
    return size.limits


def add_body(model: ir.Model, node: ir.Node) -> Limits:
    """Give a ``deploykit::BatchedNMS`` node, which stays, a body and the shape of its output.

    Args:
        model: Where the node is.
        node: The node.

    Returns:
        What the result of the body is limited by.

    Raises:
        ExportError: The node asks for more results than engines can sort.
    """
    max_out = node.attributes["max_out"].as_int()
    # All nodes share one body, whose limits are those of the one with the most results.
    others = [other for other in model.graph.all_nodes() if other.op_type == seam.BATCHED_NMS]
    most = max(other.attributes["max_out"].as_int() for other in others)
    size = NmsSize.of(most)
    _add_function(model, seam.DOMAIN, seam.BATCHED_NMS, size, None, None)
    scores, indices = node.inputs[1], node.outputs[0]
    batch = scores.shape[0] if scores is not None and scores.shape is not None else None
    indices.dtype = ir.DataType.INT64
    indices.shape = ir.Shape([batch, max_out])
    return size.limits


def _add_function(
    model: ir.Model, domain: str, name: str, size: NmsSize, count: int | None, max_out: int | None
) -> None:
    """Add a function to a model that does the same as ``deploykit::BatchedNMS``.

    Args:
        model: The model.
        domain: Of the function.
        name: Of the function.
        size: How much work it may be.
        count: Number of candidates, if it is fixed.
        max_out: Number of results, if it is the same for all calls.
    """
    write = GraphWriter()
    inputs = [ir.Value(name=name) for name in ("boxes", "scores", "labels")]
    boxes, scores, labels = inputs
    # Whatever precision the rest of the graph has, overlaps are decided in float32.
    top, order = _best(write, write("Cast", scores, to=_FLOAT), size.candidates, count)
    boxes = write("GatherND", boxes, write("Unsqueeze", order, [2]), batch_dims=1)
    boxes = _without_empty(write, write("Cast", boxes, to=_FLOAT))
    labels = write("Cast", write("GatherElements", labels, order, axis=1), to=_INT32)
    kept = _Suppression(write, boxes, labels, size, max_out).survivors(top)
    output = _first(write, kept, order, size.candidates)
    add_written_function(model, domain, name, write, inputs, [output], _ATTRIBUTES)


def _best(
    write: GraphWriter, scores: ir.Value, examined: int, count: int | None
) -> tuple[ir.Value, ir.Value]:
    """Return the best scores [B, K] and their indices, ties by lower index."""
    usable = write("Where", write("Greater", scores, 0.0), scores, 0.0)  # also replaces NaN
    total = write("Shape", scores, start=1)
    if count is None:
        usable = write("Pad", usable, [0, 0, 0, examined])
    top, order = write.several(2, "TopK", usable, [examined], axis=1)
    if examined > 1:
        # Not every engine sorts ties by index, so this does: by (rank of the score, index).
        better = write("Slice", top, [0], [-1], [1])
        worse = write("Slice", top, [1], [examined], [1])
        falls = write("Cast", write("Less", worse, better), to=_INT64)
        ranks = write("Pad", write("CumSum", falls, 1), [0, 1, 0, 0])
        keys = write("Add", write("Mul", ranks, write("Add", total, examined)), order)
        _, places = write.several(2, "TopK", keys, [examined], axis=1, largest=0)
        order = write("GatherElements", order, places, axis=1)
    if count is None:
        order = write("Min", order, write("Sub", total, 1))
    return top, order


def _without_empty(write: GraphWriter, boxes: ir.Value) -> ir.Value:
    """Return the boxes [B, K, 4], zeros in place of those with a side that is not positive.

    By definition these overlap nothing. Without them one side of an intersection may be negative.
    """
    high = write("Slice", boxes, [2], [4], [2])
    sides = write("Sub", high, write("Slice", boxes, [0], [2], [2]))
    least = write("ReduceMin", sides, [2], keepdims=1)
    return write("Where", write("Greater", least, 0.0), boxes, 0.0)


@dataclass(frozen=True)
class _Suppression:
    """Suppression among sorted candidates.

    Args:
        write: Takes the nodes.
        boxes: float32 [B, K, 4].
        labels: int32 [B, K].
        size: K, the blocks and the steps.
        max_out: Number of survivors that are of interest, if known.
    """

    write: GraphWriter
    boxes: ir.Value
    labels: ir.Value
    size: NmsSize
    max_out: int | None

    def survivors(self, scores: ir.Value) -> ir.Value:
        """Return 1.0 for each survivor, float32 [B, K]."""
        write, size = self.write, self.size
        valid = write("Cast", write("Greater", scores, 0.0), to=_FLOAT)
        valid = write("Unsqueeze", valid, [1])
        threshold = write(
            "Constant",
            value_float=ir.RefAttr("value_float", "iou_threshold", ir.AttributeType.FLOAT),
        )
        kept: ir.Value | None = None
        for start in range(0, size.candidates, size.block):
            stop = min(start + size.block, size.candidates)
            alive = write("Slice", valid, [start], [stop], [2])
            boxes, labels = self._part(start, stop)
            rows = boxes, labels
            if kept is not None:
                present, earlier_boxes, earlier_labels = self._earlier(kept, start)
                rows = (
                    write("Concat", earlier_boxes, boxes, axis=1),
                    write("Concat", earlier_labels, labels, axis=1),
                )
            overlaps = self._overlaps(rows, (boxes, labels), threshold)
            if kept is not None:
                sizes = [min(start, self.max_out or start), stop - start]
                earlier, overlaps = write.several(2, "Split", overlaps, sizes, axis=1)
                hits = write("MatMul", present, write("Cast", earlier, to=_FLOAT))
                alive = write("Relu", write("Sub", alive, hits))
            keep = self._settle(alive, overlaps, stop - start)
            kept = keep if kept is None else write("Concat", kept, keep, axis=2)
        return write("Squeeze", kept, [1])

    def _part(self, start: int, stop: int) -> tuple[ir.Value, ir.Value]:
        """Return boxes and labels of a range of candidates."""
        return (
            self.write("Slice", self.boxes, [start], [stop], [1]),
            self.write("Slice", self.labels, [start], [stop], [1]),
        )

    def _earlier(self, kept: ir.Value, start: int) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return which earlier boxes suppress, float32 [B, 1, k], their boxes and labels.

        Survivors after the first ``max_out`` are not among them: whatever they suppress comes later
        still.
        """
        write = self.write
        if self.max_out is None or self.max_out >= start:
            return kept, *self._part(0, start)
        ranks = np.arange(start, 0, -1, dtype=np.float32)
        ranked = write("Mul", write("Squeeze", kept, [1]), [float(rank) for rank in ranks])
        found, places = write.several(2, "TopK", ranked, [self.max_out], axis=1)
        boxes = write("GatherND", self.boxes, write("Unsqueeze", places, [2]), batch_dims=1)
        labels = write("GatherElements", self.labels, places, axis=1)
        present = write("Cast", write("Greater", found, 0.0), to=_FLOAT)
        return write("Unsqueeze", present, [1]), boxes, labels

    def _settle(self, alive: ir.Value, overlaps: ir.Value, block: int) -> ir.Value:
        """Return 1.0 for each survivor of a block, float32 [B, 1, S]."""
        write = self.write
        better = write("Constant", value=ir.tensor(np.triu(np.ones((block, block), bool), 1)))
        overlaps = write("Cast", write("And", overlaps, better), to=_FLOAT)
        keep = alive
        for _ in range(min(self.size.steps, block - 1)):
            keep = write("Relu", write("Sub", alive, write("MatMul", keep, overlaps)))
        return keep

    def _overlaps(
        self,
        rows: tuple[ir.Value, ir.Value],
        columns: tuple[ir.Value, ir.Value],
        threshold: ir.Value,
    ) -> ir.Value:
        """Return which rows overlap which columns of their class, bool [B, rows, columns]."""
        write = self.write
        ax1, ay1, ax2, ay2, area_a, label_a = self._sides(*rows, axis=2)
        bx1, by1, bx2, by2, area_b, label_b = self._sides(*columns, axis=1)
        width = write("Relu", write("Sub", write("Min", ax2, bx2), write("Max", ax1, bx1)))
        height = write("Sub", write("Min", ay2, by2), write("Max", ay1, by1))
        # Where the height is negative, the ratio is not positive either.
        intersection = write("Mul", width, height)
        union = write("Sub", write("Add", area_a, area_b), intersection)
        # The reference divides, and so does this: a product would turn decisions at the threshold.
        overlap = write("Greater", write("Div", intersection, union), threshold)
        return write("And", overlap, write("Equal", label_a, label_b))

    def _sides(self, boxes: ir.Value, labels: ir.Value, axis: int) -> list[ir.Value]:
        """Return x1, y1, x2, y2, areas and labels, each [B, k, 1], or [B, 1, k] for ``axis`` 1."""
        write = self.write
        if axis == 1:
            boxes = write("Transpose", boxes, perm=[0, 2, 1])
        x1, y1, x2, y2 = write.several(4, "Split", boxes, axis=axis, num_outputs=4)
        area = write("Mul", write("Sub", x2, x1), write("Sub", y2, y1))
        return [x1, y1, x2, y2, area, write("Unsqueeze", labels, [axis])]


def _first(write: GraphWriter, kept: ir.Value, order: ir.Value, examined: int) -> ir.Value:
    """Return the indices of the first ``max_out`` survivors, -1 in empty places."""
    rows = write("Constant", value_int=ir.RefAttr("value_int", "max_out", ir.AttributeType.INT))
    rows = write("Reshape", rows, [1])
    ranks = write("Mul", kept, [float(rank) for rank in range(examined, 0, -1)])
    ranks = write("Pad", ranks, write("Concat", [0, 0, 0], rows, axis=0))  # max_out or more
    found, places = write.several(2, "TopK", ranks, rows, axis=1)
    indices = write("GatherElements", order, write("Min", places, examined - 1), axis=1)
    return write("Where", write("Greater", found, 0.0), indices, -1)
