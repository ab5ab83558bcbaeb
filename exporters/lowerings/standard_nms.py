"""``deploykit::BatchedNMS`` as ONNX ``NonMaxSuppression`` (opset 18), of the ``standard`` lowering.

Three things make it exact and cheap:

- Classes stay apart by a one-hot of the scores ``[B, C, k]``, not by moving the boxes of each class
  far away, which costs the boxes the low bits of their coordinates and turns decisions at the
  threshold.
- The score that NonMaxSuppression sees is the candidate's rank, so equal scores are decided by the
  lower index whatever the engine does with ties, and nothing depends on whether its score threshold
  is inclusive.
- A candidate only ever suppresses candidates of lower rank, so the survivors among the best
  ``PREFIX`` candidates are the first survivors of all. The rest is looked at (``If``) only when an
  image of the batch has more candidates and fewer than ``max_out`` survivors so far.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript import opset18, script
from onnxscript.values import Opset

from deploykit.exporters.lowerings.rewriting import DOMAIN, Limits, add_functions

# Candidates examined before the rest is looked at: enough for 300 survivors of nearly any image,
# and suppressed in 2 to 3 ms on one CPU core, 80 classes included.
PREFIX = 4096

# The bodies below are compiled to ONNX, not run by Python; onnxscript's annotations do not fit.
op: Any = opset18
_domain = Opset(DOMAIN, 1)
_FLOAT, _INT32, _BOOL = ir.DataType.FLOAT.value, ir.DataType.INT32.value, ir.DataType.BOOL.value


@script(_domain, default_opset=op)
def nms_of_best(boxes, scores, labels, count, iou_threshold: float, max_out: int):
    """NMS of the ``count`` best candidates, and whether the others cannot matter."""
    boxes, scores = op.Cast(boxes, to=_FLOAT), op.Cast(scores, to=_FLOAT)
    zero = op.Constant(value_float=0.0)
    usable = op.Where(scores > zero, scores, zero)  # also replaces NaN
    best_scores, order = op.TopK(usable, count, axis=1)
    ranks = op.Cast(op.Range(op.Squeeze(count, [0]), 0, -1), to=_FLOAT)
    ranks = op.Where(best_scores > zero, ranks, zero)  # [B, k]: k, k-1, ... then zeros

    best_boxes = op.GatherND(boxes, op.Unsqueeze(order, [2]), batch_dims=1)
    # NonMaxSuppression swaps inverted corners; a box without an area neither suppresses nor yields.
    sides = op.Slice(best_boxes, [2], [4], [2]) - op.Slice(best_boxes, [0], [2], [2])
    best_boxes = op.Where(op.ReduceMin(sides, [2], keepdims=1) > zero, best_boxes, zero)

    last_label = op.Max(op.ReduceMax(labels, keepdims=0), 0)
    classes = op.Unsqueeze(op.Range(0, last_label + 1, 1), [1])  # [C, 1]
    best_labels = op.Unsqueeze(op.GatherElements(labels, order, axis=1), [1])  # [B, 1, k]
    class_ranks = op.Where(op.Equal(best_labels, classes), op.Unsqueeze(ranks, [1]), zero)
    rows = op.Constant(value_int=max_out)
    threshold = op.Constant(value_float=iou_threshold)
    picked = op.NonMaxSuppression(best_boxes, class_ranks, rows, threshold, 0.5)  # [S, 3]

    places = op.Gather(picked, [0, 2], axis=1)  # (image, position among the best)
    survivors = op.ScatterND(op.Expand(zero, op.Shape(ranks)), places, op.GatherND(ranks, places))
    rows = op.Reshape(rows, [1])
    survivors = op.Pad(survivors, op.Concat([0, 0, 0], rows, axis=0))  # at least max_out of them
    kept, position = op.TopK(survivors, rows, axis=1)
    indices = op.GatherElements(order, op.Min(position, count - 1), axis=1)
    indices = op.Where(kept > zero, indices, -1)

    last_rank = op.Gather(ranks, [-1], axis=1)
    last_kept = op.Gather(kept, [-1], axis=1)
    settled = op.Or(last_kept > zero, op.Not(last_rank > zero))  # [B, 1]
    return indices, op.Cast(op.ReduceMin(op.Cast(settled, to=_INT32), keepdims=0), to=_BOOL)


@script(_domain, default_opset=op)
def nms_of_all(boxes, scores, labels, iou_threshold: float, max_out: int):
    """NMS of all candidates at once."""
    count = op.Shape(scores, start=1)
    indices, _ = nms_of_best(boxes, scores, labels, count, iou_threshold, max_out)
    return indices


@script(_domain, default_opset=op)
def nms_with_early_exit(boxes, scores, labels, prefix: int, iou_threshold: float, max_out: int):
    """NMS of the ``prefix`` best candidates, and of all of them only where that can matter."""
    total = op.Shape(scores, start=1)
    count = op.Min(total, op.Reshape(op.Constant(value_int=prefix), [1]))
    early, settled = nms_of_best(boxes, scores, labels, count, iou_threshold, max_out)
    if op.Or(settled, op.Squeeze(op.Equal(count, total), [0])):
        indices = op.Identity(early)
    else:
        indices = nms_of_all(boxes, scores, labels, iou_threshold, max_out)
    return indices


def rewrite(model: ir.Model, node: ir.Node, prefix: int = PREFIX) -> Limits:
    """Turn a ``deploykit::BatchedNMS`` node into a call of one of the functions above, in place.

    Args:
        model: Where the node is.
        node: The node.
        prefix: How many of the best candidates to examine before the rest.

    Returns:
        What the result is limited by: nothing.
    """
    scores = node.inputs[1]
    candidates = scores.shape[1] if scores is not None and scores.shape is not None else None
    node.domain = DOMAIN
    if isinstance(candidates, int) and candidates <= prefix:
        node.op_type = nms_of_all.name
    else:
        node.op_type = nms_with_early_exit.name
        node.attributes["prefix"] = ir.AttrInt64("prefix", prefix)
    add_functions(model, nms_of_best, nms_of_all, nms_with_early_exit)
    return {}
