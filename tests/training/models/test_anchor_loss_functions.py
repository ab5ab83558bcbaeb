from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from deploykit.errors import ConfigError
from deploykit.training.models.box_overlaps import aligned_iou, complete_iou, distance_iou
from deploykit.training.models.losses.accuracy import accuracy
from deploykit.training.models.losses.cross_entropy_loss import CrossEntropyLoss
from deploykit.training.models.losses.focal_loss import FocalLoss
from deploykit.training.models.losses.iou_losses import CIoULoss, DIoULoss, IoULoss
from deploykit.training.models.losses.l1_loss import L1Loss, SmoothL1Loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [-1.0, 0.2, 0.3], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 3, 1])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_softmax_cross_entropy():
    logits = torch.cat((LOGITS, torch.zeros(4, 1)), dim=1)  # the last class is background
    each = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True)
    ]
    factors = [1.0, 0.0, 2.0, 0.5]
    weight = torch.tensor(factors)
    loss = CrossEntropyLoss(loss_weight=3.0)
    assert loss(logits, LABELS).item() == pytest.approx(3 * sum(each) / 4)
    weighted = [w * e for w, e in zip(factors, each, strict=True)]
    assert loss(logits, LABELS, weight, avg_factor=2.0).item() == pytest.approx(
        3 * sum(weighted) / 2
    )
    none = CrossEntropyLoss(reduction="none")(logits, LABELS, weight)
    assert none.tolist() == pytest.approx(weighted)


def test_softmax_with_class_weights_and_an_ignored_label():
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0, 4.0], ignore_index=1)
    labels = torch.tensor([0, 2, 2, 1])
    expected = F.cross_entropy(LOGITS, labels, torch.tensor([1.0, 2, 4]), reduction="none")
    expected[3] = 0
    assert loss(LOGITS, labels).item() == pytest.approx(expected.sum().item() / 4)
    loss.avg_non_ignore = True
    assert loss(LOGITS, labels).item() == pytest.approx(expected.sum().item() / 3)


def test_sigmoid_cross_entropy_of_labels():
    loss = CrossEntropyLoss(use_sigmoid=True, reduction="none")
    expected = [
        [softplus(-v) if column == label else softplus(v) for column, v in enumerate(row)]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss(LOGITS, LABELS), torch.tensor(expected))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    mean = CrossEntropyLoss(use_sigmoid=True)(LOGITS, LABELS, weight, avg_factor=3.0)
    assert mean.item() == pytest.approx(float((torch.tensor(expected) * weight[:, None]).sum()) / 3)


def test_sigmoid_cross_entropy_of_targets_like_the_logits():
    targets = torch.tensor([[1.0, 0, -1], [0, 0, 1], [1, 1, 0], [-1, -1, 0]])
    loss = CrossEntropyLoss(use_sigmoid=True, class_weight=[2.0, 1.0, 1.0])
    total = 0.0
    for row, target in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        for column, (v, t) in enumerate(zip(row, target, strict=True)):
            positive = 2.0 if column == 0 else 1.0
            total += 0.0 if t < 0 else positive * softplus(-v) if t else softplus(v)
    assert loss(LOGITS, targets).item() == pytest.approx(total / 12)
    loss.avg_non_ignore = True
    assert loss(LOGITS, targets).item() == pytest.approx(total / 9)


def test_mask_cross_entropy_takes_the_mask_of_the_class():
    torch.manual_seed(0)
    masks, targets = torch.randn(3, 5, 4, 4), (torch.rand(3, 4, 4) > 0.5).float()
    labels = torch.tensor([4, 0, 2])
    loss = CrossEntropyLoss(use_mask=True, loss_weight=2.0)
    chosen = torch.stack([masks[0, 4], masks[1, 0], masks[2, 2]])
    expected = 2 * F.binary_cross_entropy(chosen.sigmoid(), targets)
    torch.testing.assert_close(loss(masks, targets, label=labels), expected)
    agnostic = loss(masks[:, :1], targets)
    torch.testing.assert_close(agnostic, 2 * F.binary_cross_entropy(masks[:, 0].sigmoid(), targets))
    nothing = loss(masks[:0].requires_grad_(), targets[:0], label=labels[:0])
    assert nothing.item() == 0
    nothing.backward()


@given(
    logits=st.lists(st.floats(-15, 15, width=32), min_size=12, max_size=12),
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    gamma=st.sampled_from([0.5, 1.0, 2.0]),
    alpha=st.sampled_from([0.25, 0.6]),
)
@settings(max_examples=80, deadline=None)
def test_focal_loss_is_torchvisions(logits, labels, gamma, alpha):
    pred = torch.tensor(logits).reshape(3, 4)
    target = F.one_hot(torch.tensor(labels), 5)[:, :4].float()
    expected = sigmoid_focal_loss(pred, target, alpha, gamma)
    loss = FocalLoss(gamma=gamma, alpha=alpha, reduction="none")
    torch.testing.assert_close(loss(pred, torch.tensor(labels)), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(pred, target), expected, rtol=1e-4, atol=1e-6)
    loss.activated = True
    torch.testing.assert_close(
        loss(pred.clamp(-8, 8).sigmoid(), target),
        sigmoid_focal_loss(pred.clamp(-8, 8), target, alpha, gamma),
        rtol=1e-2,
        atol=1e-6,
    )


