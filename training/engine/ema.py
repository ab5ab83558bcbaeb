"""Averaged weights: kept while training, used for validation and in checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, ConfigError, TrainingError
from deploykit.training.engine.hook import Hook
from deploykit.training.registry import HOOKS, Registry

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer
    from deploykit.training.structures import Batch

logger = logging.getLogger(__name__)

AVERAGES = Registry("weight average")


class WeightAverage:
    """A running average of the weights of a model.

    The first update copies the weights; the later ones move the average towards them. A tensor that
    the model uses under several names is averaged once (MMEngine moves it once per name).

    Args:
        model: The model to average.
        interval: Updates between two moves of the average.
        update_buffers: Whether floating point buffers (BatchNorm's statistics) are averaged too;
            otherwise they follow the model. Integer buffers keep their first value.
    """

    def __init__(self, model: nn.Module, interval: int = 1, update_buffers: bool = False) -> None:
        if interval < 1:
            raise ConfigError(f"the interval of a weight average must be at least 1: {interval}")
        self.interval, self.update_buffers = interval, update_buffers
        self.steps = 0
        self._sources = _tensors(model)
        self._averages = {name: tensor.detach().clone() for name, tensor in self._sources.items()}
        parameters = {name for name, _ in model.named_parameters()}
        moved = [
            name
            for name, tensor in self._sources.items()
            if tensor.is_floating_point() and (update_buffers or name in parameters)
        ]
        self._moved = ([self._averages[n] for n in moved], [self._sources[n] for n in moved])
        self._followed = [] if update_buffers else list(self._sources.keys() - parameters)

    def move(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """Move ``averages`` towards ``sources`` in place."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights of the model into the average."""
        if self.steps == 0:
            self.copy()
        elif self.steps % self.interval == 0:
            self.move(*self._moved)
        for name in self._followed:
            self._averages[name].copy_(self._sources[name])
        self.steps += 1

    @torch.no_grad()
    def copy(self) -> None:
        """Make the average equal to the weights of the model."""
        for name, average in self._averages.items():
            average.copy_(self._sources[name])

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the weights of the model with the average.

        Raises:
            TrainingError: The model holds other tensors than it did on construction.
        """
        for name, tensor in _tensors(model).items():
            if tensor is not self._sources[name]:
                raise TrainingError(
                    f"'{name}' of the model was replaced by another tensor after EMAHook had begun "
                    "to average it; change weights in place"
                )
            average = self._averages[name]
            kept = average.clone()
            average.copy_(tensor)
            tensor.copy_(kept)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the averages under all names of the model's state dict."""
        averages = {id(tensor): self._averages[name] for name, tensor in self._sources.items()}
        return {
            name: averages[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor], strict: bool) -> None:
        """Replace the averages.

        Args:
            weights: Tensors by name; names under which a tensor is known too are passed over.
            strict: Whether every average must be there.

        Raises:
            CheckpointError: A tensor is missing (if ``strict``) or has another shape.
        """
        for name, average in self._averages.items():
            value = weights.get(name)
            if value is None and strict:
                raise CheckpointError(f"the averaged weights lack '{name}'")
            if value is None:
                continue
            if value.shape != average.shape:
                raise CheckpointError(
                    f"the averaged weight '{name}' has shape {list(value.shape)}, expected "
                    f"{list(average.shape)}"
                )
            average.copy_(value)


@AVERAGES.register()
class ExponentialMovingAverage(WeightAverage):
    """``average = (1 - momentum) * average + momentum * weights``.

    Args:
        model: The model to average.
        momentum: Weight of the newest weights, 0..1.
        interval: Updates between two moves.
        update_buffers: Whether buffers are averaged too.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        update_buffers: bool = False,
    ) -> None:
        if not 0 < momentum < 1:
            raise ConfigError(f"EMA momentum must lie between 0 and 1, got {momentum}")
        if momentum > 0.5:
            logger.warning(
                "EMA momentum %g is the weight of the NEWEST weights; usual: 2e-4", momentum
            )
        super().__init__(model, interval, update_buffers)
        self.momentum = momentum

    def move(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """See ``WeightAverage.move``."""
        torch._foreach_lerp_(averages, sources, self.momentum)


@AVERAGES.register()
class ExpMomentumEMA(ExponentialMovingAverage):
    """EMA whose momentum falls exponentially to its final value (YOLOX, RTMDet).

    The momentum at update ``t`` is ``(1 - momentum) * exp(-(1 + t) / gamma) + momentum``.

    Args:
        model: The model to average.
        momentum: The final momentum.
        gamma: Updates over which the start is forgotten by a factor e.
        interval: Updates between two moves.
        update_buffers: Whether buffers are averaged too.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 2000,
        interval: int = 1,
        update_buffers: bool = False,
    ) -> None:
        if gamma <= 0:
            raise ConfigError(f"ExpMomentumEMA.gamma must be positive, got {gamma}")
        super().__init__(model, momentum, interval, update_buffers)
        self.gamma = gamma

    def move(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """See ``WeightAverage.move``."""
        momentum = (1 - self.momentum) * math.exp(-(1 + self.steps) / self.gamma) + self.momentum
        torch._foreach_mul_(averages, 1 - momentum)
        torch._foreach_add_(averages, sources, alpha=momentum)


@AVERAGES.register()
class MomentumAnnealingEMA(ExponentialMovingAverage):
    """EMA whose momentum is ``max(momentum, gamma / (gamma + t))`` at update ``t``.

    Args:
        model: The model to average.
        momentum: The smallest momentum.
        gamma: How slowly it falls.
        interval: Updates between two moves.
        update_buffers: Whether buffers are averaged too.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 100,
        interval: int = 1,
        update_buffers: bool = False,
    ) -> None:
        if gamma <= 0:
            raise ConfigError(f"MomentumAnnealingEMA.gamma must be positive, got {gamma}")
        super().__init__(model, momentum, interval, update_buffers)
        self.gamma = gamma

    def move(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """See ``WeightAverage.move``."""
        momentum = max(self.momentum, self.gamma / (self.gamma + self.steps))
        torch._foreach_lerp_(averages, sources, momentum)


@AVERAGES.register()
class StochasticWeightAverage(WeightAverage):
    """The plain mean of the weights so far (arXiv 1803.05407)."""

    def move(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """See ``WeightAverage.move``."""
        torch._foreach_lerp_(averages, sources, 1 / (self.steps // self.interval + 1))


@HOOKS.register()
class EMAHook(Hook):
    """Averages the weights after every iteration; validates and saves the averages.

    In a checkpoint ``state_dict`` holds the averages and ``ema_state_dict`` the weights that the
    optimizer works on, as MMEngine has it.

    Args:
        ema_type: A ``WeightAverage``: ``ExponentialMovingAverage``, ``ExpMomentumEMA``,
            ``MomentumAnnealingEMA`` or ``StochasticWeightAverage``.
        strict_load: Whether a resumed checkpoint must hold every averaged tensor.
        begin_iter: Iteration until which the average just follows the weights.
        begin_epoch: The same as an epoch, instead of ``begin_iter``.
        **arguments: Arguments of the average.
    """

    def __init__(
        self,
        ema_type: str = "ExponentialMovingAverage",
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        **arguments: Any,
    ) -> None:
        if begin_iter < 0 or begin_epoch < 0 or (begin_iter and begin_epoch):
            raise ConfigError(
                "EMAHook takes begin_iter or begin_epoch, not negative and not both, got "
                f"{begin_iter} and {begin_epoch}"
            )
        arguments.pop("device", None)
        self.config = {"type": ema_type, **arguments}
        self.strict_load = strict_load
        self.begin_iter, self.begin_epoch = begin_iter, begin_epoch
        self._average: WeightAverage | None = None
        self._resumed = False

    @property
    def average(self) -> WeightAverage:
        """The average; it exists from ``before_run`` on."""
        if self._average is None:
            raise TrainingError("EMAHook has no model yet: before_run was not called")
        return self._average

    def before_run(self, trainer: Trainer) -> None:
        """Make the average of the model."""
        self._average = AVERAGES.build(self.config, model=trainer.model)

    def before_train(self, trainer: Trainer) -> None:
        """Begin with the weights as they were loaded."""
        if self.begin_epoch > trainer.max_epochs or self.begin_iter > trainer.max_iters:
            raise ConfigError(
                f"EMAHook begins at epoch {self.begin_epoch}, iteration {self.begin_iter}, after "
                f"training has ended (epoch {trainer.max_epochs}, iteration {trainer.max_iters})"
            )
        if not self._resumed:
            self.average.copy()

    def after_train_iter(
        self, trainer: Trainer, batch_idx: int, data_batch: Batch, outputs: dict[str, Any]
    ) -> None:
        """Take the new weights into the average."""
        started = (
            trainer.epoch + 1 >= self.begin_epoch
            if self.begin_epoch
            else trainer.iter + 1 >= self.begin_iter
        )
        if started:
            self.average.update()
        else:
            self.average.copy()

    def before_val_epoch(self, trainer: Trainer) -> None:
        """Put the averages into the model."""
        self.average.swap(trainer.model)

    def after_val_epoch(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Put the weights back into the model."""
        self.average.swap(trainer.model)

    def before_save_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Swap the weights and the averages in the checkpoint."""
        raw = checkpoint["state_dict"]
        checkpoint["state_dict"] = self.average.state_dict(trainer.model)
        checkpoint["ema_state_dict"] = {f"module.{name}": tensor for name, tensor in raw.items()}
        checkpoint["ema_state_dict"]["steps"] = torch.tensor(self.average.steps)

    def after_load_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Take the averages out of a checkpoint that training goes on from."""
        if not trainer.resuming:
            return
        if "ema_state_dict" not in checkpoint:
            logger.warning("the checkpoint holds no averaged weights; they begin as a copy")
            return
        averages, raw = checkpoint["state_dict"], dict(checkpoint.pop("ema_state_dict"))
        self.average.steps = int(raw.pop("steps"))
        checkpoint["state_dict"] = {name.removeprefix("module."): raw[name] for name in raw}
        self.average.load_state_dict(averages, self.strict_load)
        self._resumed = True


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return each tensor of a model's state dict once, under its first name."""
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (name, tensor))
    return dict(unique.values())
