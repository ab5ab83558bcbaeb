"""``TrainSchedule``: how long to train and when to validate (``train_cfg`` of a config)."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.errors import ConfigError

_LOOPS = {
    "EpochBasedTrainLoop": ("max_epochs", 1),
    "IterBasedTrainLoop": ("max_iters", 1000),
}


@dataclass(frozen=True)
class TrainSchedule:
    """How long to train and when to validate, in epochs or in iterations.

    Args:
        by_epoch: Whether the numbers count epochs.
        length: When training ends.
        val_begin: First time that validation may happen.
        val_interval: How often to validate.
        dynamic_intervals: (from, interval) pairs that replace ``val_interval``.
    """

    by_epoch: bool
    length: int
    val_begin: int = 1
    val_interval: int = 1
    dynamic_intervals: tuple[tuple[int, int], ...] = ()

    def validates(self, done: int) -> bool:
        """Whether validation follows after ``done`` epochs (or iterations).

        The interval in force is the one of the next epoch, as in MMEngine.
        """
        starts = [0, *(start for start, _ in self.dynamic_intervals)]
        intervals = [self.val_interval, *(interval for _, interval in self.dynamic_intervals)]
        interval = intervals[bisect.bisect(starts, done + 1) - 1]
        return done >= self.val_begin and (done % interval == 0 or done == self.length)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> TrainSchedule:
        """Read ``train_cfg``.

        Args:
            config: ``EpochBasedTrainLoop`` with ``max_epochs``, or ``IterBasedTrainLoop`` with
                ``max_iters``; ``val_begin``, ``val_interval``, ``dynamic_intervals``.

        Raises:
            ConfigError: Anything else.
        """
        if not isinstance(config, Mapping):
            raise ConfigError("the config has no train_cfg; add train_cfg=dict(max_epochs=...)")
        options = dict(config)
        # MMEngine still takes by_epoch instead of a type.
        by_epoch = options.pop("by_epoch", "max_iters" not in options)
        default = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
        loop = str(options.pop("type", default)).split(".")[-1]
        if loop not in _LOOPS:
            raise ConfigError(f"unknown train_cfg.type '{loop}'; use one of {', '.join(_LOOPS)}")
        key, default_interval = _LOOPS[loop]
        if key not in options:
            raise ConfigError(f"train_cfg of type {loop} needs {key}")
        length = _whole(options.pop(key), key)
        val_begin = _whole(options.pop("val_begin", 1), "val_begin", 0)
        val_interval = _whole(options.pop("val_interval", default_interval), "val_interval")
        dynamic = _intervals(options.pop("dynamic_intervals", None) or ())
        if options:
            raise ConfigError(f"train_cfg of type {loop} has no option '{next(iter(options))}'")
        return cls(loop == "EpochBasedTrainLoop", length, val_begin, val_interval, dynamic)


def _intervals(value: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, Sequence) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 for pair in value
    ):
        raise ConfigError(
            f"train_cfg.dynamic_intervals must be (from, interval) pairs: {value!r:.80}"
        )
    pairs = tuple(
        (_whole(start, "dynamic_intervals", 0), _whole(interval, "dynamic_intervals"))
        for start, interval in value
    )
    if list(pairs) != sorted(pairs):
        raise ConfigError("train_cfg.dynamic_intervals must be in ascending order")
    return pairs


def _whole(value: object, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ConfigError(f"train_cfg.{name} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigError(f"train_cfg.{name} must be at least {least}, got {value}")
    return int(value)
