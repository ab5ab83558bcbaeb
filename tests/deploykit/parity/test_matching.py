from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.parity.matching import (
    DetectionRows,
    box_iou,
    match_detections,
    match_greedily,
    match_within_tolerance,
)
from deploykit.parity.tolerances import ParityTolerances


def rows(*detections):
    """Return rows of ``(x1, y1, x2, y2, score, label)`` tuples."""
    table = np.array(detections, np.float64).reshape(-1, 6)
    return DetectionRows(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def iou_by_definition(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


boxes = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@settings(deadline=None)
@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_box_iou_is_that_of_the_definition(first, second):
    found = box_iou(
        np.array(first, np.float64).reshape(-1, 4), np.array(second, np.float64).reshape(-1, 4)
    )
    expected = [[iou_by_definition(a, b) for b in second] for a in first]
    assert found.shape == (len(first), len(second))
    assert np.allclose(found, np.array(expected).reshape(found.shape))


def test_greedy_matching_takes_the_cheapest_pair_and_breaks_ties_by_the_next_cost():
    allowed = np.ones((2, 2), bool)
    assert match_greedily(allowed, np.array([[3.0, 1.0], [0.5, 0.1]])) == [(1, 1), (0, 0)]
    tie = np.zeros((2, 2))
    assert match_greedily(allowed, tie, np.array([[2.0, 1.0], [1.0, 2.0]])) == [(0, 1), (1, 0)]
    assert match_greedily(allowed, tie) == [(0, 0), (1, 1)]
    assert match_greedily(np.array([[False, True]]), np.zeros((1, 2))) == [(0, 1)]


def best_by_brute_force(allowed, required_rows, required_columns):
    """Return whether some matching covers all required rows, all required columns."""
    count = max(allowed.shape)
    padded = np.zeros((count, count), bool)
    padded[: allowed.shape[0], : allowed.shape[1]] = allowed
    for order in permutations(range(count)):
        pairs = [(row, column) for row, column in enumerate(order) if padded[row, column]]
        covered_rows, covered_columns = {r for r, _ in pairs}, {c for _, c in pairs}
        if set(np.flatnonzero(required_rows)) <= covered_rows and (
            set(np.flatnonzero(required_columns)) <= covered_columns
        ):
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 5), st.integers(0, 5))
def test_a_matching_that_covers_everything_required_is_found_whenever_there_is_one(
    data, height, width
):
    def bits(*shape):
        size = int(np.prod(shape))
        values = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return np.array(values, bool).reshape(shape)

    allowed, required_rows, required_columns = bits(height, width), bits(height), bits(width)
    cost = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width)),
        np.float64,
    ).reshape(height, width)
    pairs = match_within_tolerance(allowed, cost, required_rows, required_columns)
    used_rows, used_columns = [r for r, _ in pairs], [c for _, c in pairs]
    assert len(set(used_rows)) == len(used_rows)
    assert len(set(used_columns)) == len(used_columns)
    assert all(allowed[pair] for pair in pairs)
    covered = set(np.flatnonzero(required_rows)) <= set(used_rows) and (
        set(np.flatnonzero(required_columns)) <= set(used_columns)
    )
    assert covered == best_by_brute_force(allowed, required_rows, required_columns)


def test_a_greedy_choice_is_undone_when_it_leaves_a_row_without_partner():
    # Row 0 is cheapest with column 0, but row 1 can only take column 0.
    allowed = np.array([[True, True], [True, False]])
    pairs = match_within_tolerance(
        allowed, np.array([[0.0, 1.0], [1.0, 0.0]]), np.ones(2, bool), np.ones(2, bool)
    )
    assert sorted(pairs) == [(0, 1), (1, 0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 3))
def test_a_shuffled_copy_with_small_noise_is_matched_without_an_error(seed, count, copies):
    """Dense crowds, exact duplicates and near-duplicates: every row finds a partner."""
    random = np.random.default_rng(seed)
    tolerances = ParityTolerances()
    corner = random.uniform(0, 30, (count, 2))  # 60 boxes on 30 px: heavily crowded
    table = np.concatenate([corner, corner + random.uniform(5, 20, (count, 2))], axis=1)
    table = np.repeat(table, copies, axis=0)
    scores = random.uniform(0.06, 1, len(table))
    labels = random.integers(0, 2, len(table))
    reference = DetectionRows(table, scores, labels)
    order = random.permutation(len(table))
    candidate = DetectionRows(
        (table + random.uniform(-1, 1, table.shape) * tolerances.box * 0.99)[order],
        (scores + random.uniform(-1, 1, len(scores)) * tolerances.score * 0.99)[order],
        labels[order],
    )
    matching = match_detections(reference, candidate, tolerances)
    assert not matching.reference_only and not matching.candidate_only and not matching.label_flips
    assert len(matching.pairs) == len(table)
    for row, column in matching.pairs:
        assert np.abs(table[row] - candidate.boxes[column]).max() <= tolerances.box
        assert abs(scores[row] - candidate.scores[column]) <= tolerances.score


def test_duplicates_are_paired_by_score_and_not_by_row():
    reference = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.5, 0))
    candidate = rows((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 10, 0.9, 0))
    assert match_detections(reference, candidate, ParityTolerances()).pairs == [(0, 1), (1, 0)]


def test_boxes_out_of_tolerance_are_still_paired_within_the_class_by_iou():
    reference = rows((0, 0, 10, 10, 0.9, 0), (2, 0, 12, 10, 0.8, 0))
    candidate = rows((2.2, 0, 12.2, 10, 0.8, 0), (0.3, 0, 10.3, 10, 0.9, 0))
    matching = match_detections(reference, candidate, ParityTolerances())
    assert matching.pairs == [(0, 1), (1, 0)]
    assert not matching.reference_only and not matching.candidate_only


def test_a_flip_is_found_only_after_everything_of_the_same_class_is_matched():
    reference = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.6, 1))
    candidate = rows((0, 0, 10, 10, 0.6, 1), (0, 0, 10, 10, 0.9, 2))
    matching = match_detections(reference, candidate, ParityTolerances())
    assert matching.pairs == [(1, 0)]
    assert matching.label_flips == [(0, 1)]


def test_rows_without_partner_and_rows_below_the_threshold():
    reference = rows((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.04, 0))
    candidate = rows((30, 30, 40, 40, 0.7, 0), (50, 50, 60, 60, 0.04, 0))
    matching = match_detections(reference, candidate, ParityTolerances())
    assert matching.pairs == []  # the two low rows agree, but neither counts
    assert (matching.reference_only, matching.candidate_only) == ([0], [0])


def test_a_detection_that_fell_below_the_threshold_is_paired_with_its_low_row():
    reference = rows((0, 0, 10, 10, 0.06, 0))
    candidate = rows((0, 0, 10, 10, 0.02, 0))
    assert match_detections(reference, candidate, ParityTolerances()).pairs == [(0, 0)]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 2), (2, 0)])
def test_empty_sides(first, second):
    detection = (0, 0, 10, 10, 0.9, 0)
    matching = match_detections(
        rows(*[detection] * first), rows(*[detection] * second), ParityTolerances()
    )
    assert matching.pairs == [] and matching.label_flips == []
    assert len(matching.reference_only) == first and len(matching.candidate_only) == second


def test_boxes_without_area_match_when_they_are_equal():
    point = (5, 5, 5, 5, 0.9, 0)
    assert match_detections(rows(point), rows(point), ParityTolerances()).pairs == [(0, 0)]
