from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.plugins_trt.nms_reference import batched_nms, iou


def scene(boxes, scores, labels):
    return (
        np.array([boxes], np.float32).reshape(1, -1, 4),
        np.array([scores], np.float32),
        np.array([labels], np.int64),
    )


def test_iou_by_hand():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 9]], np.float32)
    np.testing.assert_allclose(iou(boxes, boxes[0]), [1, 1 / 3, 0, 0], rtol=1e-6)


def test_two_empty_boxes_have_no_iou_and_keep_each_other():
    point = [5.0, 5.0, 5.0, 5.0]
    assert np.isnan(iou(np.array([point], np.float32), np.array(point, np.float32))).all()
    assert batched_nms(*scene([point, point], [0.9, 0.8], [0, 0]), 0.5, 2).tolist() == [[0, 1]]


def test_greedy_by_hand():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 4, 10, 13], [0, 0, 10, 10], [50, 50, 60, 60]]
    scores = [0.5, 0.9, 0.6, 0.7, 0.1]
    # Box 1 is best. 0 and 3 overlap it by 0.9. 2 overlaps it by 5/13. Only 3 is of another class.
    labels = [0, 0, 0, 1, 0]
    assert batched_nms(*scene(boxes, scores, labels), 0.5, 5).tolist() == [[1, 3, 2, 4, -1]]
    assert batched_nms(*scene(boxes, scores, labels), 0.5, 2).tolist() == [[1, 3]]
    assert batched_nms(*scene(boxes, scores, labels), 0.3, 5).tolist() == [[1, 3, 4, -1, -1]]


def test_a_suppressed_box_suppresses_nothing():
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert batched_nms(*scene(boxes, [0.9, 0.8, 0.7], [0] * 3), 0.4, 3).tolist() == [[0, 2, -1]]


def test_ties_go_to_the_lower_index():
    boxes = [[0, 0, 10, 10]] * 3 + [[20, 20, 30, 30]]
    assert batched_nms(*scene(boxes, [0.5] * 4, [0] * 4), 0.5, 4).tolist() == [[0, 3, -1, -1]]


@pytest.mark.parametrize("score", [0.0, -1.0, float("nan")])
def test_scores_that_are_not_positive_never_come_back(score):
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert batched_nms(*scene(boxes, [score, 0.5], [0, 0]), 0.5, 2).tolist() == [[1, -1]]


def test_nothing_in_nothing_out():
    assert batched_nms(*scene([], [], []), 0.5, 2).tolist() == [[-1, -1]]
    empty = np.zeros((0, 4, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros((0, 4), int)
    assert batched_nms(*empty, 0.5, 2).shape == (0, 2)


box = st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(0, 8)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(
    rows=st.lists(
        st.tuples(box, st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.integers(0, 1)), max_size=12
    ),
    threshold=st.sampled_from([0.25, 0.5, 0.75]),
)
@settings(max_examples=150, deadline=None)
def test_properties_that_define_the_result(rows, threshold):
    """The kept set is the only one where no two overlap and each loser has a better rival in it."""
    boxes, scores, labels = scene(*zip(*rows, strict=True)) if rows else scene([], [], [])
    kept = [i for i in batched_nms(boxes, scores, labels, threshold, len(rows) + 1)[0] if i >= 0]

    def suppresses(a, b):
        overlap = iou(boxes[0, [a]], boxes[0, b])[0]
        return labels[0, a] == labels[0, b] and overlap > np.float32(threshold)

    def rank(index):
        return -scores[0, index], index

    assert kept == sorted(kept, key=rank)
    assert not any(suppresses(a, b) for a, b in itertools.combinations(kept, 2))
    for index in set(range(len(rows))) - set(kept):
        rivals = [k for k in kept if rank(k) < rank(index) and suppresses(k, index)]
        assert rivals or not scores[0, index] > 0
