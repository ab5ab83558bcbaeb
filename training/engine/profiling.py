"""How long a training iteration takes, and what it spends its time on."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploykit.errors import UsageError
from deploykit.training.engine.hook import Hook
from deploykit.training.engine.phase_clock import PHASES
from deploykit.training.engine.schedule import TrainSchedule

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch

_MEANINGS = {
    "data": "data (wait)",
    "forward": "forward, losses",
    "backward": "backward",
    "step": "optimizer",
    "hooks": "EMA, schedule",
    "total": "iteration",
}


@dataclass(frozen=True)
class Spread:
    """The distribution of some times, in seconds.

    Args:
        median: Half of them are shorter.
        p10: A tenth of them is shorter.
        p90: A tenth of them is longer.
        mean: Their mean.
    """

    median: float
    p10: float
    p90: float
    mean: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Describe some values."""
        if len(values) == 1:
            return cls(*values * 4)
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), deciles[0], deciles[-1], statistics.fmean(values))


@dataclass(frozen=True)
class TrainingProfile:
    """Times of training iterations.

    Args:
        iterations: How many were measured.
        phases: Times per phase, and of the ``total``.
    """

    iterations: int
    phases: dict[str, Spread]

    def render(self) -> Table:
        """Return the profile as a table."""
        table = Table(title=f"one training iteration, {self.iterations} measured")
        table.add_column("phase")
        for column in ("median", "10 %", "90 %", "mean", "share"):
            table.add_column(column, justify="right")
        whole = self.phases["total"].mean
        for name, spread in self.phases.items():
            times = (spread.median, spread.p10, spread.p90, spread.mean)
            share = f"{100 * spread.mean / whole:.1f} %"
            cells = [f"{1000 * seconds:.1f} ms" for seconds in times]
            table.add_row(_MEANINGS[name], *cells, share, end_section=name == PHASES[-1])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain types, in seconds."""
        phases = {name: vars(spread).copy() for name, spread in self.phases.items()}
        return {"iterations": self.iterations, "seconds": phases}


class _ProfileHook(Hook):
    """Collects the times of iterations."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """Take the times of the iterations that are finished."""
        self.seconds += [dict(record.seconds) for record in trainer.monitor.take()]


def profile_training(trainer: Trainer, iterations: int, warmup: int = 5) -> TrainingProfile:
    """Time training iterations, from waiting for the data to the averaged weights.

    Args:
        trainer: A trainer without hooks that write; it trains no further than this.
        iterations: Iterations to measure.
        warmup: Iterations before, which are not measured.

    Raises:
        UsageError: ``iterations`` is not positive.
    """
    if iterations < 1:
        raise UsageError(f"--profile-iterations must be at least 1, got {iterations}")
    hook = _ProfileHook()
    trainer.hooks.append(hook)
    # One more at the end: what hooks cost is known when the next iteration is over.
    trainer.schedule = TrainSchedule(by_epoch=False, length=warmup + iterations + 1)
    trainer.validator = None
    trainer.train()
    measured = hook.seconds[warmup:]
    rows = [{**row, "hooks": following["hooks"]} for row, following in itertools.pairwise(measured)]
    phases = {name: Spread.of([row[name] for row in rows]) for name in PHASES}
    phases["total"] = Spread.of([sum(row.values()) for row in rows])
    return TrainingProfile(len(rows), phases)
