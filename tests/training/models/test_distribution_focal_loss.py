from __future__ import annotations

import pytest
import torch

from deploykit.training.models.heads.gfl_head import Integral
from deploykit.training.models.losses.distribution_focal_loss import DistributionFocalLoss


def test_loss_is_least_where_the_distribution_expects_the_target():
    target = torch.tensor([2.3])
    logits = torch.zeros(1, 6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    loss = DistributionFocalLoss()
    for _ in range(200):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    probabilities = logits.detach().softmax(dim=1)[0]
    assert probabilities[[2, 3]].tolist() == pytest.approx([0.7, 0.3], abs=0.01)
    assert (probabilities * torch.arange(6)).sum().item() == pytest.approx(2.3, abs=0.03)
    # What remains is the entropy of the two numbers.
    entropy = -(0.7 * torch.tensor(0.7).log() + 0.3 * torch.tensor(0.3).log())
    assert loss(logits, target).item() == pytest.approx(entropy.item(), abs=0.01)


def test_weights_and_average():
    logits, target = torch.randn(5, 9), torch.tensor([0.0, 1.5, 3.2, 7.9, 4.0])
    single = DistributionFocalLoss(reduction="none")(logits, target)
    weight = torch.tensor([1.0, 0, 2, 0.5, 1])
    mean = DistributionFocalLoss(loss_weight=0.25)(logits, target, weight, avg_factor=4.0)
    assert mean.item() == pytest.approx(0.25 * (single * weight).sum().item() / 4, rel=1e-5)


def test_integral_of_sure_distributions_is_their_number():
    numbers = torch.tensor([[[0, 3, 7, 8], [1, 1, 2, 5]]])
    logits = torch.nn.functional.one_hot(numbers, 9).float() * 100
    torch.testing.assert_close(Integral(8)(logits.flatten(2)), numbers.float())
