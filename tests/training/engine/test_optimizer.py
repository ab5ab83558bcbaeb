from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from deploykit.errors import ConfigError
from deploykit.training.engine.optimizer import build_optimizer
from deploykit.training.registry import OPTIMIZERS

LR, DECAY = 0.1, 0.05


class DeformConv2d(nn.Module):
    """Named as the deformable convolution whose offsets have rules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, 1, 1))
        self.bias = nn.Parameter(torch.zeros(2))
        self.conv_offset = nn.Conv2d(2, 4, 1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.bn = nn.BatchNorm2d(4)
        self.gn = nn.GroupNorm(2, 4)
        self.deformable = DeformConv2d()
        self.head = nn.ModuleDict({"cls": nn.Linear(4, 2), "reg": nn.Linear(4, 4)})
        self.scale = nn.Parameter(torch.ones(3))


def settings(model: nn.Module, paramwise: dict | None, **optimizer: object) -> dict[str, tuple]:
    """Return (lr, weight decay) of each parameter."""
    config = dict(type="SGD", lr=LR, weight_decay=DECAY, **optimizer)
    built = build_optimizer(model, config, paramwise)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (round(group["lr"], 9), round(group["weight_decay"], 9))
        for group in built.param_groups
        for parameter in group["params"]
    }


def test_without_rules_all_parameters_share_a_group() -> None:
    model = Network()
    optimizer = build_optimizer(model, dict(type="AdamW", lr=1e-3, betas=(0.8, 0.9)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_the_rules_of_rtmdet() -> None:
    found = settings(Network(), dict(norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True))
    undecayed = {name for name, (_, decay) in found.items() if decay == 0}
    # The bias of a deformable convolution's offsets is one of its layers': it has no bias rule.
    assert undecayed == {
        "conv.bias",
        "depthwise.bias",
        "bn.weight",
        "bn.bias",
        "gn.weight",
        "gn.bias",
        "deformable.bias",
        "head.cls.bias",
        "head.reg.bias",
    }
    assert {rate for rate, _ in found.values()} == {LR}


@pytest.mark.parametrize(
    ("paramwise", "name", "expected"),
    [
        (dict(bias_lr_mult=2), "conv.bias", (2 * LR, DECAY)),
        (dict(bias_lr_mult=2), "bn.bias", (LR, DECAY)),
        (dict(bias_lr_mult=2), "deformable.conv_offset.bias", (LR, DECAY)),
        (dict(dcn_offset_lr_mult=0.1), "deformable.conv_offset.bias", (0.1 * LR, DECAY)),
        (dict(dcn_offset_lr_mult=0.1), "deformable.conv_offset.weight", (0.1 * LR, DECAY)),
        (dict(dcn_offset_lr_mult=0.1), "deformable.weight", (LR, DECAY)),
        (dict(dwconv_decay_mult=0.5), "depthwise.weight", (LR, 0.5 * DECAY)),
        (dict(dwconv_decay_mult=0.5), "conv.weight", (LR, DECAY)),
        (dict(dwconv_decay_mult=0.5, bias_decay_mult=0.2), "depthwise.bias", (LR, 0.2 * DECAY)),
        (dict(norm_decay_mult=0.3, bias_decay_mult=0.2), "bn.bias", (LR, 0.3 * DECAY)),
        (dict(bias_decay_mult=0.2), "bn.bias", (LR, 0.2 * DECAY)),
        (dict(flat_decay_mult=0), "scale", (LR, 0)),
        (dict(flat_decay_mult=0), "bn.weight", (LR, 0)),
        (dict(flat_decay_mult=0), "conv.weight", (LR, DECAY)),
        (dict(custom_keys={"head": dict(lr_mult=10)}), "head.cls.bias", (10 * LR, DECAY)),
        (dict(custom_keys={"head": dict(decay_mult=0)}), "head.reg.weight", (LR, 0)),
        # The longest key wins, and a custom key wins over every other rule.
        (
            dict(custom_keys={"head": dict(lr_mult=10), "head.cls": dict(lr_mult=3)}),
            "head.cls.weight",
            (3 * LR, DECAY),
        ),
        (
            dict(custom_keys={"bn": dict(lr_mult=0.5)}, norm_decay_mult=0, bias_lr_mult=2),
            "bn.bias",
            (0.5 * LR, DECAY),
        ),
        # Among keys of one length the first in the alphabet.
        (
            dict(custom_keys={"ls": dict(lr_mult=4), "cl": dict(lr_mult=5)}),
            "head.cls.weight",
            (5 * LR, DECAY),
        ),
    ],
)
def test_rules(paramwise: dict, name: str, expected: tuple[float, float]) -> None:
    assert settings(Network(), paramwise)[name] == pytest.approx(expected)


def test_every_parameter_is_optimised_exactly_once() -> None:
    model = Network()
    model.conv.weight.requires_grad_(False)
    found = settings(model, dict(norm_decay_mult=0, custom_keys={"head": dict(lr_mult=2)}))
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_shared_parameters() -> None:
    model = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(2)])
    model[1][0] = model[0][0]
    once = build_optimizer(
        model, dict(type="SGD", lr=1.0), dict(bypass_duplicate=True, bias_lr_mult=2)
    )
    assert sum(len(group["params"]) for group in once.param_groups) == 2
    with pytest.raises(ConfigError, match="bypass_duplicate"):
        build_optimizer(model, dict(type="SGD", lr=1.0), dict(bias_lr_mult=2))


def test_options_of_single_parameters() -> None:
    found = build_optimizer(
        Network(),
        dict(type="SGD", lr=LR, momentum=0.9),
        dict(custom_keys={"head": dict(momentum=0.5)}),
    )
    assert {group["momentum"] for group in found.param_groups} == {0.9, 0.5}


def test_a_custom_key_without_effect_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        settings(Network(), dict(custom_keys={"head": dict(decay_multi=0.0)}))
    assert "custom_keys['head'].decay_multi" in caplog.text


@pytest.mark.parametrize(
    ("optimizer", "paramwise", "message"),
    [
        (dict(type="AdamV", lr=1), None, "Did you mean"),
        (dict(lr=1), None, "'type'"),
        ("SGD", None, "'type'"),
        (dict(type="SGD", learning_rate=1), None, "no argument 'learning_rate'"),
        (dict(type="SGD", lr=-1), None, "Invalid learning rate"),
        (dict(type="SGD", lr=1), dict(norm_decay=0), "did you mean 'norm_decay_mult'"),
        (dict(type="SGD", lr=1), dict(norm_decay_mult=0), "add weight_decay"),
        (dict(type="SGD"), dict(bias_lr_mult=2), "add lr"),
        (dict(type="SGD", lr=1), dict(custom_keys={"a": dict(decay_mult=0)}), "add weight_decay"),
        (dict(type="SGD", lr=1), dict(custom_keys=["a"]), "dict of dicts"),
    ],
)
def test_bad_configs(optimizer: dict, paramwise: dict | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Network(), optimizer, paramwise)


def test_nothing_to_optimise() -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizer(nn.ReLU(), dict(type="SGD", lr=1))


def test_registered_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))

    @OPTIMIZERS.register()
    class MyDescent(torch.optim.SGD):
        def __init__(self, params: list, speed: float) -> None:
            super().__init__(params, lr=speed)

    built = build_optimizer(Network(), dict(type="MyDescent", speed=0.5))
    assert isinstance(built, MyDescent)


def test_the_fused_kernel_computes_the_same() -> None:
    """The default must be an AdamW like any other, up to the last bits."""
    results = []
    for extra in ({}, {"foreach": False}):
        torch.manual_seed(0)
        model = nn.Linear(16, 16)
        optimizer = build_optimizer(
            model, dict(type="AdamW", lr=1e-2, weight_decay=0.1, **extra), dict(bias_decay_mult=0)
        )
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.rand(8, 16)).square().sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
