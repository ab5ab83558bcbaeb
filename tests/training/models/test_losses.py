from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.losses.iou_losses import GIoULoss
from deploykit.training.models.losses.quality_focal_loss import QualityFocalLoss, soft_targets
from deploykit.training.models.losses.reduction import mean_over_workers

coordinate = st.floats(-50, 50, width=32)
side = st.floats(0.125, 60, width=32)


def slow_qfl(logit: float, target: float, beta: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    entropy = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
    return abs(target - probability) ** beta * entropy


def slow_giou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return width * height / union - (hull - union) / hull


@given(
    logits=st.lists(st.floats(-12, 12, width=32), min_size=12, max_size=12),
    labels=st.lists(st.integers(-1, 5), min_size=3, max_size=3),
    qualities=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    beta=st.sampled_from([1.0, 2.0, 1.5]),
)
@settings(max_examples=60, deadline=None)
def test_quality_focal_loss_is_the_formula(logits, labels, qualities, beta):
    pred = torch.tensor(logits).reshape(3, 4)
    loss = QualityFocalLoss(beta=beta, reduction="none", loss_weight=1.5)
    actual = loss(pred, (torch.tensor(labels), torch.tensor(qualities)))
    expected = [
        1.5
        * sum(
            slow_qfl(float(pred[n, c]), qualities[n] if c == labels[n] else 0.0, beta)
            for c in range(4)
        )
        for n in range(3)
    ]
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_labels_beyond_the_classes_are_background():
    targets = soft_targets(torch.tensor([[1, 3, -1]]), torch.tensor([[0.5, 0.9, 0.9]]), 3)
    assert targets.shape == (1, 3, 3)
    assert targets.tolist() == [[[0, 0, 0], [0.5, 0, 0], [0, 0, 0]]]


def test_class_maps_and_rows_of_classes_give_the_same_loss():
    pred = torch.randn(2, 5, 7)
    labels, qualities = torch.randint(0, 6, (2, 7)), torch.rand(2, 7)
    loss = QualityFocalLoss()
    maps = loss(pred, (labels, qualities), avg_factor=3.0)
    rows = loss(
        pred.transpose(1, 2).reshape(14, 5), (labels.view(-1), qualities.view(-1)), None, 3.0
    )
    torch.testing.assert_close(maps, rows)


@given(
    a=st.tuples(coordinate, coordinate, side, side), b=st.tuples(coordinate, coordinate, side, side)
)
@settings(max_examples=100, deadline=None)
def test_giou_loss_is_the_formula(a, b):
    boxes = torch.tensor([a, b])
    boxes[:, 2:] += boxes[:, :2]
    actual = GIoULoss(reduction="none")(boxes[:1], boxes[1:])
    expected = 1 - slow_giou(*boxes.double().tolist())
    assert float(actual) == pytest.approx(expected, abs=1e-3)


def test_giou_loss_of_degenerate_boxes_is_finite():
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 3], [0, 0, 0, 10]], requires_grad=True)
    loss = GIoULoss()(boxes, torch.tensor([[5.0, 5, 5, 5]]).expand(3, 4))
    loss.backward()
    assert loss.isfinite()
    assert boxes.grad.isfinite().all()


@pytest.mark.parametrize("weight", [None, "scalar", "per side"])
def test_weights_and_average_factors(weight):
    pred = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4]])
    target = torch.tensor([[0.0, 0, 10, 5], [2, 2, 6, 6]])
    each = GIoULoss(reduction="none")(pred, target)
    weights = {
        None: None,
        "scalar": torch.tensor([0.5, 2.0]),
        "per side": torch.tensor([[0.5] * 4, [1.0, 3.0, 2.0, 2.0]]),
    }[weight]
    factors = torch.ones(2) if weight is None else torch.tensor([0.5, 2.0])
    weighted = (each * factors).sum()
    loss = GIoULoss(loss_weight=3.0)
    torch.testing.assert_close(loss(pred, target, weights, avg_factor=4.0), 3 * weighted / 4)
    torch.testing.assert_close(loss(pred, target, weights), 3 * weighted / 2)
    torch.testing.assert_close(GIoULoss(reduction="sum")(pred, target, weights), weighted)


def test_unsupported_options_are_refused():
    for options in ({"use_sigmoid": False}, {"activated": True}):
        with pytest.raises(ConfigError, match="QualityFocalLoss"):
            QualityFocalLoss(**options)
    with pytest.raises(ConfigError, match="reduction"):
        GIoULoss(reduction="average")
    with pytest.raises(ValueError, match="avg_factor"):
        GIoULoss(reduction="sum")(torch.zeros(1, 4), torch.zeros(1, 4), avg_factor=2.0)


def test_averages_over_workers(monkeypatch):
    def add_what_the_other_worker_has(value):
        value.add_(5.0 / 2)

    value = torch.tensor(3.0)
    assert mean_over_workers(value) is value
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", add_what_the_other_worker_has)
    assert mean_over_workers(value) == 4.0
    assert value == 3.0
