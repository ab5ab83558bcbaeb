"""Parameter schedulers with MMEngine's names, arguments and numbers.

A scheduler multiplies or moves what it finds in the optimizer, step by step, so several of them can
act one after another or at the same time. The recursive forms below are those of the original
papers written so that a value only depends on the one before it; ``tests`` holds the closed forms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer

from deploykit.errors import ConfigError
from deploykit.training.registry import SCHEDULERS

NEVER = 10**9


class ParamScheduler:
    """Moves the learning rate of every parameter group along a curve.

    The scheduler counts its own steps: step 0 is taken on construction, the next ones with
    ``step()``. It only acts on steps in ``[begin, end)``; before and after it leaves the learning
    rate as it is.

    Args:
        optimizer: The optimizer whose groups are scheduled.
        begin: First step it acts on.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch (else an iteration).

    Attributes:
        epoch_arguments: Names of the arguments that count steps, which
            ``convert_to_iter_based`` multiplies with the length of an epoch.
    """

    epoch_arguments: ClassVar[tuple[str, ...]] = ("begin", "end")

    def __init__(
        self, optimizer: Optimizer, begin: int = 0, end: int = NEVER, by_epoch: bool = True
    ) -> None:
        if not 0 <= begin < end:
            raise ConfigError(
                f"{type(self).__name__} must end after it begins, got begin={begin}, end={end}"
            )
        self.optimizer = optimizer
        self.begin, self.end, self.by_epoch = begin, end, by_epoch
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self._steps_taken = 0
        self._update()

    def step(self) -> None:
        """Move on by one epoch or iteration."""
        self._steps_taken += 1
        self._update()

    def next_value(self, current: float, base: float, step: int) -> float:
        """Return the learning rate of one group.

        Args:
            current: Its value now.
            base: Its value before any scheduling.
            step: Steps since ``begin``.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Return what has to be stored to go on from here."""
        return {"steps_taken": self._steps_taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a stored state; the optimizer restores the learning rates themselves."""
        self._steps_taken = int(state["steps_taken"])

    def _update(self) -> None:
        if self.begin <= self._steps_taken < self.end:
            step = self._steps_taken - self.begin
            for group, base in zip(self.optimizer.param_groups, self.base_values, strict=True):
                group["lr"] = self.next_value(group["lr"], base, step)


@SCHEDULERS.register()
class LinearLR(ParamScheduler):
    """Scales the learning rate by a factor that moves linearly between two values.

    Args:
        optimizer: The optimizer.
        start_factor: Factor on the first step, 0..1 (more than 0 to get off the ground).
        end_factor: Factor on the last step, 0..1.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        if not (0 < start_factor <= 1 and 0 <= end_factor <= 1):
            raise ConfigError(
                f"LinearLR needs 0 < start_factor <= 1 and 0 <= end_factor <= 1, got "
                f"{start_factor} and {end_factor}"
            )
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total = end - begin - 1
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        if step == 0:
            return current * self.start_factor
        change = self.end_factor - self.start_factor
        return current * (1.0 + change / (self.total * self.start_factor + (step - 1) * change))


@SCHEDULERS.register()
class CosineAnnealingLR(ParamScheduler):
    """Half a cosine from the learning rate down to a minimum (SGDR, arXiv 1608.03983).

    Args:
        optimizer: The optimizer.
        T_max: Steps to the minimum; the length of the interval by default.
        eta_min: The minimum; 0 by default.
        eta_min_ratio: The minimum as a fraction of the initial value, instead of ``eta_min``.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    epoch_arguments = ("begin", "end", "T_max")

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int | None = None,
        eta_min: float | None = None,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
        eta_min_ratio: float | None = None,
    ) -> None:
        if eta_min is not None and eta_min_ratio is not None:
            raise ConfigError("CosineAnnealingLR takes eta_min or eta_min_ratio, not both")
        self.period = T_max or (end - begin)
        self.eta_min, self.eta_min_ratio = eta_min or 0.0, eta_min_ratio
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        if step == 0:
            return current
        lowest = self.eta_min if self.eta_min_ratio is None else base * self.eta_min_ratio
        if (step - 1 - self.period) % (2 * self.period) == 0:
            # One step after the bottom of the cosine, where the ratio below is 0 / 0.
            return current + (base - lowest) * (1 - math.cos(math.pi / self.period)) / 2
        now = 1 + math.cos(math.pi * step / self.period)
        before = 1 + math.cos(math.pi * (step - 1) / self.period)
        return now / before * (current - lowest) + lowest


