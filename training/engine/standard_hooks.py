"""Small hooks of MMEngine and MMDetection that configs name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.errors import ConfigError, TrainingError
from deploykit.training.engine.checkpoint_hook import greater_is_better
from deploykit.training.engine.hook import Hook
from deploykit.training.registry import HOOKS

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch


@HOOKS.register()
class ParamSchedulerHook(Hook):
    """Moves the parameter schedulers after every iteration or epoch."""

    priority = "LOW"

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """Move the schedulers that count iterations."""
        for scheduler in trainer.param_schedulers:
            if not scheduler.by_epoch:
                scheduler.step()

    def after_train_epoch(self, trainer: Trainer) -> None:
        """Move the schedulers that count epochs."""
        for scheduler in trainer.param_schedulers:
            if scheduler.by_epoch:
                scheduler.step()


@HOOKS.register()
class PipelineSwitchHook(Hook):
    """Replaces the training pipeline at an epoch, for RTMDet's last epochs without mosaic.

    Args:
        switch_epoch: Number of epochs that use the first pipeline.
        switch_pipeline: Transforms of the second one.
    """

    def __init__(self, switch_epoch: int, switch_pipeline: Sequence[Mapping[str, Any]]) -> None:
        self.switch_epoch, self.pipeline = switch_epoch, switch_pipeline
        self._switched = False

    def before_train_epoch(self, trainer: Trainer) -> None:
        """Switch when it is time, also after a resume."""
        if trainer.epoch >= self.switch_epoch and not self._switched:
            self._switched = True
            trainer.logger.info("epoch %d: switching the training pipeline", trainer.epoch + 1)
            trainer.train_dataloader.switch_pipeline(self.pipeline)


@HOOKS.register()
class YOLOXModeSwitchHook(Hook):
    """Ends YOLOX's training without mosaic and mixup, and with an L1 loss on the boxes.

    Args:
        num_last_epochs: Number of epochs that end training so.
        skip_type_keys: Type names of the transforms that are left out then.
    """

    def __init__(
        self,
        num_last_epochs: int = 15,
        skip_type_keys: Sequence[str] = ("Mosaic", "RandomAffine", "MixUp"),
    ) -> None:
        self.num_last_epochs, self.skipped = num_last_epochs, tuple(skip_type_keys)
        self._switched = False

    def before_train_epoch(self, trainer: Trainer) -> None:
        """Switch when it is time, also after a resume."""
        if self._switched or trainer.epoch < trainer.max_epochs - self.num_last_epochs:
            return
        head: Any = getattr(trainer.model, "bbox_head", None)
        if not hasattr(head, "use_l1"):
            raise ConfigError("YOLOXModeSwitchHook needs a head with an L1 loss (YOLOXHead)")
        self._switched = True
        trainer.logger.info(
            "epoch %d: no %s from now on", trainer.epoch + 1, ", ".join(self.skipped)
        )
        trainer.train_dataloader.skip_transforms(self.skipped)
        head.use_l1 = True


@HOOKS.register()
class EarlyStoppingHook(Hook):
    """Ends training when a metric has stopped getting better.

    Args:
        monitor: The metric.
        rule: ``"greater"`` or ``"less"`` is better.
        min_delta: Change that counts as better.
        strict: Whether a missing metric is an error (else it is logged).
        check_finite: Whether a metric that is not finite ends training.
        patience: Validations without improvement after which training ends.
        stopping_threshold: Value of the metric that is good enough to end training.
    """

    priority = "LOWEST"

    def __init__(
        self,
        monitor: str,
        rule: str | None = None,
        min_delta: float = 0.1,
        strict: bool = False,
        check_finite: bool = True,
        patience: int = 5,
        stopping_threshold: float | None = None,
    ) -> None:
        self.monitor, self.strict, self.check_finite = monitor, strict, check_finite
        self.sign = 1.0 if greater_is_better(monitor, rule) else -1.0
        self.min_delta, self.patience, self.threshold = min_delta, patience, stopping_threshold
        self.best, self.waited = -math.inf, 0

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Look at the metric."""
        if self.monitor not in metrics:
            message = f"early stopping: no metric '{self.monitor}' among {', '.join(metrics)}"
            if self.strict:
                raise TrainingError(message)
            trainer.logger.warning(message)
            return
        value = self.sign * float(metrics[self.monitor])
        reason = ""
        if self.check_finite and not math.isfinite(value):
            reason = f"{self.monitor} is {metrics[self.monitor]}"
        elif self.threshold is not None and value > self.sign * self.threshold:
            reason = f"{self.monitor} has passed {self.threshold}"
        elif value < self.best + self.min_delta:
            self.waited += 1
            if self.waited >= self.patience:
                reason = f"{self.monitor} did not improve in {self.waited} validations"
        else:
            self.best, self.waited = value, 0
        if reason:
            trainer.logger.info("training ends early: %s", reason)
            trainer.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        """See ``Hook.state_dict``."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``Hook.load_state_dict``."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
