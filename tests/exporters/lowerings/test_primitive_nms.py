"""``BatchedNMS`` in plain ONNX: what it is limited by, and that it keeps to it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from nms_cases import brute_force, build, session, session_of
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from deploykit.errors import ExportError
from deploykit.exporters.lowerings import primitive
from deploykit.exporters.lowerings.primitive_nms import LARGEST_TOPK, NmsSize
from deploykit.exporters.onnx_checks import NOT_PRIMITIVE, check_operators
from deploykit.training.ops.batched_nms import batched_nms

STEPS = 10


def feeds_of(boxes, scores=None, labels=None):
    boxes = np.asarray(boxes, np.float32)
    boxes = boxes[None] if boxes.ndim == 2 else boxes
    batch, count = boxes.shape[:2]
    if scores is None:
        scores = np.tile(np.linspace(1, 0.1, count, dtype=np.float32), (batch, 1))
    labels = np.zeros((batch, count)) if labels is None else labels
    return {"boxes": boxes, "scores": scores, "labels": labels.astype(np.int64)}


def kept(indices, count):
    """Return which candidates of one image were kept."""
    flags = np.zeros(count, bool)
    flags[indices[indices >= 0]] = True
    return flags


def wrong_decisions(size, boxes, iou_threshold):
    """Count the candidates of one image that are kept or dropped against the definition."""
    count = len(boxes)
    feeds = feeds_of(boxes)
    (indices,) = session(size, iou_threshold, count).run(None, feeds)
    exact = brute_force(*feeds.values(), iou_threshold, count)
    return int((kept(indices[0], count) != kept(exact[0], count)).sum())


def chain(length):
    """Boxes by falling score that overlap their neighbours alone, with an IoU of 4/16."""
    left = 6.0 * np.arange(length)
    zeros = np.zeros(length)
    return np.stack([left, zeros, left + 10, zeros + 90], axis=1)


def test_a_chain_of_one_more_than_the_steps_is_decided_rightly_and_a_longer_one_is_not():
    size = NmsSize(candidates=64, block=64, steps=STEPS)
    assert wrong_decisions(size, chain(STEPS + 1), 0.2) == 0
    assert wrong_decisions(size, chain(STEPS + 2), 0.2) == 1
    limits = size.limits
    assert limits == {
        "nms_candidates": 64,
        "nms_steps": STEPS,
        "nms_unresolved_at_most": 64 - STEPS - 1,
    }
    assert 20 < wrong_decisions(size, chain(64), 0.2) <= limits["nms_unresolved_at_most"]


def test_the_bound_is_reached():
    """Ten boxes lie on the last one of a chain, each as deep as the first unsettled one."""
    ends = chain(STEPS + 1)
    left = ends[-1, 0] + 4  # beyond the box before it
    tops = 9.0 * np.arange(10)
    fan = np.stack([tops * 0 + left, tops, tops * 0 + left + 6, tops + 9], axis=1)
    boxes = np.concatenate([ends, fan])
    size = NmsSize(candidates=len(boxes), block=64, steps=STEPS)
    wrong = wrong_decisions(size, boxes, 0.05)
    assert wrong == 10 == size.limits["nms_unresolved_at_most"]


def test_chains_across_blocks_are_no_limit():
    assert (
        wrong_decisions(NmsSize(candidates=64, block=STEPS + 1, steps=STEPS), chain(64), 0.2) == 0
    )


def test_as_many_steps_as_a_block_has_neighbours_are_exact():
    size = NmsSize(candidates=64, block=16, steps=15)
    assert size.limits["nms_unresolved_at_most"] == 0
    assert wrong_decisions(size, chain(64), 0.2) == 0


def dense_scene(kind, rng, count=1024):
    """One class, far more boxes than objects, ordered by falling score."""
    centers = rng.uniform(0, 300, (count, 2))
    sizes = np.exp(rng.normal(np.log(30), 0.1, (count, 2)))
    if kind == "clusters":
        objects = rng.integers(0, rng.integers(5, 60), count)
        centers = centers[objects] + rng.normal(0, 6, (count, 2))
        sizes = 2 * sizes[objects] * rng.uniform(0.7, 1.4, (count, 2))
    elif kind == "row":
        centers[:, 1] = rng.normal(0, 3, count)
        centers[:, 0] *= 4
    elif kind == "smooth scores":  # fall with the distance from one point, as score maps do
        distance = ((centers - 150) ** 2).sum(axis=1)
        centers = centers[np.argsort(distance + rng.normal(0, 400, count))]
    return np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).astype(np.float32)


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.6, 0.7])
@pytest.mark.parametrize("kind", ["uniform", "clusters", "row", "smooth scores"])
def test_default_steps_leave_nothing_unresolved_in_dense_scenes(kind, iou_threshold):
    rng = np.random.default_rng(5)
    scenes, count = 10, 1024
    feeds = feeds_of(np.stack([dense_scene(kind, rng, count) for _ in range(scenes)]))
    lowered = session(NmsSize(), iou_threshold, count, dims=("B", count))
    (indices,) = lowered.run(None, feeds)
    exact = batched_nms(*map(torch.from_numpy, feeds.values()), iou_threshold, count).numpy()
    wrong = sum(
        (kept(a, count) != kept(b, count)).sum() for a, b in zip(indices, exact, strict=True)
    )
    assert wrong == 0
    assert (exact >= 0).sum(axis=1).max() < 0.9 * count  # there was something to suppress


def test_enough_survivors_among_the_candidates_are_exact_whatever_comes_after():
    rng = np.random.default_rng(2)
    boxes = np.stack([dense_scene("uniform", rng, 3000) for _ in range(2)])
    feeds = feeds_of(boxes, rng.random((2, 3000), np.float32), rng.integers(0, 5, (2, 3000)))
    (indices,) = session("primitive", 0.5, 100).run(None, feeds)
    exact = batched_nms(*map(torch.from_numpy, feeds.values()), 0.5, 100).numpy()
    np.testing.assert_array_equal(indices, exact)
    assert (indices >= 0).all()


def test_what_lies_beyond_the_candidates_is_not_seen():
    limit = NmsSize().candidates
    boxes = np.tile(np.float32([0, 0, 10, 10]), (limit + 1, 1))
    boxes[-1] += 100
    (indices,) = session("primitive", 0.5, 3).run(None, feeds_of(boxes))
    assert indices.tolist() == [[0, -1, -1]]
    (indices,) = session("primitive", 0.5, 3).run(None, feeds_of(boxes[1:]))
    assert indices.tolist() == [[0, limit - 1, -1]]


@pytest.mark.parametrize(
    ("max_out", "candidates"), [(1, 2048), (300, 2048), (1500, 3000), (3840, 3840)]
)
def test_candidates_grow_with_the_number_of_results(max_out, candidates):
    assert NmsSize.of(max_out).candidates == candidates


def test_more_results_than_engines_sort_are_refused():
    with pytest.raises(ExportError, match=f"at most {LARGEST_TOPK} boxes.*--max-per-img"):
        build("primitive", 0.5, LARGEST_TOPK + 1)


@pytest.mark.parametrize("dims", [("B", "N"), (2, 500), (3, 9000)])
def test_no_operator_that_depends_on_values(dims):
    proto = build("primitive", 0.5, 100, dims=dims, optimise=True)
    check_operators(proto, "primitive")
    assert not {node.op_type for node in proto.graph.node} & (NOT_PRIMITIVE | {"Loop"})
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert {name for node in proto.graph.node for name in node.output} <= known


class TopK(OpRun):
    """An engine's TopK that puts the last one of equal values first."""

    def _run(self, x, k, axis=-1, largest=1, sorted=1):
        backwards = np.flip(-x if largest else x, axis)
        order = x.shape[axis] - 1 - np.argsort(backwards, axis=axis, kind="stable")
        order = np.take(order, np.arange(int(k[0])), axis=axis)
        return np.take_along_axis(x, order, axis=axis), order


