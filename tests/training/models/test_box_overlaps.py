from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, distance_box_iou

from deploykit.training.models.box_overlaps import (
    aligned_iou,
    complete_iou,
    distance_iou,
    pairwise_iof,
    pairwise_iou,
)

coordinate = st.floats(-50, 50, width=32)
side = st.floats(0.125, 60, width=32)
boxes_strategy = st.lists(
    st.tuples(coordinate, coordinate, side, side), min_size=2, max_size=6
).map(lambda rows: _corners(torch.tensor(rows)))


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def slow_ciou(a: list[float], b: list[float]) -> float:
    """Equations 9 to 11 of arXiv:2005.03572, with the gate of its published code."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    iou = width * height / union
    hull = (max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    offset = ((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    distance = (offset[0] ** 2 + offset[1] ** 2) / (hull[0] ** 2 + hull[1] ** 2)
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou + v) if iou > 0.5 and v > 0 else 0.0
    return iou - distance - alpha * v


@given(boxes=boxes_strategy)
@settings(max_examples=60, deadline=None)
def test_ious_are_torchvisions(boxes):
    expected = box_iou(boxes, boxes)
    torch.testing.assert_close(pairwise_iou(boxes, boxes), expected, atol=1e-4, rtol=1e-4)
    other = boxes.flip(0)
    torch.testing.assert_close(
        aligned_iou(boxes, other), box_iou(boxes, other).diagonal(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        distance_iou(boxes, other, eps=1e-7),
        distance_box_iou(boxes, other).diagonal(),
        atol=1e-4,
        rtol=1e-4,
    )


@given(boxes=boxes_strategy)
@settings(max_examples=60, deadline=None)
def test_complete_iou_is_the_formula(boxes):
    other = boxes.roll(1, 0)
    actual = complete_iou(boxes, other, eps=1e-9)
    for value, a, b in zip(actual.tolist(), boxes.tolist(), other.tolist(), strict=True):
        iou = float(aligned_iou(torch.tensor([a]), torch.tensor([b])))
        if abs(iou - 0.5) > 1e-4:  # at the gate, rounding decides
            assert value == pytest.approx(slow_ciou(a, b), abs=2e-3)


def test_iof_is_the_covered_share_of_the_first_boxes():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4]])
    regions = torch.tensor([[0.0, 0, 5, 10], [20, 20, 30, 30]])
    assert pairwise_iof(boxes, regions).tolist() == [[0.5, 0.0], [1.0, 0.0]]
    assert pairwise_iof(regions, boxes).tolist() == [[1.0, pytest.approx(0.32)], [0.0, 0.0]]
    several = pairwise_iof(boxes, regions.expand(3, 2, 4))  # one set of boxes for three images
    assert several.shape == (3, 2, 2)


def test_degenerate_boxes_give_finite_values_and_gradients():
    boxes = torch.tensor(
        [[5.0, 5, 5, 5], [9, 9, 3, 3], [0, 0, 0, 10], [0, 0, 3e3, 2e3]], requires_grad=True
    )
    other = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 3e3, 2e3]])
    for overlap in (aligned_iou, distance_iou, complete_iou):
        values = overlap(boxes, other)
        (gradient,) = torch.autograd.grad(values.sum(), boxes)
        assert values.isfinite().all()
        assert gradient.isfinite().all()
        assert values[3].item() == pytest.approx(1.0)