def test_focal_loss_by_hand_and_its_weights():
    # -alpha (1 - p) ** gamma log p for the label, its mirror image for the others.
    p = torch.sigmoid(LOGITS[0]).tolist()
    expected = 0.25 * (1 - p[0]) ** 2 * -math.log(p[0])
    expected += sum(0.75 * q**2 * -math.log(1 - q) for q in p[1:])
    weight = torch.tensor([2.0, 0.0, 0.0, 0.0])
    loss = FocalLoss(loss_weight=1.5)
    actual = loss(LOGITS, LABELS, weight, avg_factor=4.0)
    assert actual.item() == pytest.approx(1.5 * 2 * expected / 4, rel=1e-5)
    per_class = torch.zeros(4, 3)
    per_class[0] = 2.0
    torch.testing.assert_close(loss(LOGITS, LABELS, per_class, avg_factor=4.0), actual)


def test_focal_loss_of_certain_predictions_is_finite():
    pred = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for labels in ([0], [1], [2]):
        loss = FocalLoss()(pred, torch.tensor(labels))
        (gradient,) = torch.autograd.grad(loss, pred)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 2.5])
def test_smooth_l1_is_the_formula(beta):
    pred = torch.tensor([[0.0, 0.05, -3.0, 2.0]])
    target = torch.tensor([[0.0, 0.0, 1.0, 2.2]])
    each = [0.5 * d * d / beta if d < beta else d - beta / 2 for d in (0, 0.05, 4, 0.2)]
    loss = SmoothL1Loss(beta=beta, loss_weight=2.0)
    assert loss(pred, target, avg_factor=3.0).item() == pytest.approx(2 * sum(each) / 3, rel=1e-5)
    assert loss(pred, target).item() == pytest.approx(2 * sum(each) / 4, rel=1e-5)


def test_l1_is_the_formula():
    pred, target = torch.tensor([[1.0, -2], [0, 4]]), torch.tensor([[0.0, 0], [0, 1]])
    weight = torch.tensor([[1.0, 0.5], [1, 2]])
    assert L1Loss()(pred, target).item() == pytest.approx(6 / 4)
    assert L1Loss(loss_weight=2.0)(pred, target, weight, 5.0).item() == pytest.approx(2 * 8 / 5)
    assert L1Loss(reduction="sum")(pred, target).item() == 6


@pytest.mark.parametrize("loss", [L1Loss(), SmoothL1Loss(), IoULoss(), CIoULoss(), DIoULoss()])
@pytest.mark.parametrize("avg_factor", [None, 1.0])
def test_no_boxes_cost_nothing_but_have_a_gradient(loss, avg_factor):
    pred = torch.zeros(0, 4, requires_grad=True)
    value = loss(pred, torch.zeros(0, 4), avg_factor=avg_factor)
    assert value.item() == 0
    value.backward()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (IoULoss(reduction="none"), lambda a, b: -aligned_iou(a, b).clamp(min=1e-6).log()),
        (IoULoss(reduction="none", linear=True), lambda a, b: 1 - aligned_iou(a, b)),
        (IoULoss(reduction="none", mode="square"), lambda a, b: 1 - aligned_iou(a, b) ** 2),
        (DIoULoss(reduction="none"), lambda a, b: 1 - distance_iou(a, b)),
        (CIoULoss(reduction="none"), lambda a, b: 1 - complete_iou(a, b)),
    ],
)
def test_overlap_losses(loss, expected):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4], [5, 5, 9, 9]])
    target = torch.tensor([[0.0, 0, 10, 7], [2, 2, 6, 6], [20, 20, 22, 24]])
    each = expected(boxes, target)
    torch.testing.assert_close(loss(boxes, target), each)
    weight = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [2, 2, 0, 0]])
    torch.testing.assert_close(loss(boxes, target, weight), each * torch.tensor([1.0, 0, 1]))
    loss.reduction, loss.loss_weight = "mean", 3.0
    torch.testing.assert_close(loss(boxes, target, avg_factor=2.0), 3 * each.sum() / 2)
    loss.reduction, loss.loss_weight = "none", 1.0


def test_accuracy_is_a_percentage():
    assert accuracy(LOGITS, torch.tensor([0, 2, 2, 0])).item() == 75.0
    assert accuracy(LOGITS[:0], LABELS[:0]).item() == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CrossEntropyLoss(use_sigmoid=True, use_mask=True), "exclude"),
        (lambda: CrossEntropyLoss(use_mask=True, reduction="sum"), "use_mask"),
        (lambda: CrossEntropyLoss(reduction="max"), "reduction"),
        (lambda: FocalLoss(use_sigmoid=False), "use_sigmoid"),
        (lambda: SmoothL1Loss(beta=0.0), "beta"),
        (lambda: IoULoss(mode="cubic"), "mode"),
        (lambda: CIoULoss(reduction="max"), "CIoULoss"),
    ],
)
def test_unsupported_options_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