def test_ties_do_not_depend_on_the_order_of_an_engine_s_topk():
    rng = np.random.default_rng(4)
    corners = np.sort(rng.integers(0, 12, (2, 30, 2, 2)), axis=2).astype(np.float32)
    scores = rng.integers(0, 4, (2, 30)).astype(np.float32) / 4
    feeds = feeds_of(corners.reshape(2, 30, 4), scores, rng.integers(0, 2, (2, 30)))
    proto = build(NmsSize(candidates=40, block=16, steps=15), 0.3, 20)
    (indices,) = ReferenceEvaluator(proto, new_ops=[TopK]).run(None, feeds)
    np.testing.assert_array_equal(indices, brute_force(*feeds.values(), 0.3, 20))


def test_limits_of_a_model_are_the_largest_of_its_nodes():
    counts = {}
    for count in (300, 5000):
        proto = build("plugin", 0.5, 10, dims=(1, count))
        del proto.functions[:]
        counts[count] = primitive.lower(ir.from_proto(proto))["nms_candidates"]
    assert counts == {300: 300, 5000: 2048}


def test_half_precision_boxes_are_compared_in_single_precision():
    # In float16 the areas, 90,000, overflow; and 1,001 is between two numbers that it holds.
    boxes = np.float16([[[0, 0, 300, 300], [30, 0, 330, 300], [400, 0, 700, 300]]])
    feeds = {**feeds_of(boxes), "boxes": boxes, "scores": np.float16([[0.9, 0.8, 0.7]])}
    proto = build("primitive", 0.5, 3, dims=(1, 3), dtype=np.float16)
    (indices,) = session_of(proto).run(None, feeds)
    assert indices.tolist() == [[0, 2, -1]]
