"""Averaged weights against their closed forms, and the hook in validation and checkpoints."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, ConfigError, TrainingError
from deploykit.training.engine.ema import AVERAGES, EMAHook, WeightAverage


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.bn = nn.BatchNorm1d(2)

    def forward(self, values: Tensor) -> Tensor:
        return self.bn(self.linear(values))


def build(model: nn.Module, kind: str, **options: object) -> WeightAverage:
    average: WeightAverage = AVERAGES.build(dict(type=kind, **options), model=model)
    return average


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def value_of(average: WeightAverage, model: nn.Module, name: str = "linear.weight") -> float:
    return float(average.state_dict(model)[name].flatten()[0])


SEQUENCE = [3.0, 1.0, -2.0, 0.5, 4.0, 4.0, 0.0]

MOMENTA = {
    "ExponentialMovingAverage": lambda t: 0.1,
    "ExpMomentumEMA": lambda t: 0.9 * math.exp(-(1 + t) / 5) + 0.1,
    "MomentumAnnealingEMA": lambda t: max(0.1, 5 / (5 + t)),
    "StochasticWeightAverage": lambda t: 1 / (t + 1),
}
OPTIONS = {
    "ExponentialMovingAverage": dict(momentum=0.1),
    "ExpMomentumEMA": dict(momentum=0.1, gamma=5),
    "MomentumAnnealingEMA": dict(momentum=0.1, gamma=5),
    "StochasticWeightAverage": {},
}


@pytest.mark.parametrize("kind", MOMENTA)
def test_formulas(kind: str) -> None:
    model = Network()
    average = build(model, kind, **OPTIONS[kind])
    expected = 0.0
    for t, value in enumerate(SEQUENCE):
        set_weights(model, value)
        average.update()
        share = 1.0 if t == 0 else MOMENTA[kind](t)
        expected = (1 - share) * expected + share * value
        assert value_of(average, model) == pytest.approx(expected, rel=1e-5), t


def test_stochastic_average_is_the_mean() -> None:
    model = Network()
    average = build(model, "StochasticWeightAverage")
    for value in SEQUENCE:
        set_weights(model, value)
        average.update()
    assert value_of(average, model) == pytest.approx(sum(SEQUENCE) / len(SEQUENCE), rel=1e-5)


def test_interval() -> None:
    model = Network()
    average = build(model, "ExponentialMovingAverage", momentum=0.5, interval=3)
    seen = []
    for value in [0.0, 8.0, 8.0, 8.0, 0.0, 0.0, 4.0]:
        set_weights(model, value)
        average.update()
        seen.append(value_of(average, model))
    assert seen == [0, 0, 0, 4, 4, 4, 4]


@pytest.mark.parametrize("update_buffers", [True, False])
def test_buffers_are_averaged_or_follow(update_buffers: bool) -> None:
    model = Network()
    average = build(model, "ExponentialMovingAverage", momentum=0.5, update_buffers=update_buffers)
    for value in (2.0, 6.0):
        set_weights(model, value)
        average.update()
    state = average.state_dict(model)
    assert state["linear.weight"].flatten()[0] == 4
    assert state["bn.running_mean"][0] == (4 if update_buffers else 6)
    # Counters are no quantities to average: they stay at the first value, or follow.
    assert state["bn.num_batches_tracked"] == (2 if update_buffers else 6)


def test_a_shared_tensor_is_averaged_once_and_has_all_its_names() -> None:
    model = nn.ModuleList([nn.Linear(1, 1, bias=False) for _ in range(3)])
    model[1].weight = model[2].weight = model[0].weight
    average = build(model, "ExponentialMovingAverage", momentum=0.5)
    for value in (0.0, 8.0):
        set_weights(model, value)
        average.update()
    assert {name: value.item() for name, value in average.state_dict(model).items()} == {
        f"{index}.weight": 4.0 for index in range(3)
    }
    average.swap(model)
    assert model[2].weight.item() == 4
    average.swap(model)
    assert model[2].weight.item() == 8


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_swapping_twice_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Network()
    average = build(model, "ExpMomentumEMA", momentum=0.1, update_buffers=True)
    for _ in range(3):
        model(torch.rand(4, 2))
        with torch.no_grad():
            model.linear.weight.mul_(1.5)
        average.update()
    weights, averages = snapshot(model.state_dict()), snapshot(average.state_dict(model))
    assert not equal(weights, averages)
    average.swap(model)
    assert equal(snapshot(model.state_dict()), averages)
    assert equal(snapshot(average.state_dict(model)), weights)
    average.swap(model)
    assert equal(snapshot(model.state_dict()), weights)


def test_a_replaced_tensor_is_noticed() -> None:
    model = Network()
    average = build(model, "ExponentialMovingAverage")
    model.linear.weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(TrainingError, match=r"linear\.weight"):
        average.swap(model)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ExponentialMovingAverage", dict(momentum=0), "momentum"),
        ("ExponentialMovingAverage", dict(momentum=1.0), "momentum"),
        ("ExponentialMovingAverage", dict(interval=0), "interval"),
        ("ExpMomentumEMA", dict(gamma=0), "gamma"),
        ("MomentumAnnealingEMA", dict(gamma=-1), "gamma"),
        ("ExpMomentumEma", {}, "Did you mean ExpMomentumEMA"),
        ("ExpMomentumEMA", dict(decay=0.9), "decay"),
    ],
)
def test_bad_options(kind: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Network(), kind, **options)


def make_trainer(model: nn.Module, resuming: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        model=model, epoch=0, iter=0, max_epochs=10, max_iters=100, resuming=resuming
    )


def step(hook: EMAHook, trainer: SimpleNamespace, value: float) -> None:
    set_weights(trainer.model, value)
    hook.after_train_iter(trainer, 0, None, {})  # type: ignore[arg-type]
    trainer.iter += 1


@pytest.mark.parametrize("option", [dict(begin_iter=3), dict(begin_epoch=2)])
def test_until_it_begins_the_average_follows(option: dict) -> None:
    trainer = make_trainer(Network())
    hook = EMAHook(momentum=0.5, **option)
    hook.before_run(trainer)
    hook.before_train(trainer)
    for value in (1.0, 2.0):
        step(hook, trainer, value)
        assert value_of(hook.average, trainer.model) == value
    trainer.epoch = 1
    step(hook, trainer, 4.0)  # the first one that counts: a copy
    step(hook, trainer, 8.0)
    assert value_of(hook.average, trainer.model) == 6


def test_checkpoints_hold_averages_as_weights_and_resume_from_the_raw_ones() -> None:
    trainer = make_trainer(Network())
    hook = EMAHook("ExpMomentumEMA", momentum=0.1, update_buffers=True)
    hook.before_run(trainer)
    hook.before_train(trainer)
    for value in (1.0, 5.0, 3.0):
        step(hook, trainer, value)
    checkpoint = {"state_dict": trainer.model.state_dict()}
    hook.before_save_checkpoint(trainer, checkpoint)
    assert equal(checkpoint["state_dict"], hook.average.state_dict(trainer.model))
    assert checkpoint["ema_state_dict"]["module.linear.weight"][0, 0] == 3
    checkpoint = copy.deepcopy(checkpoint)
    step(hook, trainer, -7.0)
    expected = snapshot(hook.average.state_dict(trainer.model))

    resumed = make_trainer(Network(), resuming=True)
    again = EMAHook("ExpMomentumEMA", momentum=0.1, update_buffers=True)
    again.before_run(resumed)
    again.after_load_checkpoint(resumed, checkpoint)
    resumed.model.load_state_dict(checkpoint["state_dict"])
    assert "ema_state_dict" not in checkpoint
    assert resumed.model.linear.weight[0, 0] == 3
    again.before_train(resumed)
    step(again, resumed, -7.0)
    assert equal(snapshot(again.average.state_dict(resumed.model)), expected)


def test_loaded_weights_are_the_start_of_the_average() -> None:
    trainer = make_trainer(Network())
    hook = EMAHook()
    hook.before_run(trainer)
    hook.after_load_checkpoint(trainer, {"state_dict": {}})
    set_weights(trainer.model, 9.0)
    hook.before_train(trainer)
    assert value_of(hook.average, trainer.model) == 9


@pytest.mark.parametrize(
    ("change", "strict", "message"),
    [
        (lambda state: state.pop("linear.bias"), True, "lack 'linear.bias'"),
        (lambda state: state.update({"linear.bias": torch.ones(3)}), False, "shape"),
    ],
)
def test_averages_that_do_not_fit(change: object, strict: bool, message: str) -> None:
    model = Network()
    state = snapshot(model.state_dict())
    change(state)  # type: ignore[operator]
    average = build(model, "ExponentialMovingAverage")
    with pytest.raises(CheckpointError, match=message):
        average.load_state_dict(state, strict)


def test_a_missing_average_is_kept_when_loading_is_not_strict() -> None:
    model = Network()
    set_weights(model, 2.0)
    average = build(model, "ExponentialMovingAverage")
    average.load_state_dict({"linear.weight": torch.ones(2, 2)}, strict=False)
    state = average.state_dict(model)
    assert state["linear.weight"][0, 0] == 1
    assert state["linear.bias"][0] == 2


def test_beginning_after_the_end_is_refused() -> None:
    trainer = make_trainer(Network())
    with pytest.raises(ConfigError, match="not both"):
        EMAHook(begin_iter=1, begin_epoch=1)
    hook = EMAHook(begin_epoch=11)
    hook.before_run(trainer)
    with pytest.raises(ConfigError, match="after training has ended"):
        hook.before_train(trainer)
