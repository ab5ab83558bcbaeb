from __future__ import annotations

import math

import pytest
import torch

from deploykit.errors import TrainingError
from deploykit.training.engine.loss_monitor import IterationRecord, LossMonitor
from deploykit.training.engine.phase_clock import PHASES, PhaseClock


def record(number: int = 1, images: int = 2) -> IterationRecord:
    paths = [f"img{index}.jpg" for index in range(images)]
    return IterationRecord(number, 1, 0.1, paths, seconds=dict.fromkeys(PHASES, 0.0))


def terms(value: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value), "loss_cls": torch.tensor(value / 2)}


def test_records_carry_values_once() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    monitor.submit(record(1), terms(4.0), torch.tensor(2.5))
    monitor.submit(record(2), terms(6.0), None)
    first, second = monitor.take()
    assert (first.terms, first.grad_norm) == ({"loss": 4.0, "loss_cls": 2.0}, 2.5)
    assert (second.iteration, second.terms["loss"], second.grad_norm) == (2, 6.0, None)
    assert monitor.take() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_names_terms_and_images(value: float) -> None:
    monitor = LossMonitor(torch.device("cpu"), skips_overflow=True)
    with pytest.raises(TrainingError) as caught:
        monitor.submit(record(7, images=11), terms(value), torch.tensor(1.0))
    message = str(caught.value)
    assert "the loss is not finite in iteration 7" in message
    assert f"loss_cls={value:g}" in message
    assert "img0.jpg" in message
    assert "img7.jpg and 3 more" in message


def test_overflowing_gradients_are_part_of_loss_scaling() -> None:
    strict, scaling = (LossMonitor(torch.device("cpu"), skips) for skips in (False, True))
    scaling.submit(record(), terms(1.0), torch.tensor(math.inf))
    assert scaling.take()[0].grad_norm == math.inf
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        strict.submit(record(), terms(1.0), torch.tensor(math.inf))


def test_low_precision_losses_are_read_as_float32() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    monitor.submit(record(), {"loss": torch.tensor(1.5, dtype=torch.bfloat16)}, None)
    assert monitor.take()[0].terms == {"loss": 1.5}


def test_the_clock_counts_hooks_for_the_next_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = PhaseClock()

    def lap(phase: str, seconds: float) -> None:
        now[0] += seconds
        clock.lap(phase)

    clock.start()
    lap("data", 1)
    lap("forward", 2)
    reported = clock.seconds
    lap("backward", 3)
    lap("step", 4)
    lap("hooks", 5)
    now[0] += 100  # validation
    clock.start()
    lap("data", 6)
    assert reported == {"data": 1, "forward": 2, "backward": 3, "step": 4, "hooks": 5}
    assert clock.seconds == {"data": 6, "forward": 0, "backward": 0, "step": 0, "hooks": 5}
