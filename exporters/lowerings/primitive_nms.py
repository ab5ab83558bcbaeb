"""``deploykit::BatchedNMS`` in plain ONNX (opset 18) of the ``primitive`` lowering.

No NonMaxSuppression, no NonZero, no control flow, and the same shapes whatever the scores are, so
that any engine builds it and a CUDA graph can hold it.

1. The best ``candidates`` are sorted by score, ties by lower index.
2. They are cut into blocks. Each block first loses what the survivors of earlier blocks suppress,
   then settles within itself: ``steps`` times ``keep = alive and not (keep @ overlaps)``, from
   ``keep = alive``.
3. The first ``max_out`` survivors are the result.

After ``t`` steps the decision about a box is right if its *depth* is at most ``t``: 0 for a box that
no better box of the block overlaps, else one more than the deepest such box (by induction: the
boxes that overlap it were settled a step before). So a wrong decision needs a chain of ``steps + 2``
boxes of one class in one block, each overlapping the next, of which ``steps + 1`` are decided right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.exporters import seam
from deploykit.exporters.lowerings.function_builder import FunctionBuilder
from deploykit.exporters.lowerings.rewriting import DOMAIN, Limits

# TensorRT's TopK takes no more.
LARGEST_TOPK = 3840

_FLOAT, _INT32 = ir.DataType.FLOAT.value, ir.DataType.INT32.value
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
    steps: int = 16

    def limits(self, candidates: int | None) -> Limits:
        """Return what the artefact says about its suppression.

        Args:
            candidates: Number of candidates there are, if it is fixed.
        """
        examined = min(self.candidates, candidates or self.candidates)
        return {
            "nms_candidates": examined,
            "nms_steps": self.steps,
            "nms_unresolved_at_most": 0
            if self.steps >= min(self.block, examined) - 1
            else examined - self.steps - 1,
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
        ExportError: The node asks for more results than an engine can sort.
    """
    size = size or NmsSize()
    max_out = node.attributes["max_out"].as_int()
    if max_out > LARGEST_TOPK:
        raise ExportError(
            f"suppression to {max_out} boxes per image has no plain form; max_per_img must be at "
            f"most {LARGEST_TOPK}"
        )
    scores = node.inputs[1]
    count = scores.shape[1] if scores is not None and scores.shape is not None else None
    count = count if isinstance(count, int) else None
    name = f"nms_{count or 'n'}"
    function = nms_function(DOMAIN, name, size, count)
    model.functions[function.identifier()] = function
    node.domain, node.op_type = DOMAIN, name
    return size.limits(count)


def add_body(model: ir.Model, node: ir.Node) -> Limits:
    """Give a ``deploykit::BatchedNMS`` node, which stays, a body and the shape of its output.

    Args:
        model: Where the node is.
        node: The node.

    Returns:
        What the result of the body is limited by.
    """
    size = NmsSize()
    function = nms_function(seam.DOMAIN, seam.BATCHED_NMS, size, None)
    model.functions[function.identifier()] = function
    scores, indices = node.inputs[1], node.outputs[0]
    batch = scores.shape[0] if scores is not None and scores.shape is not None else None
    indices.dtype = ir.DataType.INT64
    indices.shape = ir.Shape([batch, node.attributes["max_out"].as_int()])
    return size.limits(None)


def nms_function(domain: str, name: str, size: NmsSize, count: int | None) -> ir.Function:
    """Return the function that does the same as ``deploykit::BatchedNMS``.

    Args:
        domain: Of the function.
        name: Of the function.
        size: How much work it may be.
        count: Number of candidates, if it is fixed.
    """
    op = FunctionBuilder(domain, name, ("boxes", "scores", "labels"), _ATTRIBUTES)
    boxes, scores, labels = op.inputs
    # Whatever precision the rest of the graph has, overlaps are decided in float32.
    boxes, scores = op.Cast(boxes, to=_FLOAT), op.Cast(scores, to=_FLOAT)
    examined = size.candidates if count is None else min(size.candidates, count)
    top, order = _best(op, scores, examined, padded=count is None)
    boxes = op.GatherND(boxes, op.Unsqueeze(order, [2]), batch_dims=1)
    labels = op.Cast(op.GatherElements(labels, order, axis=1), to=_INT32)
    valid = op.Cast(op.Greater(top, 0.0), to=_FLOAT)
    kept = _survivors(op, boxes, labels, valid, examined, size)
    return op.function([_first(op, kept, order, examined)])


