"""``Trainer``: the training loop, with hooks at MMEngine's points.

What happens in which order, for epochs::

    before_run, load or resume, before_train
    for each epoch:   before_train_epoch
        for each batch:   before_train_iter, forward, backward, step, after_train_iter
        after_train_epoch                     (schedulers move, checkpoints are saved)
        if due: before_val, before_val_epoch, ..., after_val_epoch, after_val   (best.pth is saved)
    after_train, after_run

A run that is killed at any moment and resumed from its last checkpoint reaches the same weights,
bit by bit, as one that was not: a checkpoint holds the weights, their average, the optimizer with
gradients not yet used, the schedulers, the state of the hooks and of the random generators, and the
data of an epoch depends on seed and epoch alone. Batches of the epoch that were seen before the
checkpoint are passed over; where mosaic and mixup keep caches they are drawn again and dropped, so
that the caches are filled alike.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deploykit.errors import TrainingError
from deploykit.training.checkpoint import write_checkpoint
from deploykit.training.engine import distributed
from deploykit.training.engine.hook import Hook, priority_number
from deploykit.training.engine.loss_monitor import IterationRecord, LossMonitor
from deploykit.training.engine.phase_clock import PhaseClock
from deploykit.training.engine.randomness import set_random_state
from deploykit.training.engine.run_log import RunLog
from deploykit.training.engine.schedule import TrainSchedule
from deploykit.training.engine.training_state import collect_state, load_weights, restore_state

if TYPE_CHECKING:
    from deploykit.training.data.loader import DetectionLoader
    from deploykit.training.engine.optim_wrapper import OptimWrapper
    from deploykit.training.engine.schedulers import ParamScheduler
    from deploykit.training.engine.validation import Validator
    from deploykit.training.models import BaseDetector
    from deploykit.training.structures import Batch


@dataclass
class Trainer:
    """Trains a detector. ``build_trainer`` makes one from a config.

    Args:
        model: The detector, on ``device``.
        network: What is called with a batch to get losses: the model, compiled or wrapped for
            several processes.
        device: Where training happens.
        train_dataloader: Training batches.
        optim_wrapper: Optimizer, precision, clipping.
        param_schedulers: They move the learning rate.
        schedule: How long to train and when to validate.
        hooks: Called in the order of their priority.
        work_dir: Folder for checkpoints.
        log: Where numbers and progress go.
        validator: Measures the model; ``None`` trains without validation.
        meta: What every checkpoint says about the run (config, classes, seed, model spec...).
        checkpoint: What to begin with: a checkpoint's content.
        resuming: Whether to go on with the run that wrote ``checkpoint`` (else its weights are the
            start of a new one).
        clock: Where the time of an iteration goes.
        endless_data: Whether iterating over the training batches never ends.

    Attributes:
        epoch: Epochs that are over; within ``after_train_epoch`` the current one is not.
        iter: Iterations that are over; within ``after_train_iter`` the current one is not.
        epochs_done: Like ``epoch``, but counting the current one in ``after_train_epoch``.
        iterations_done: Like ``iter``, but counting the current one in ``after_train_iter``.
        stop_training: A hook that sets this ends training after the current epoch (or iteration).
        validated_at: Iterations that were over when the model was last measured.
        metrics: Those of the last validation.
    """

    model: BaseDetector
    network: nn.Module
    device: torch.device
    train_dataloader: DetectionLoader
    optim_wrapper: OptimWrapper
    param_schedulers: list[ParamScheduler]
    schedule: TrainSchedule
    hooks: list[Hook]
    work_dir: Path
    log: RunLog
    validator: Validator | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] | None = None
    resuming: bool = False
    clock: PhaseClock = field(default_factory=PhaseClock)
    endless_data: bool = False

    def __post_init__(self) -> None:
        self.logger = logging.getLogger("deploykit.training")
        self.hooks = sorted(self.hooks, key=priority_number)
        self.monitor = LossMonitor(self.device, self.optim_wrapper.skips_overflow)
        self.epoch = self.epochs_done = self.iter = self.iterations_done = 0
        self.stop_training = False
        self.metrics: dict[str, float] = {}
        self.validated_at = 0

    @property
    def max_epochs(self) -> int:
        """How many epochs to train (1 for training by iterations)."""
        return self.schedule.length if self.schedule.by_epoch else 1

    @property
    def max_iters(self) -> int:
        """How many iterations to train."""
        length = self.schedule.length
        return length * len(self.train_dataloader) if self.schedule.by_epoch else length

    def train(self) -> dict[str, float]:
        """Train to the end of the schedule.

        Returns:
            The metrics of the last validation.

        Raises:
            TrainingError: The loss is not finite, or a hook stopped the run.
            CheckpointError: The checkpoint to begin with does not fit.
            DatasetError: No usable sample could be had.
        """
        try:
            self._start()
            if self.schedule.by_epoch:
                self._train_epochs()
            else:
                self._train_iterations()
            self.monitor.settle()
            self.call_hook("after_train")
            self.call_hook("after_run")
        finally:
            self.train_dataloader.close()
            if self.validator is not None:
                self.validator.dataloader.close()
        return self.metrics

    def _train_epochs(self) -> None:
        self._validate_if_due(self.epoch)  # when killed between a checkpoint and its validation
        while self.epoch < self.max_epochs and not self.stop_training:
            self.call_hook("before_train_epoch")
            self.model.train()
            self.train_dataloader.set_epoch(self.epoch)
            seen = self.iter - self.epoch * len(self.train_dataloader)
            for index, batch in self._batches(seen):
                self._run_iteration(index, batch)
            self._check_epoch_is_complete()
            self.epochs_done += 1
            self.call_hook("after_train_epoch")
            self.epoch += 1
            self._validate_if_due(self.epoch)

    def _train_iterations(self) -> None:
        self.call_hook("before_train_epoch")
        self._validate_if_due(self.iter)
        while self.iter < self.max_iters and not self.stop_training:
            # A sampler that ends begins anew, with another order; an endless one goes on.
            length = self.max_iters if self.endless_data else len(self.train_dataloader)
            passes, seen = divmod(self.iter, length)
            self.train_dataloader.set_epoch(passes)
            self.model.train()
            for index, batch in self._batches(seen):
                self._run_iteration(index, batch)
                self._validate_if_due(self.iter)
                if self.iter >= self.max_iters or self.stop_training:
                    break
        self.call_hook("after_train_epoch")

    def _batches(self, seen: int) -> Iterator[tuple[int, Batch]]:
        """Yield (index, batch) of the current epoch from number ``seen`` on, and time them."""
        replayed = seen if self.train_dataloader.dataset.keeps_caches else 0
        self.train_dataloader.skip(seen - replayed)
        if replayed:
            self.logger.info("drawing %d batches again that were seen before", replayed)
        self.clock.start()
        for index, batch in enumerate(self.train_dataloader, seen - replayed):
            if index >= seen:
                self.clock.lap("data")
                yield index, batch
            self.clock.start()

    def _run_iteration(self, index: int, batch: Batch) -> None:
        self.call_hook("before_train_iter", batch_idx=index, data_batch=batch)
        outputs = self.train_step(batch)
        self.iterations_done += 1
        self.call_hook("after_train_iter", batch_idx=index, data_batch=batch, outputs=outputs)
        self.iter += 1
        self.clock.lap("hooks")

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Change the weights by one batch.

        Args:
            batch: Images and targets, on any device.

        Returns:
            The loss terms and ``loss``, the sum of those with "loss" in their name.

        Raises:
            TrainingError: The loss is not finite.
        """
        moved = batch.to(self.device, non_blocking=True)
        with self._without_sync():
            with self.optim_wrapper.autocast():
                outputs = total_loss(self.network(moved))
            self.clock.lap("forward")
            self.optim_wrapper.backward(outputs["loss"])
            self.clock.lap("backward")
        learning_rate = self.optim_wrapper.learning_rate
        stepped = self.optim_wrapper.step()
        self.clock.lap("step")
        record = IterationRecord(
            iteration=self.iterations_done + 1,
            epoch=self.epoch + 1,
            learning_rate=learning_rate,
            images=[meta.get("img_path", "?") for meta in batch.metas],
            seconds=self.clock.seconds,
        )
        self.monitor.submit(record, outputs, self.optim_wrapper.grad_norm if stepped else None)
        return outputs

    def _without_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Keep several processes from exchanging gradients that are not used yet."""
        network = self.network
        if self.optim_wrapper.accumulates_next and isinstance(network, DistributedDataParallel):
            return cast("contextlib.AbstractContextManager[Any]", network.no_sync())
        return contextlib.nullcontext()

    def _validate_if_due(self, done: int) -> None:
        due = self.schedule.validates(done) and self.validated_at < self.iter
        if self.validator is not None and due:
            self.validate()
            self.model.train()

    def validate(self) -> dict[str, float]:
        """Measure the model, with its averaged weights if there are any.

        Returns:
            The metrics.

        Raises:
            TrainingError: There is nothing to validate with.
        """
        if self.validator is None:
            raise TrainingError("the config has no val_dataloader and val_evaluator")
        self.monitor.settle()
        self.call_hook("before_val")
        self.call_hook("before_val_epoch")
        self.model.eval()
        self.metrics = self.validator.run(self.model, self.device, self._after_val_batch)
        self.validated_at = self.iter
        self.call_hook("after_val_epoch", metrics=self.metrics)
        self.call_hook("after_val")
        return self.metrics

    def _after_val_batch(self, index: int, batch: Batch, found: Sequence[Any]) -> None:
        self.call_hook("after_val_iter", batch_idx=index, data_batch=batch, outputs=found)

    def call_hook(self, point: str, **arguments: Any) -> None:
        """Call one point of all hooks."""
        for hook in self.hooks:
            getattr(hook, point)(self, **arguments)

    def save_checkpoint(self, path: Path, resumable: bool = True) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            path: The file.
            resumable: Whether to include what is needed to go on training.

        Raises:
            TrainingError: The losses or weights are not finite; nothing is written.
            CheckpointError: The file cannot be written.
        """
        self.monitor.settle()
        checkpoint = collect_state(self, resumable)
        if distributed.rank() == 0:
            write_checkpoint(path, checkpoint)

    def _start(self) -> None:
        """Load or resume, and tell everybody that training begins."""
        self.call_hook("before_run")
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is not None:
            (restore_state if self.resuming else load_weights)(self, checkpoint)
        self.optim_wrapper.start(self.iter, self.max_iters)
        self.call_hook("before_train")
        states = checkpoint["rng"] if checkpoint is not None and self.resuming else []
        if len(states) == distributed.world_size():
            set_random_state(states[distributed.rank()])

    def _check_epoch_is_complete(self) -> None:
        expected = (self.epoch + 1) * len(self.train_dataloader)
        if self.iter != expected:
            raise TrainingError(
                f"epoch {self.epoch + 1} ended after iteration {self.iter} instead of {expected}: "
                "the training data set left out samples (test_mode is for validation)"
            )


def total_loss(terms: Mapping[str, Tensor | Sequence[Tensor]]) -> dict[str, Tensor]:
    """Reduce the terms of a model's ``loss`` to scalars and add their sum as ``loss``.

    Args:
        terms: Tensors or lists of tensors; each is averaged, lists are summed.

    Returns:
        Scalars; ``loss`` sums those with "loss" in their name.

    Raises:
        TrainingError: None of the terms is a loss.
    """
    scalars: dict[str, Tensor] = {}
    for name, value in terms.items():
        parts = [value] if isinstance(value, Tensor) else value
        scalars[name] = _sum([part.mean() for part in parts])
    losses = [value for name, value in scalars.items() if "loss" in name]
    if not losses:
        raise TrainingError(f"the model returned no loss, only {', '.join(scalars) or 'nothing'}")
    return {"loss": _sum(losses), **scalars}


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
