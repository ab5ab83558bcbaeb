"""When checkpoints are saved, under which names, and which of them are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.atomic_file import atomic_path
from deploykit.errors import ConfigError, TrainingError
from deploykit.training.engine import distributed
from deploykit.training.engine.hook import Hook
from deploykit.training.registry import HOOKS

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch

LAST = "last.pth"
BEST = "best.pth"
_GREATER = ("acc", "top", "ar@", "auc", "precision", "map", "mdice", "miou", "macc", "aacc", "mar")


@HOOKS.register()
class CheckpointHook(Hook):
    """Saves ``epoch_N.pth`` or ``iter_N.pth`` at intervals, ``last.pth`` and ``best.pth``.

    ``last.pth`` is always the newest interval checkpoint (a second name of the same file);
    ``best.pth`` holds the weights with the best metric so far, without the optimizer. Every file is
    written under a temporary name and renamed, so a killed process leaves whole files only.

    Args:
        interval: Epochs (or iterations) between checkpoints; -1 saves at the end only.
        by_epoch: Whether ``interval`` counts epochs.
        save_optimizer: Whether training can be resumed from the checkpoints.
        save_param_scheduler: The same for the schedulers.
        max_keep_ckpts: How many interval checkpoints to keep; -1 keeps all.
        save_last: Whether to save when training ends, whatever the interval.
        save_best: Metric that ``best.pth`` maximises or minimises (``"coco/bbox_mAP"``), a list of
            metrics (``best_<metric>.pth`` each), ``"auto"`` for the first metric of the evaluator,
            or ``None``.
        rule: ``"greater"`` or ``"less"`` is better; by default told from the metric's name.
        save_begin: First epoch (or iteration) that the interval counts from.
        filename_tmpl: Name of interval checkpoints, with ``{}`` for the number.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = "auto",
        rule: str | None = None,
        save_begin: int = 0,
        filename_tmpl: str | None = None,
    ) -> None:
        if not isinstance(interval, int) or interval == 0 or save_begin < 0:
            raise ConfigError(
                "CheckpointHook needs an interval of at least 1 (or -1 for none) and save_begin "
                f">= 0, got {interval!r} and {save_begin!r}"
            )
        self.interval, self.by_epoch, self.begin = interval, by_epoch, save_begin
        self.resumable = save_optimizer and save_param_scheduler
        self.max_keep, self.save_last = max_keep_ckpts, save_last
        self.metrics = [save_best] if isinstance(save_best, str) else list(save_best or ())
        if "auto" in self.metrics and len(self.metrics) > 1:
            raise ConfigError("CheckpointHook.save_best: 'auto' cannot be one of several metrics")
        self.rule = rule
        self.template = filename_tmpl or ("epoch_{}.pth" if by_epoch else "iter_{}.pth")
        self.kept: list[str] = []
        self.best: dict[str, float] = {}
        self._saved_at = -1

    def before_train(self, trainer: Trainer) -> None:
        """Remove what a killed process left behind."""
        if trainer.resuming:
            self._saved_at = trainer.iterations_done
        self._remove_outdated(trainer)
        if distributed.rank() == 0:
            for leftover in trainer.work_dir.glob(".*.partial.pth"):
                leftover.unlink(missing_ok=True)

    def after_train_epoch(self, trainer: Trainer) -> None:
        """Save at the end of an epoch."""
        if self.by_epoch and self._due(trainer.epoch + 1, trainer.max_epochs):
            self._save(trainer, trainer.epoch + 1)

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """Save after an iteration."""
        if not self.by_epoch and self._due(trainer.iter + 1, trainer.max_iters):
            self._save(trainer, trainer.iter + 1)

    def after_train(self, trainer: Trainer) -> None:
        """Save what an early end would lose."""
        if self.save_last and self._saved_at != trainer.iterations_done:
            done = trainer.epochs_done if self.by_epoch else trainer.iterations_done
            self._save(trainer, done)

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Save the weights if they are the best so far."""
        if not metrics or not self.metrics:
            return
        several = len(self.metrics) > 1
        for wanted in self.metrics:
            metric = next(iter(metrics)) if wanted == "auto" else wanted
            if metric not in metrics:
                raise TrainingError(
                    f"save_best='{metric}' is not a metric of the evaluator; it computes "
                    f"{', '.join(metrics)}"
                )
            value, best = float(metrics[metric]), self.best.get(metric)
            greater = greater_is_better(metric, self.rule)
            if best is not None and not (value > best if greater else value < best):
                continue
            self.best[metric] = value
            name = f"best_{metric.replace('/', '_')}.pth" if several else BEST
            trainer.save_checkpoint(trainer.work_dir / name, resumable=False)
            trainer.logger.info("best %s so far: %.4f, saved as %s", metric, value, name)

    def state_dict(self) -> dict[str, Any]:
        """See ``Hook.state_dict``."""
        return {"kept": list(self.kept), "best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Hook.load_state_dict``."""
        self.kept, self.best = list(state["kept"]), dict(state["best"])

    def _due(self, done: int, total: int) -> bool:
        if self.save_last and done == total:
            return True
        since = done - self.begin
        return self.interval > 0 and since >= 0 and since % self.interval == 0

    def _save(self, trainer: Trainer, number: int) -> None:
        path = trainer.work_dir / self.template.format(number)
        if path.name not in self.kept:
            self.kept.append(path.name)
        # The checkpoint lists the outdated files too: whoever resumes from it deletes them if we
        # are killed before we do.
        trainer.save_checkpoint(path, resumable=self.resumable)
        if distributed.rank() == 0:
            _link(path, trainer.work_dir / LAST)
        self._remove_outdated(trainer)
        self._saved_at = trainer.iterations_done
        trainer.logger.info("saved %s", path)

    def _remove_outdated(self, trainer: Trainer) -> None:
        while 0 < self.max_keep < len(self.kept):
            outdated = trainer.work_dir / self.kept.pop(0)
            if distributed.rank() == 0:
                outdated.unlink(missing_ok=True)


def greater_is_better(metric: str, rule: str | None = None) -> bool:
    """Tell whether a greater value of a metric is better.

    Args:
        metric: Name of the metric.
        rule: ``"greater"``, ``"less"``, or ``None`` to go by the name.

    Raises:
        ConfigError: The rule is unknown, or the name does not tell.
    """
    if rule not in (None, "greater", "less"):
        raise ConfigError(f"the rule for '{metric}' must be 'greater' or 'less', got {rule!r}")
    name = metric.lower()
    if rule is not None:
        return rule == "greater"
    if any(part in name for part in _GREATER):
        return True
    if "loss" in name:
        return False
    raise ConfigError(f"cannot tell whether a greater '{metric}' is better; set rule='greater'")


def latest_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that an interrupted run in ``work_dir`` goes on from, if any."""
    last = work_dir / LAST
    return last if last.is_file() else None


def _link(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source``, replacing it whole (a copy where links fail)."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
