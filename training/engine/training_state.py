"""What a checkpoint of a running training holds, and how training goes on from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deploykit.errors import CheckpointError, TrainingError
from deploykit.training.checkpoint import weights_of
from deploykit.training.engine import distributed
from deploykit.training.engine.hook import Hook
from deploykit.training.engine.randomness import random_state
from deploykit.training.models.pretrained import load_matching_weights

if TYPE_CHECKING:
    from deploykit.training.engine.trainer import Trainer

logger = logging.getLogger(__name__)


def collect_state(trainer: Trainer, resumable: bool) -> dict[str, Any]:
    """Return a checkpoint of a trainer, with its tensors on the CPU.

    Args:
        trainer: The trainer.
        resumable: Whether to include what is needed to go on training.

    Raises:
        TrainingError: The weights are not finite.
    """
    checkpoint: dict[str, Any] = {
        "meta": {
            **trainer.meta,
            "epoch": trainer.epochs_done,
            "iter": trainer.iterations_done,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
        "state_dict": trainer.model.state_dict(),
    }
    trainer.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    _check_finite(checkpoint["state_dict"])
    if resumable:
        checkpoint["optimizer"] = trainer.optim_wrapper.state_dict()
        checkpoint["param_schedulers"] = [s.state_dict() for s in trainer.param_schedulers]
        checkpoint["hooks"] = {name: hook.state_dict() for name, hook in _named(trainer.hooks)}
        checkpoint["rng"] = distributed.gather(random_state())
        checkpoint["loop"] = {
            "validated_at": trainer.validated_at,
            "epoch_length": len(trainer.train_dataloader),
            "world_size": distributed.world_size(),
        }
    else:
        checkpoint.pop("ema_state_dict", None)
    content: dict[str, Any] = _on_cpu(checkpoint, {})
    return content


def load_weights(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Begin a new run with the weights of a checkpoint that fit the model by name and shape.

    Raises:
        CheckpointError: None does.
    """
    trainer.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    report = load_matching_weights(trainer.model, weights_of(checkpoint))
    if not report.loaded:
        raise CheckpointError(
            "load_from: none of the weights of the checkpoint fits the model by name and shape"
        )
    logger.info("load_from: %d of %d weights", len(report.loaded), len(trainer.model.state_dict()))
    for kind in ("missing", "unexpected", "mismatched"):
        names = getattr(report, kind)
        if names:
            shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            logger.warning("load_from: %d weights are %s: %s", len(names), kind, shown)


def restore_state(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Go on with the run that wrote a checkpoint.

    Raises:
        CheckpointError: The checkpoint holds weights only, or does not fit the config.
    """
    if "loop" not in checkpoint:
        raise CheckpointError(
            "training cannot be resumed from this checkpoint: it holds weights only (best.pth) or "
            "another program wrote it; resume from last.pth, or begin a new run with its weights: "
            "--load-from"
        )
    trainer.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    if "ema_state_dict" in checkpoint:
        raise CheckpointError(
            "the run to be resumed averaged its weights; the config has no EMAHook any more"
        )
    try:
        trainer.model.load_state_dict(checkpoint["state_dict"])
        trainer.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        states = checkpoint["param_schedulers"]
        for scheduler, state in zip(trainer.param_schedulers, states, strict=True):
            scheduler.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            "the checkpoint does not fit the config; resume with the config of its run "
            f"({str(error).splitlines()[0]})"
        ) from error
    for name, hook in _named(trainer.hooks):
        if checkpoint["hooks"].get(name):
            hook.load_state_dict(checkpoint["hooks"][name])
    _restore_position(trainer, checkpoint["meta"], checkpoint["loop"])
    logger.info("resumed after epoch %d, iteration %d", trainer.epoch, trainer.iter)


def _restore_position(trainer: Trainer, meta: Mapping[str, Any], loop: Mapping[str, Any]) -> None:
    epoch, iteration = int(meta["epoch"]), int(meta["iter"])
    length, old_length = len(trainer.train_dataloader), int(loop["epoch_length"])
    validated_at = int(loop["validated_at"])
    if (old_length, loop["world_size"]) != (length, distributed.world_size()):
        if trainer.schedule.by_epoch and iteration % old_length:
            raise CheckpointError(
                f"the checkpoint was saved within an epoch of {old_length} iterations, and an "
                f"epoch has {length} now: resume with the same data, batch size and processes"
            )
        logger.warning(
            "an epoch has %d iterations now and had %d, by %d process(es): training goes on, but "
            "not as the uninterrupted run would have",
            length,
            old_length,
            loop["world_size"],
        )
        if trainer.schedule.by_epoch:
            validated_at = validated_at * length // old_length
            iteration = epoch * length
    trainer.epoch = trainer.epochs_done = epoch
    trainer.iter = trainer.iterations_done = iteration
    trainer.validated_at = validated_at


def _named(hooks: list[Hook]) -> Iterator[tuple[str, Hook]]:
    counts: dict[str, int] = {}
    for hook in hooks:
        kind = type(hook).__name__
        counts[kind] = counts.get(kind, 0) + 1
        yield (kind if counts[kind] == 1 else f"{kind}-{counts[kind]}"), hook


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    floating = {name: value for name, value in weights.items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in floating.values()])
    if not finite.all():
        bad = [name for name, good in zip(floating, finite.tolist(), strict=True) if not good]
        raise TrainingError(
            f"{len(bad)} weights are not finite ({', '.join(bad[:3])}); no checkpoint was written "
            "over the last good one. Lower the learning rate or clip gradients"
        )


def _on_cpu(value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    """Return nested containers with their tensors on the CPU; shared tensors stay shared."""
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in copies or not value.numel():
            copies[key] = value.detach().cpu()
        return copies[key]
    if isinstance(value, Mapping):
        return {name: _on_cpu(entry, copies) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(entry, copies) for entry in value)
    return value
