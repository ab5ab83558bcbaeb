"""``BatchedNMS`` lowered to plain ONNX, run in ONNX Runtime, against brute force."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit.errors import UsageError
from deploykit.exporters.lowerings import lowering, standard
from deploykit.training.ops.batched_nms import batched_nms

PREFIX = 12  # small, so that drawn scenes cross it


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
    width = min(ax2, bx2) - max(ax1, bx1)
    height = min(ay2, by2) - max(ay1, by1)
    if not (width > 0 and height > 0):  # also where a coordinate is not a number
        return np.float32(0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection / union


def build(iou_threshold, max_out, prefix=PREFIX, dims=("B", "N")):
    batch, count = dims
    node = helper.make_node(
        "BatchedNMS",
        ["boxes", "scores", "labels"],
        ["indices"],
        domain="deploykit",
        iou_threshold=iou_threshold,
        max_out=max_out,
    )
    graph = helper.make_graph(
        [node],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, count, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, count]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, count]),
        ],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [batch, max_out])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("deploykit", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    standard.lower(model, prefix)
    return ir.to_proto(model)


@cache
def session(iou_threshold, max_out, prefix=PREFIX, dims=("B", "N")):
    proto = build(iou_threshold, max_out, prefix, dims)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(boxes, scores, labels, iou_threshold=0.5, max_out=5, **kwargs):
    feeds = {
        "boxes": np.asarray(boxes, np.float32),
        "scores": np.asarray(scores, np.float32),
        "labels": np.asarray(labels, np.int64),
    }
    (indices,) = session(iou_threshold, max_out, **kwargs).run(None, feeds)
    expected = brute_force(*feeds.values(), iou_threshold, max_out)
    np.testing.assert_array_equal(indices, expected)
    return indices


@st.composite
def scenes(draw):
    """Boxes with few distinct corners and scores with few distinct values, so that ties abound."""
    batch = draw(st.integers(1, 3))
    count = draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, draw(st.sampled_from([3, 6, 40])), (batch, count, 2, 2))
    if draw(st.booleans()):
        corners = np.sort(corners, axis=2)  # else half of them have swapped corners
    boxes = corners.reshape(batch, count, 4).astype(np.float32)
    boxes *= draw(st.sampled_from([1, 0.1, 100]))
    scores = rng.integers(-1, draw(st.sampled_from([2, 6, 1000])), (batch, count)) / 8
    scores = scores.astype(np.float32)
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), max_size=4)):
        scores[rng.integers(batch), rng.integers(count)] = value
    if draw(st.booleans()):
        boxes[rng.integers(batch), rng.integers(count), rng.integers(4)] = np.nan
    labels = rng.integers(0, draw(st.sampled_from([1, 2, 10])), (batch, count))
    return boxes, scores, labels


@settings(max_examples=200, deadline=None)
@given(scenes(), st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.7, 1.0]), st.sampled_from([1, 5, 20, 100]))
def test_equals_brute_force(scene, iou_threshold, max_out):
    run(*scene, iou_threshold, max_out)


def test_equal_scores_are_decided_by_the_lower_index():
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 20, 1))
    boxes[0, 10:] += 100
    indices = run(boxes, np.full((1, 20), 0.5), np.zeros((1, 20)), max_out=3)
    assert indices.tolist() == [[0, 10, -1]]


def test_classes_do_not_suppress_each_other_even_with_labels_far_apart():
    boxes = np.tile(np.float32([600, 600, 640, 640]), (1, 4, 1))
    indices = run(boxes, [[0.1, 0.2, 0.3, 0.4]], [[0, 1202, 7, 1202]], max_out=4)
    assert indices.tolist() == [[3, 2, 0, -1]]


@pytest.mark.parametrize("label", [0, 79])
def test_iou_equal_to_the_threshold_keeps_the_box_whatever_its_label(label):
    boxes = np.float32([[[600, 0, 608, 1], [602, 0, 610, 1]]])  # IoU 6/10
    indices = run(boxes, [[0.9, 0.8]], [[label, label]], iou_threshold=0.6, max_out=2)
    assert indices.tolist() == [[0, 1]]
    boxes[0, 1, 2] = np.nextafter(np.float32(610), np.float32(0))
    indices = run(boxes, [[0.9, 0.8]], [[label, label]], iou_threshold=0.6, max_out=2)
    assert indices.tolist() == [[0, -1]]


def test_nothing_to_keep():
    indices = run(np.ones((2, 30, 4)), np.zeros((2, 30)), np.zeros((2, 30)))
    assert (indices == -1).all()


def test_not_a_number_is_never_returned():
    scores = np.full((1, 30), np.nan)
    scores[0, 3] = 0.5
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 30, 1))
    assert run(boxes, scores, np.zeros((1, 30))).tolist() == [[3, -1, -1, -1, -1]]


def test_all_but_one_suppressed_looks_past_the_prefix():
    # 30 copies of one box fill the prefix; the box elsewhere has the lowest score of all.
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 31, 1))
    boxes[0, 4] = [50, 50, 60, 60]
    scores = np.linspace(0.5, 0.9, 31, dtype=np.float32)[None]
    scores[0, 4] = 0.1
    indices = run(boxes, scores, np.zeros((1, 31)), max_out=5)
    assert indices.tolist() == [[30, 4, -1, -1, -1]]


def test_rows_do_not_influence_each_other():
    rng = np.random.default_rng(7)
    corners = np.sort(rng.uniform(0, 60, (4, 40, 2, 2)), axis=2).astype(np.float32)
    boxes, labels = corners.reshape(4, 40, 4), rng.integers(0, 3, (4, 40))
    scores = rng.random((4, 40), np.float32)
    scores[1] = 0  # empty beside full ones
    scores[2, 5:] = 0
    together = run(boxes, scores, labels)
    for row in range(4):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(run(boxes[one], scores[one], labels[one]), together[one])


@pytest.mark.parametrize("count", [3, PREFIX, PREFIX + 1, 40])
def test_static_shapes(count):
    rng = np.random.default_rng(count)
    corners = np.sort(rng.uniform(0, 30, (2, count, 2, 2)), axis=2)
    run(
        corners.reshape(2, count, 4),
        rng.random((2, count)),
        rng.integers(0, 2, (2, count)),
        dims=(2, count),
    )


@pytest.mark.parametrize("dims", [("B", "N"), (2, 100), (2, 5)])
def test_graph_is_valid_plain_onnx_with_fixed_output(dims):
    proto = build(0.5, 7, dims=dims)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    assert [opset.domain for opset in inferred.opset_import] == [""]
    assert inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7


def test_second_look_is_left_out_where_it_cannot_be_needed():
    small = {node.op_type for node in build(0.5, 5, dims=(1, PREFIX)).graph.node}
    large = {node.op_type for node in build(0.5, 5, dims=(1, PREFIX + 1)).graph.node}
    assert "If" not in small
    assert "If" in large


def test_unknown_lowering():
    with pytest.raises(UsageError, match="expected one of: standard"):
        lowering("magic")


@settings(max_examples=100, deadline=None)
@given(scenes(), st.sampled_from([0.3, 0.5, 0.6]), st.sampled_from([1, 5, 40]))
def test_equals_the_eager_operator(scene, iou_threshold, max_out):
    eager = batched_nms(*(torch.from_numpy(array) for array in scene), iou_threshold, max_out)
    np.testing.assert_array_equal(run(*scene, iou_threshold, max_out), eager.numpy())
