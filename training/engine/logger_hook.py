"""``LoggerHook``: what is reported while training, and when."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from deploykit.errors import ConfigError
from deploykit.training.engine.hook import Hook
from deploykit.training.engine.loss_monitor import IterationRecord
from deploykit.training.engine.run_log import TERMINAL_ONLY, TEXT_ONLY
from deploykit.training.registry import HOOKS

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch


@HOOKS.register()
class LoggerHook(Hook):
    """Reports losses, learning rate, times and memory every few iterations, and the metrics.

    Args:
        interval: Iterations between reports; losses and times are means over them.
        ignore_last: Whether the iterations of an epoch past the last full interval go unreported,
            unless the epoch is shorter than the interval.
        log_metric_by_epoch: Accepted for compatibility; metrics are filed under iterations.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self, interval: int = 10, ignore_last: bool = True, log_metric_by_epoch: bool = True
    ) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"LoggerHook.interval must be at least 1, got {interval!r}")
        self.interval, self.ignore_last = interval, ignore_last
        self._window = _Window()
        self._epoch = _Window()
        self._run = _Window()
        self._validation_seconds: list[float] = []
        self._validation_start = 0.0
        self._validations: list[int] = []

    def before_train(self, trainer: Trainer) -> None:
        """Plan, for the estimate of the time that is left."""
        schedule = trainer.schedule
        if trainer.validator is not None:
            self._validations = [
                done for done in range(1, schedule.length + 1) if schedule.validates(done)
            ]
        trainer.log.start_progress(trainer.max_iters, trainer.iterations_done)

    def before_train_epoch(self, trainer: Trainer) -> None:
        """Begin new means."""
        self._window, self._epoch = _Window(), _Window()

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """Report the iterations whose losses have arrived."""
        self._take(trainer)

    def after_train_epoch(self, trainer: Trainer) -> None:
        """Report what is left of the epoch."""
        trainer.monitor.settle()
        self._take(trainer)
        short = self._epoch.count < self.interval
        if self._window.count and (short or not self.ignore_last):
            self._report(trainer)
        if self._epoch.count:
            trainer.logger.info(
                "%s: %s", self._place(trainer), self._epoch.text(), extra=TERMINAL_ONLY
            )

    def before_val(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._validation_start = time.perf_counter()

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Report the metrics."""
        seconds = time.perf_counter() - self._validation_start
        self._validation_seconds.append(seconds)
        shown = metrics_text(metrics)
        unit, done = (
            ("epoch", trainer.epoch) if trainer.schedule.by_epoch else ("iteration", trainer.iter)
        )
        trainer.logger.info("validation after %s %d (%.1f s): %s", unit, done, seconds, shown)
        trainer.log.scalars("val", trainer.iterations_done, max(trainer.epoch, 1), metrics)

    def _take(self, trainer: Trainer) -> None:
        for record in trainer.monitor.take():
            for window in (self._window, self._epoch, self._run):
                window.add(record)
            status = f"{self._window.text(with_terms=False)}  ETA {self._time_left(trainer)}"
            trainer.log.progress(record.iteration, self._place(trainer), status)
            if self._epoch.count % self.interval == 0:
                self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        window, self._window = self._window, _Window()
        record = window.last
        memory = memory_in_use(trainer.device)
        trainer.logger.info(
            "%s [%d/%d]  %s  %d MB  ETA %s",
            self._place(trainer),
            record.iteration,
            trainer.max_iters,
            window.text(),
            memory,
            self._time_left(trainer),
            extra=TEXT_ONLY,
        )
        values = {"lr": record.learning_rate, **window.means(), "memory": memory}
        trainer.log.scalars("train", record.iteration, record.epoch, values)

    def _place(self, trainer: Trainer) -> str:
        if not trainer.schedule.by_epoch:
            return "iteration"
        return f"epoch {trainer.epoch + 1}/{trainer.max_epochs}"

    def _time_left(self, trainer: Trainer) -> str:
        seconds = self._run.mean("time") * (trainer.max_iters - trainer.iterations_done)
        done = trainer.epochs_done if trainer.schedule.by_epoch else trainer.iterations_done
        if self._validation_seconds:
            mean = sum(self._validation_seconds) / len(self._validation_seconds)
            seconds += mean * sum(1 for point in self._validations if point > done)
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Window:
    """Means over some iterations."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._last: IterationRecord | None = None

    @property
    def last(self) -> IterationRecord:
        """The newest record."""
        if self._last is None:
            raise LookupError("no iteration was recorded yet")
        return self._last

    def add(self, record: IterationRecord) -> None:
        """Take an iteration in."""
        values = dict(record.terms)
        if record.grad_norm is not None:
            values["grad_norm"] = record.grad_norm
        values["time"] = sum(record.seconds.values())
        values["data_time"] = record.seconds["data"]
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1
        self.count += 1
        self._last = record

    def mean(self, name: str) -> float:
        """Return one mean; 0 if there was nothing."""
        return self._sums[name] / self._counts[name] if self._counts[name] else 0.0

    def means(self) -> dict[str, float]:
        """Return all means."""
        return {name: self.mean(name) for name in list(self._sums)}

    def text(self, with_terms: bool = True) -> str:
        """Return the means in words."""
        means = self.means()
        seconds, data = means.pop("time", 0.0), means.pop("data_time", 0.0)
        norm = means.pop("grad_norm", None)
        total = means.pop("loss", 0.0)
        terms = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        parts = [
            f"loss {total:.4f}" + (f" ({terms})" if terms and with_terms else ""),
            f"lr {self.last.learning_rate:.3e}",
        ]
        if norm is not None and with_terms:
            parts.append(f"grad_norm {norm:.3g}")
        share = 100 * data / seconds if seconds else 0.0
        parts.append(f"{seconds:.3f} s/it, {share:.0f} % data")
        return "  ".join(parts)


def metrics_text(metrics: dict[str, float]) -> str:
    """Return metrics in one line, without the undefined ones (-1: no object of the kind)."""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value != -1)


def memory_in_use(device: torch.device) -> int:
    """Return the peak memory in MB: of the GPU that trains, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) // 2**20)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))