def _best(op: Any, scores: ir.Value, examined: int, padded: bool) -> tuple[ir.Value, ir.Value]:
    """Return the best scores [B, K] and their indices, ties by lower index."""
    usable = op.Where(op.Greater(scores, 0.0), scores, 0.0)  # also replaces NaN
    count = op.Shape(scores, start=1)
    if padded:
        usable = op.Pad(usable, [0, 0, 0, examined])
    top, order = op.TopK(usable, [examined], axis=1, outputs=2)
    # Engines sort ties as they like; so they are sorted again, by (rank of the score, index).
    better, worse = op.Slice(top, [0], [-1], [1]), op.Slice(top, [1], [examined], [1])
    ranks = op.CumSum(op.Cast(op.Less(worse, better), to=ir.DataType.INT64.value), 1)
    ranks = op.Pad(ranks, [0, 1, 0, 0])
    keys = op.Add(op.Mul(ranks, op.Add(count, examined)), order)
    _, places = op.TopK(keys, [examined], axis=1, largest=0, outputs=2)
    order = op.GatherElements(order, places, axis=1)
    if padded:
        order = op.Min(order, op.Sub(count, 1))
    return top, order


def _survivors(
    op: Any, boxes: ir.Value, labels: ir.Value, valid: ir.Value, examined: int, size: NmsSize
) -> ir.Value:
    """Return 1.0 for each box that survives, float32 [B, K]."""
    as_rows = _sides(op, boxes, labels, axis=2)
    as_columns = _sides(op, boxes, labels, axis=1)
    threshold = op.attribute("iou_threshold")
    valid = op.Unsqueeze(valid, [1])
    kept: ir.Value | None = None
    for start in range(0, examined, size.block):
        stop = min(start + size.block, examined)
        rows = [op.Slice(value, [0], [stop], [1]) for value in as_rows]
        columns = [op.Slice(value, [start], [stop], [2]) for value in as_columns]
        overlaps = _overlaps(op, rows, columns, threshold, start, stop)
        alive = op.Slice(valid, [start], [stop], [2])
        if kept is not None:
            earlier, overlaps = op.Split(overlaps, [start, stop - start], axis=1, outputs=2)
            alive = op.Relu(op.Sub(alive, op.MatMul(kept, earlier)))
        keep = alive
        for _ in range(min(size.steps, stop - start - 1)):
            keep = op.Relu(op.Sub(alive, op.MatMul(keep, overlaps)))
        kept = keep if kept is None else op.Concat(kept, keep, axis=2)
    return op.Squeeze(kept, [1])


def _sides(op: Any, boxes: ir.Value, labels: ir.Value, axis: int) -> list[ir.Value]:
    """Return x1, y1, x2, y2, areas and labels along one axis: [B, K, 1], or [B, 1, K]."""
    if axis == 1:
        boxes = op.Transpose(boxes, perm=[0, 2, 1])
    x1, y1, x2, y2 = op.Split(boxes, axis=axis, num_outputs=4, outputs=4)
    area = op.Mul(op.Sub(x2, x1), op.Sub(y2, y1))
    return [x1, y1, x2, y2, area, op.Unsqueeze(labels, [axis])]


def _overlaps(
    op: Any,
    rows: list[ir.Value],
    columns: list[ir.Value],
    threshold: ir.Value,
    start: int,
    stop: int,
) -> ir.Value:
    """Return where a row overlaps a worse column of its class, float32 [B, stop, stop - start]."""
    (ax1, ay1, ax2, ay2, area_a, label_a), (bx1, by1, bx2, by2, area_b, label_b) = rows, columns
    width = op.Relu(op.Sub(op.Min(ax2, bx2), op.Max(ax1, bx1)))
    height = op.Relu(op.Sub(op.Min(ay2, by2), op.Max(ay1, by1)))
    intersection = op.Mul(width, height)
    # The reference divides; so does this, or the last bit would decide otherwise.
    iou = op.Div(intersection, op.Sub(op.Add(area_a, area_b), intersection))
    better = op.Less(op.Range(0, stop, 1), op.Unsqueeze(op.Range(start, stop, 1), [1]))
    overlap = op.And(op.Greater(iou, threshold), op.Equal(label_a, label_b))
    return op.Cast(op.And(overlap, op.Transpose(better, perm=[1, 0])), to=_FLOAT)


def _first(op: Any, kept: ir.Value, order: ir.Value, examined: int) -> ir.Value:
    """Return the indices of the first ``max_out`` survivors, -1 in empty places."""
    rows = op.Reshape(op.attribute("max_out"), [1])
    ranks = op.Mul(kept, op.Cast(op.Range(examined, 0, -1), to=_FLOAT))
    ranks = op.Pad(ranks, op.Concat([0, 0, 0], rows, axis=0))  # at least max_out of them
    found, position = op.TopK(ranks, rows, axis=1, outputs=2)
    indices = op.GatherElements(order, op.Min(position, examined - 1), axis=1)
    return op.Where(op.Greater(found, 0.0), indices, -1)
