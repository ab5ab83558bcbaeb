"""Box operations against element-wise definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.training.data import boxes as ops

coordinates = st.floats(-50, 150, width=32)
corner_boxes = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=coordinates
)


def proper(boxes):
    return np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1
    )


@given(corner_boxes)
def test_clip_is_coordinatewise(boxes):
    clipped = ops.clip(boxes, 60, 90)
    for row, (x1, y1, x2, y2) in zip(clipped, boxes.tolist(), strict=True):
        expected = [min(max(v, 0), top) for v, top in ((x1, 90), (y1, 60), (x2, 90), (y2, 60))]
        assert row.tolist() == expected
    assert clipped.dtype == np.float32


@given(corner_boxes.map(proper), st.sampled_from(ops.FLIP_DIRECTIONS))
def test_flip_mirrors_and_is_its_own_inverse(boxes, direction):
    before = boxes.copy()
    flipped = ops.flip(boxes, 60, 90, direction)
    assert np.array_equal(boxes, before)
    assert (flipped[:, 2:] >= flipped[:, :2]).all()
    assert np.allclose(flipped[:, 2:] - flipped[:, :2], boxes[:, 2:] - boxes[:, :2], atol=1e-4)
    assert np.allclose(ops.flip(flipped, 60, 90, direction), boxes, atol=1e-4)
    if direction != "vertical":
        assert np.allclose(flipped[:, 0], 90 - boxes[:, 2], atol=1e-4)
    if direction == "horizontal":
        assert np.array_equal(flipped[:, 1::2], boxes[:, 1::2])


def test_touching_the_border_from_outside_does_not_count():
    boxes = ops.as_boxes([[-5, 2, 0, 9], [-5, 2, 1, 9], [10, 2, 12, 9], [3, 20, 5, 30]])
    assert ops.touch_image(boxes, height=20, width=10).tolist() == [False, True, False, False]


@given(corner_boxes.map(proper), st.floats(-3, 3), st.floats(-0.3, 0.3))
def test_warp_encloses_the_warped_corners(boxes, angle, shear):
    matrix = np.array(
        [[np.cos(angle), -np.sin(angle) + shear, 7], [np.sin(angle), np.cos(angle), -3], [0, 0, 1]],
        np.float32,
    )
    for row, (x1, y1, x2, y2) in zip(ops.warp(boxes, matrix), boxes, strict=True):
        corners = np.array([[x, y, 1] for x in (x1, x2) for y in (y1, y2)]) @ matrix.T
        expected = [*corners[:, :2].min(axis=0), *corners[:, :2].max(axis=0)]
        assert np.allclose(row, expected, atol=1e-3)


@given(corner_boxes.map(proper))
def test_iou_with_counts_overlap_over_union(boxes):
    window = np.array([10, 10, 60, 40], np.float32)
    for value, (x1, y1, x2, y2) in zip(ops.iou_with(boxes, window), boxes.tolist(), strict=True):
        overlap = max(min(x2, 60) - max(x1, 10), 0) * max(min(y2, 40) - max(y1, 10), 0)
        union = (x2 - x1) * (y2 - y1) + 50 * 30 - overlap
        assert abs(value - overlap / union) < 1e-5


def test_no_boxes_stay_no_boxes():
    none = ops.as_boxes([])
    assert none.shape == (0, 4)
    for result in (
        ops.clip(none, 5, 5),
        ops.scale(none, 2, 2),
        ops.shift(none, 1, 1),
        ops.flip(none, 5, 5, "diagonal"),
        ops.warp(none, np.eye(3, dtype=np.float32)),
    ):
        assert result.shape == (0, 4)
        assert result.dtype == np.float32
