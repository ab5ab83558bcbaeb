"""Schedulers against closed forms, written from MMEngine's documentation of each curve."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.engine.schedulers import build_schedulers
from deploykit.training.registry import SCHEDULERS

BASES = (0.1, 0.03)


def make_optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in BASES]
    return torch.optim.SGD(groups, lr=1.0)


def run(configs: list[dict], steps: int, epoch_length: int = 5) -> list[list[float]]:
    """Return the learning rates of both groups at each step."""
    optimizer = make_optimizer()
    schedulers = build_schedulers(configs, optimizer, epoch_length, 100, 100 * epoch_length)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for scheduler in schedulers:
            scheduler.step()
    return rates


def check(config: dict, factor: Callable[[int, float], float], begin: int, end: int) -> None:
    """Compare with ``factor(step since begin, base)``, which holds its last value afterwards."""
    for step, rates in enumerate(run([config], end + 5)):
        for base, rate in zip(BASES, rates, strict=True):
            since = min(step, end - 1) - begin
            expected = base if since < 0 else factor(since, base)
            assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15), (step, base)


intervals = st.tuples(st.integers(0, 5), st.integers(2, 20)).map(lambda p: (p[0], p[0] + p[1]))


@given(intervals, st.floats(1e-5, 1), st.floats(1e-3, 1))
def test_linear(interval: tuple[int, int], start: float, stop: float) -> None:
    begin, end = interval
    config = dict(type="LinearLR", start_factor=start, end_factor=stop, begin=begin, end=end)
    length = end - begin - 1
    check(config, lambda t, base: base * (start + (stop - start) * t / length), begin, end)


@given(intervals, st.floats(0, 0.02))
def test_cosine(interval: tuple[int, int], eta_min: float) -> None:
    begin, end = interval
    config = dict(type="CosineAnnealingLR", eta_min=eta_min, begin=begin, end=end)

    def curve(t: int, base: float) -> float:
        return eta_min + (base - eta_min) * (1 + math.cos(math.pi * t / (end - begin))) / 2

    check(config, curve, begin, end)


def test_cosine_past_its_period_rises_again() -> None:
    config = dict(type="CosineAnnealingLR", eta_min_ratio=0.1, T_max=4, begin=0, end=13)
    check(
        config,
        lambda t, base: base * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2),
        0,
        13,
    )


@given(intervals, st.lists(st.integers(1, 12), max_size=4), st.floats(0.1, 0.9))
def test_multi_step(interval: tuple[int, int], milestones: list[int], gamma: float) -> None:
    begin, end = interval
    config = dict(type="MultiStepLR", milestones=milestones, gamma=gamma, begin=begin, end=end)
    check(config, lambda t, base: base * gamma ** sum(m <= t for m in milestones), begin, end)


@given(intervals, st.integers(1, 6))
def test_step(interval: tuple[int, int], size: int) -> None:
    begin, end = interval
    config = dict(type="StepLR", step_size=size, gamma=0.5, begin=begin, end=end)
    check(config, lambda t, base: base * 0.5 ** (t // size), begin, end)


@given(intervals, st.floats(0.1, 1))
def test_constant(interval: tuple[int, int], factor: float) -> None:
    begin, end = interval
    config = dict(type="ConstantLR", factor=factor, begin=begin, end=end)
    last = end - begin - 1
    check(config, lambda t, base: base if t == last else base * factor, begin, end)


@given(intervals, st.floats(0.5, 0.99))
def test_exponential(interval: tuple[int, int], gamma: float) -> None:
    begin, end = interval
    config = dict(type="ExponentialLR", gamma=gamma, begin=begin, end=end)
    check(config, lambda t, base: base * gamma**t, begin, end)


@given(intervals, st.floats(0, 0.02), st.sampled_from([0.9, 1.0, 2.0]))
def test_poly(interval: tuple[int, int], eta_min: float, power: float) -> None:
    begin, end = interval
    config = dict(type="PolyLR", eta_min=eta_min, power=power, begin=begin, end=end)
    length = end - begin - 1

    def curve(t: int, base: float) -> float:
        return (base - eta_min) * (1 - t / length) ** power + eta_min

    check(config, curve, begin, end)


@given(intervals)
def test_quadratic_warmup(interval: tuple[int, int]) -> None:
    begin, end = interval
    config = dict(type="mmdet.QuadraticWarmupLR", begin=begin, end=end)
    check(config, lambda t, base: base * ((t + 1) / (end - begin)) ** 2, begin, end)


@pytest.mark.parametrize(
    "config",
    [
        dict(type="CosineAnnealingLR", begin=1, end=6, T_max=5, eta_min=0.001),
        dict(type="MultiStepLR", begin=0, end=9, milestones=[3, 6]),
        dict(type="LinearLR", begin=0, end=2, start_factor=0.1),
        dict(type="QuadraticWarmupLR", begin=0, end=4),
        dict(type="StepLR", begin=0, end=9, step_size=2),
    ],
    ids=lambda config: config["type"],
)
def test_conversion_to_iterations_multiplies_every_count(config: dict) -> None:
    length = 7
    counts = ("begin", "end", "T_max", "milestones", "step_size")
    scaled = {
        key: [v * length for v in value] if isinstance(value, list) else value * length
        for key, value in config.items()
        if key in counts
    }
    by_hand = {**config, **scaled, "by_epoch": False}
    converted = {**config, "convert_to_iter_based": True}
    assert run([converted], 80, length) == run([by_hand], 80, length)


def test_conversion_of_iterations_is_refused() -> None:
    config = dict(type="LinearLR", by_epoch=False, end=3, convert_to_iter_based=True)
    with pytest.raises(ConfigError, match="convert_to_iter_based"):
        run([config], 1)


def test_the_recipe_of_rtmdet() -> None:
    """Warm-up over iterations, flat, then cosine from half of the epochs on."""
    epochs, length, base = 20, 10, BASES[0]
    configs = [
        dict(type="LinearLR", start_factor=1e-5, by_epoch=False, begin=0, end=30),
        dict(
            type="CosineAnnealingLR",
            eta_min=base * 0.05,
            begin=epochs // 2,
            end=epochs,
            T_max=epochs // 2,
            by_epoch=True,
            convert_to_iter_based=True,
        ),
    ]
    rates = [pair[0] for pair in run(configs, epochs * length, length)]
    for step, rate in enumerate(rates):
        if step < 30:
            expected = base * (1e-5 + (1 - 1e-5) * step / 29)
        elif step < 100:
            expected = base
        else:
            share = (1 + math.cos(math.pi * (step - 100) / 100)) / 2
            expected = base * (0.05 + 0.95 * share)
        assert rate == pytest.approx(expected, rel=1e-8), step


def test_default_end_is_that_of_training() -> None:
    epochs, iterations = make_optimizer(), make_optimizer()
    by_epoch = build_schedulers(dict(type="PolyLR"), epochs, 5, 12, 60)[0]
    by_iteration = build_schedulers(dict(type="PolyLR", by_epoch=False), iterations, 5, 12, 60)[0]
    assert (by_epoch.end, by_iteration.end) == (12, 60)


@given(st.integers(1, 30), st.sampled_from(sorted(set(SCHEDULERS))))
def test_state_goes_on_where_it_was(stop: int, kind: str) -> None:
    extra = {"MultiStepLR": {"milestones": [4, 9]}, "StepLR": {"step_size": 3}}
    config = dict(type=kind, begin=2, end=25, **extra.get(kind, {}))
    if kind == "ExponentialLR":
        config["gamma"] = 0.9
    expected = run([config], 40)
    first = make_optimizer()
    scheduler = build_schedulers(config, first, 5, 100, 500)[0]
    for _ in range(stop):
        scheduler.step()
    second = make_optimizer()
    resumed = build_schedulers(config, second, 5, 100, 500)[0]
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for step in range(stop, 40):
        assert [group["lr"] for group in second.param_groups] == expected[step]
        resumed.step()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="LinearLR", begin=5, end=5), "end after it begins"),
        (dict(type="LinearLR", start_factor=0), "start_factor"),
        (dict(type="LinearLR", end_factor=1.5), "end_factor"),
        (dict(type="ConstantLR", factor=2), "factor"),
        (dict(type="QuadraticWarmupLR", end=10**9), "needs an end"),
        (dict(type="CosineAnnealingLR", eta_min=0, eta_min_ratio=0.1), "not both"),
        (dict(type="CosineAnealingLR"), "Did you mean CosineAnnealingLR"),
        (dict(type="LinearLR", start=1), "unexpected keyword|start"),
        ("LinearLR", "dicts with a 'type'"),
    ],
)
def test_bad_configs(config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedulers([config], make_optimizer(), 5, 10, 50)  # type: ignore[list-item]
