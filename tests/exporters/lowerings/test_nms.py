"""``BatchedNMS`` in every lowering, run in ONNX Runtime, against brute force."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_cases import build, run, scenes, session, session_of

from deploykit.errors import UsageError
from deploykit.exporters.lowerings import lowering
from deploykit.exporters.lowerings.primitive_nms import NmsSize
from deploykit.training.ops.batched_nms import batched_nms

# Small, so that drawn scenes cross their prefix and their blocks. A block of 8 settles in 7 steps.
PREFIX = 12
SMALL = NmsSize(candidates=64, block=8, steps=7)
PARTIAL = {"standard": PREFIX, "primitive": SMALL, "plugin": "plugin"}
# (iou_threshold, max_out)
ATTRIBUTES = st.sampled_from([(0.0, 5), (0.3, 100), (0.5, 1), (0.6, 20), (0.7, 5), (1.0, 100)])

pytestmark = pytest.mark.parametrize("name", list(PARTIAL))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_brute_force(name, dtype):
    @settings(max_examples=25 if name == "plugin" else 100, deadline=None)
    @given(scenes(dtype), ATTRIBUTES)
    def check(scene, attributes):
        run(PARTIAL[name], *scene, *attributes, dtype=dtype)

    check()


def test_equals_the_eager_operator(name):
    @settings(max_examples=30, deadline=None)
    @given(scenes(), ATTRIBUTES)
    def check(scene, attributes):
        eager = batched_nms(*(torch.from_numpy(array) for array in scene), *attributes)
        indices = run(PARTIAL[name], *scene, *attributes)
        np.testing.assert_array_equal(indices, eager.numpy())

    check()


@pytest.mark.parametrize("max_out", [1, 30, 300])
def test_crowds_as_large_as_real_ones(name, max_out):
    rng = np.random.default_rng(max_out)
    batch, count, objects = 2, 700, 25
    centers = rng.uniform(0, 300, (batch, objects, 2)).repeat(count // objects, axis=1)
    sizes = rng.uniform(20, 120, (batch, objects, 2)).repeat(count // objects, axis=1)
    centers += rng.normal(0, 4, centers.shape)
    sizes *= rng.uniform(0.8, 1.25, sizes.shape)
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=2)
    scores = rng.random((batch, count)).round(2)  # with ties
    scores[1] *= rng.random(count) < 0.3
    run(name, boxes, scores, rng.integers(0, 3, (batch, count)), 0.5, max_out)


def test_equal_scores_are_decided_by_the_lower_index(name):
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 20, 1))
    boxes[0, 10:] += 100
    indices = run(PARTIAL[name], boxes, np.full((1, 20), 0.5), np.zeros((1, 20)), max_out=3)
    assert indices.tolist() == [[0, 10, -1]]


def test_classes_do_not_suppress_each_other_even_with_labels_far_apart(name):
    boxes = np.tile(np.float32([600, 600, 640, 640]), (1, 4, 1))
    labels = [[0, 1202, 7, 1202]]
    indices = run(PARTIAL[name], boxes, [[0.1, 0.2, 0.3, 0.4]], labels, max_out=4)
    assert indices.tolist() == [[3, 2, 0, -1]]


def test_huge_coordinates_lose_no_precision(name):
    boxes = 4e6 + np.float32([[[i, i, i + 2, i + 2] for i in range(8)]])
    labels = [[1000, 1000, 3, 3, 1000, 0, 0, 0]]
    indices = run(name, boxes, [np.linspace(0.9, 0.2, 8)], labels, 0.1, max_out=8)
    assert indices.tolist() == [[0, 2, 4, 5, 7, -1, -1, -1]]


@pytest.mark.parametrize("label", [0, 79])
def test_iou_equal_to_the_threshold_keeps_the_box_whatever_its_label(name, label):
    boxes = np.float32([[[600, 0, 608, 1], [602, 0, 610, 1]]])  # IoU 6/10
    scores, labels = [[0.9, 0.8]], [[label, label]]
    assert run(PARTIAL[name], boxes, scores, labels, 0.6, 2).tolist() == [[0, 1]]
    boxes[0, 1, 2] = np.nextafter(np.float32(610), np.float32(0))
    assert run(PARTIAL[name], boxes, scores, labels, 0.6, 2).tolist() == [[0, -1]]


def test_nothing_to_keep(name):
    indices = run(PARTIAL[name], np.ones((2, 30, 4)), np.zeros((2, 30)), np.zeros((2, 30)))
    assert (indices == -1).all()


def test_not_a_number_is_never_returned(name):
    scores = np.full((1, 30), np.nan)
    scores[0, 3] = 0.5
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 30, 1))
    indices = run(PARTIAL[name], boxes, scores, np.zeros((1, 30)))
    assert indices.tolist() == [[3, -1, -1, -1, -1]]


def test_inverted_boxes_neither_suppress_nor_are_suppressed(name):
    # The first is upside down and so large that the sum of both areas is negative.
    boxes = [[[0, 100, 10, 0], [0, 20, 10, 80], [10, 0, 0, 100], [10, 100, 0, 0], [5, 5, 5, 50]]]
    indices = run(PARTIAL[name], boxes, [[0.9, 0.8, 0.7, 0.6, 0.5]], np.zeros((1, 5)), 0.1)
    assert indices.tolist() == [[0, 1, 2, 3, 4]]


def test_all_but_one_suppressed_looks_past_the_prefix(name):
    # 30 copies of one box fill the prefix; the box elsewhere has the lowest score of all.
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 31, 1))
    boxes[0, 4] = [50, 50, 60, 60]
    scores = np.linspace(0.5, 0.9, 31, dtype=np.float32)[None]
    scores[0, 4] = 0.1
    indices = run(PARTIAL[name], boxes, scores, np.zeros((1, 31)), max_out=5)
    assert indices.tolist() == [[30, 4, -1, -1, -1]]


def test_rows_do_not_influence_each_other(name):
    rng = np.random.default_rng(7)
    corners = np.sort(rng.uniform(0, 60, (4, 40, 2, 2)), axis=2).astype(np.float32)
    boxes, labels = corners.reshape(4, 40, 4), rng.integers(0, 3, (4, 40))
    scores = rng.random((4, 40), np.float32)
    scores[1] = 0  # empty beside full ones
    scores[2, 5:] = 0
    together = run(PARTIAL[name], boxes, scores, labels)
    for row in range(4):
        one = slice(row, row + 1)
        alone = run(PARTIAL[name], boxes[one], scores[one], labels[one])
        np.testing.assert_array_equal(alone, together[one])


@pytest.mark.parametrize("count", [1, 3, PREFIX, PREFIX + 1, 40])
def test_static_shapes(name, count):
    rng = np.random.default_rng(count)
    corners = np.sort(rng.uniform(0, 30, (2, count, 2, 2)), axis=2)
    boxes, scores = corners.reshape(2, count, 4), rng.random((2, count))
    labels = rng.integers(0, 2, (2, count))
    run(PARTIAL[name], boxes, scores, labels, dims=(2, count))


@pytest.mark.parametrize("dims", [("B", "N"), (2, 100), (2, 5)])
def test_graph_is_valid_with_fixed_output(name, dims):
    proto = build(PARTIAL[name], 0.5, 7, dims=dims)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    domains = {opset.domain for opset in inferred.opset_import}
    assert domains == ({"", "deploykit"} if name == "plugin" else {""})
    assert inferred.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7


def test_optimising_changes_nothing(name):
    rng = np.random.default_rng(3)
    corners = np.sort(rng.uniform(0, 50, (1, 90, 2, 2)), axis=2).astype(np.float32)
    feeds = {
        "boxes": corners.reshape(1, 90, 4),
        "scores": rng.random((1, 90), np.float32),
        "labels": rng.integers(0, 2, (1, 90)),
    }
    proto = build(name, 0.5, 20, dims=(1, 90), optimise=True)
    (optimised,) = session_of(proto).run(None, feeds)
    (plain,) = session(name, 0.5, 20, dims=(1, 90)).run(None, feeds)
    np.testing.assert_array_equal(optimised, plain)


def test_unknown_lowering(name):
    with pytest.raises(UsageError, match=f"expected one of: .*{name}"):
        lowering("magic")
