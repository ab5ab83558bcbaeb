"""What tests of NMS share: brute force, drawn scenes, and models of one node."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.exporters.graph_cleanup import clean_up
from deploykit.exporters.lowerings import lowering, primitive_nms, standard
from deploykit.exporters.lowerings.rewriting import inline, rewrite_seam


def brute_force(boxes, scores, labels, iou_threshold, max_out):
    """Greedy class-wise NMS, pair by pair, in float32."""
    result = np.full((len(boxes), max_out), -1, np.int64)
    for image, row in enumerate(result):
        candidates = [i for i, score in enumerate(scores[image]) if score > 0]
        candidates.sort(key=lambda i: (-scores[image][i], i))
        kept: list[int] = []
        for i in candidates:
            if not any(
                labels[image][i] == labels[image][j]
                and iou(boxes[image][i], boxes[image][j]) > np.float32(iou_threshold)
                for j in kept
            ):
                kept.append(i)
        row[: len(kept)] = kept[:max_out]
    return result


def iou(a, b):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    with np.errstate(all="ignore"):
        width = min(ax2, bx2) - max(ax1, bx1)
        height = min(ay2, by2) - max(ay1, by1)
        if not (width > 0 and height > 0):  # also where a coordinate is not a number
            return np.float32(0)
        intersection = width * height
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
        return intersection / union


@st.composite
def scenes(draw, dtype=np.float32, most=30):
    """Boxes with few distinct corners and scores with few distinct values, so that ties abound."""
    batch = draw(st.integers(1, 3))
    count = draw(st.integers(1, most))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, draw(st.sampled_from([3, 6, 40])), (batch, count, 2, 2))
    if draw(st.booleans()):
        corners = np.sort(corners, axis=2)  # else half of them have swapped corners
    boxes = corners.reshape(batch, count, 4).astype(np.float32)
    boxes *= draw(st.sampled_from([1, 0.1, 100] + [1e6, 1e18] * (dtype == np.float32)))
    scores = rng.integers(-1, draw(st.sampled_from([2, 6, 1000])), (batch, count)) / 8
    boxes, scores = boxes.astype(dtype), scores.astype(dtype)
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), max_size=4)):
        scores[rng.integers(batch), rng.integers(count)] = value
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=2)):
        boxes[rng.integers(batch), rng.integers(count), rng.integers(4)] = value
    labels = rng.integers(0, draw(st.sampled_from([1, 2, 10])), (batch, count))
    return boxes, scores, labels


def build(lower, iou_threshold, max_out, dims=("B", "N"), dtype=np.float32, optimise=False):
    """Return a lowered model of one node.

    Args:
        lower: Name of a lowering, or ``standard`` with a prefix (an int), or ``primitive`` with a
            size (an ``NmsSize``).
        iou_threshold: Attribute of the node.
        max_out: Attribute of the node.
        dims: Batch and number of candidates.
        dtype: Of boxes and scores.
        optimise: Optimise as the exporter does.
    """
    batch, count = dims
    node = helper.make_node(
        "BatchedNMS",
        ["boxes", "scores", "labels"],
        ["indices"],
        domain="deploykit",
        iou_threshold=iou_threshold,
        max_out=max_out,
    )
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "nms",
        [
            helper.make_tensor_value_info("boxes", kind, [batch, count, 4]),
            helper.make_tensor_value_info("scores", kind, [batch, count]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, count]),
        ],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [batch, max_out])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    if isinstance(lower, int):
        standard.lower(model, lower)
    elif isinstance(lower, primitive_nms.NmsSize):
        rewrite_seam(model, {"BatchedNMS": partial(primitive_nms.rewrite, size=lower)})
        inline(model)
    else:
        lowering(lower)(model)
    if optimise:
        clean_up(model)
    return ir.to_proto(model)


def session_of(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@cache
def session(lower, iou_threshold, max_out, dims=("B", "N"), dtype=np.float32):
    return session_of(build(lower, iou_threshold, max_out, dims, dtype))


def run(lower, boxes, scores, labels, iou_threshold=0.5, max_out=5, **kwargs):
    """Run a lowering and compare it with brute force; return the indices."""
    dtype = kwargs.get("dtype", np.float32)
    feeds = {
        "boxes": np.asarray(boxes, dtype),
        "scores": np.asarray(scores, dtype),
        "labels": np.asarray(labels, np.int64),
    }
    (indices,) = session(lower, iou_threshold, max_out, **kwargs).run(None, feeds)
    exact = feeds["boxes"].astype(np.float32), feeds["scores"].astype(np.float32)
    expected = brute_force(*exact, feeds["labels"], iou_threshold, max_out)
    np.testing.assert_array_equal(indices, expected)
    return indices