@SCHEDULERS.register()
class MultiStepLR(ParamScheduler):
    """Multiplies the learning rate by ``gamma`` at each milestone.

    Args:
        optimizer: The optimizer.
        milestones: Steps since ``begin``; one that is listed twice counts twice.
        gamma: The factor.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    epoch_arguments = ("begin", "end", "milestones")

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        self.milestones, self.gamma = Counter(milestones), gamma
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        return float(current * self.gamma ** self.milestones[step])


@SCHEDULERS.register()
class StepLR(ParamScheduler):
    """Multiplies the learning rate by ``gamma`` every ``step_size`` steps.

    Args:
        optimizer: The optimizer.
        step_size: Steps between two changes.
        gamma: The factor.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    epoch_arguments = ("begin", "end", "step_size")

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: int,
        gamma: float = 0.1,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        return current * self.gamma if step > 0 and step % self.step_size == 0 else current


@SCHEDULERS.register()
class ConstantLR(ParamScheduler):
    """Scales the learning rate by a factor until the last step, which takes the factor back.

    Args:
        optimizer: The optimizer.
        factor: The factor, 0..1 (more than 0, so that it can be taken back).
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1 / 3,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        if not 0 < factor <= 1:
            raise ConfigError(f"ConstantLR needs 0 < factor <= 1, got {factor}")
        self.factor, self.last = factor, end - begin - 1
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        if step == 0:
            return current * self.factor
        return current * (1.0 / self.factor) if step == self.last else current


@SCHEDULERS.register()
class ExponentialLR(ParamScheduler):
    """Multiplies the learning rate by ``gamma`` on every step but the first.

    Args:
        optimizer: The optimizer.
        gamma: The factor.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        self.gamma = gamma
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        return current if step == 0 else current * self.gamma


@SCHEDULERS.register()
class PolyLR(ParamScheduler):
    """Polynomial decay from the learning rate down to a minimum.

    Args:
        optimizer: The optimizer.
        eta_min: The minimum, reached on the last step.
        power: Power of the polynomial; 1 is a straight line.
        begin: First step.
        end: Step before which it stops.
        by_epoch: Whether a step is an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        eta_min: float = 0.0,
        power: float = 1.0,
        begin: int = 0,
        end: int = NEVER,
        by_epoch: bool = True,
    ) -> None:
        self.eta_min, self.power, self.total = eta_min, power, end - begin - 1
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        if step == 0:
            return current
        left = (1 - 1 / (self.total - step + 1)) ** self.power
        return float((current - self.eta_min) * left + self.eta_min)


@SCHEDULERS.register()
class QuadraticWarmupLR(ParamScheduler):
    """Warm-up with the square of the progress: ``base * ((step + 1) / length)²`` (YOLOX).

    Args:
        optimizer: The optimizer.
        begin: First step.
        end: Step before which it stops; it must be given.
        by_epoch: Whether a step is an epoch.
    """

    def __init__(
        self, optimizer: Optimizer, begin: int = 0, end: int = NEVER, by_epoch: bool = True
    ) -> None:
        if end >= NEVER:
            raise ConfigError("QuadraticWarmupLR needs an end: the number of warm-up steps")
        self.total = end - begin
        super().__init__(optimizer, begin, end, by_epoch)

    def next_value(self, current: float, base: float, step: int) -> float:
        """See ``ParamScheduler.next_value``."""
        start = 0.0 if step == 0 else current
        return start + base * (2 * step + 1) / self.total**2


def build_schedulers(
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    optimizer: Optimizer,
    epoch_length: int,
    max_epochs: int,
    max_iters: int,
) -> list[ParamScheduler]:
    """Build ``param_scheduler`` of a config.

    Args:
        config: One scheduler or a list of them.
        optimizer: The optimizer they act on.
        epoch_length: Iterations per epoch, for ``convert_to_iter_based``.
        max_epochs: Default ``end`` of schedulers that count epochs.
        max_iters: Default ``end`` of schedulers that count iterations.

    Raises:
        ConfigError: Unknown types or arguments that make no sense.
    """
    entries = [config] if isinstance(config, Mapping) else list(config or ())
    schedulers = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ConfigError(f"param_scheduler must hold dicts with a 'type', got {entry!r:.80}")
        arguments = dict(entry)
        by_epoch = arguments.setdefault("by_epoch", True)
        arguments.setdefault("end", max_epochs if by_epoch else max_iters)
        arguments.pop("verbose", None)
        if arguments.pop("convert_to_iter_based", False):
            arguments = _in_iterations(arguments, epoch_length)
        schedulers.append(SCHEDULERS.build(arguments, optimizer=optimizer))
    return schedulers


def _in_iterations(arguments: dict[str, Any], epoch_length: int) -> dict[str, Any]:
    if not arguments["by_epoch"]:
        raise ConfigError(
            f"{arguments.get('type')}: convert_to_iter_based needs by_epoch=True; the numbers are "
            "iterations already"
        )
    scheduler = SCHEDULERS.get(str(arguments.get("type")))
    converted = arguments | {"by_epoch": False}
    for name in getattr(scheduler, "epoch_arguments", ()):
        value = arguments.get(name)
        if isinstance(value, (list, tuple)):
            converted[name] = [int(entry * epoch_length) for entry in value]
        elif value is not None and value != NEVER:
            converted[name] = int(value * epoch_length)
    return converted
