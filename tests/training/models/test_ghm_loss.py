"""Gradient harmonizing losses against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models.losses.ghm_loss import GHMC, GHMR


def slow_weights(lengths, valid, bins, average=None, momentum=0.0):
    """Total over count of each bin, over the number of bins that hold anything."""
    weights = np.zeros_like(lengths)
    used = 0
    for number in range(bins):
        last = number == bins - 1
        inside = valid & (lengths >= number / bins) & (last | (lengths < (number + 1) / bins))
        if inside.any():
            used += 1
            count = inside.sum()
            if average is not None:
                count = average[number] = momentum * average[number] + (1 - momentum) * count
            weights[inside] = max(valid.sum(), 1) / count
    return weights / max(used, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_classes(momentum):
    generator = torch.Generator().manual_seed(0)
    loss = GHMC(bins=6, momentum=momentum, loss_weight=2.0)
    average = np.zeros(6) if momentum else None
    for _ in range(3):
        logits = torch.randn(40, 3, generator=generator) * 2
        labels = torch.randint(4, (40,), generator=generator)  # 3 is background
        weight = (torch.rand(40, generator=generator) < 0.8).float()
        truth = np.eye(4)[labels.numpy()][:, :3]
        probability = 1 / (1 + np.exp(-logits.double().numpy()))
        valid = np.broadcast_to(weight.numpy()[:, None] > 0, (40, 3))
        weights = slow_weights(abs(probability - truth), valid, 6, average, momentum)
        entropy = -np.log(np.where(truth > 0, probability, 1 - probability))
        expected = 2 * (weights * entropy).sum() / valid.sum()
        assert loss(logits, labels, weight).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_boxes(momentum):
    generator = torch.Generator().manual_seed(0)
    loss = GHMR(mu=0.5, bins=4, momentum=momentum)
    average = np.zeros(4) if momentum else None
    for _ in range(3):
        pred, target = torch.randn(2, 30, 4, generator=generator)
        weight = (torch.rand(30, 4, generator=generator) < 0.7).float()
        difference = (pred - target).double().numpy()
        smooth = np.sqrt(difference**2 + 0.25)
        valid = weight.numpy() > 0
        weights = slow_weights(abs(difference) / smooth, valid, 4, average, momentum)
        expected = (weights * (smooth - 0.5)).sum() / valid.sum()
        assert loss(pred, target, weight).item() == pytest.approx(expected, rel=1e-4)


def test_nothing_costs_nothing():
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = GHMR(momentum=0.5)(empty, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="use_sigmoid"):
        GHMC(use_sigmoid=False)
    with pytest.raises(ConfigError, match="bins"):
        GHMR(bins=0)
