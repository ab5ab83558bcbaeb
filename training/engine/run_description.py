"""What the first lines of a log say about a run."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from deploykit import __version__
from deploykit.training.engine import distributed
from deploykit.training.engine.config_keys import ignored_settings

if TYPE_CHECKING:
    from deploykit.training.data.loader import DetectionLoader
    from deploykit.training.engine.trainer import Trainer


def versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {
        "deploykit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def describe_run(trainer: Trainer, config: Mapping[str, Any], seed: int) -> list[str]:
    """Return lines about machine, model, data, length and settings that have no effect.

    Args:
        trainer: The trainer, not yet started.
        config: Its config.
        seed: Its seed.
    """
    written_by = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"{written_by} on {platform.platform()}; command: {' '.join(sys.argv)}",
        f"device {_device(trainer.device)}, "
        f"precision {str(trainer.optim_wrapper.dtype).removeprefix('torch.')}, "
        f"{distributed.world_size()} process(es), {torch.get_num_threads()} threads, seed {seed}",
        _model(trainer),
        _training_data(trainer.train_dataloader),
    ]
    if trainer.validator is None:
        lines.append("no validation")
    else:
        lines.append(f"validation set: {len(trainer.validator.dataloader.dataset)} images")
    if trainer.schedule.by_epoch:
        lines.append(f"{trainer.max_epochs} epochs of {len(trainer.train_dataloader)} iterations")
    else:
        lines.append(f"{trainer.max_iters} iterations")
    ignored = ignored_settings(config)
    if ignored:
        lines.append(f"settings without effect here: {'; '.join(ignored)}")
    return lines


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _model(trainer: Trainer) -> str:
    parameters = list(trainer.model.parameters())
    total = sum(parameter.numel() for parameter in parameters) / 1e6
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad) / 1e6
    optimizer = trainer.optim_wrapper.optimizer
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    return (
        f"{type(trainer.model).__name__}: {total:.2f} M parameters, {trained:.2f} M of them "
        f"trained by {type(optimizer).__name__} at {', '.join(f'{rate:g}' for rate in rates)}"
    )


def _training_data(loader: DetectionLoader) -> str:
    classes = loader.dataset.classes
    shown = ", ".join(classes[:8]) + ", ..." * (len(classes) > 8)
    return (
        f"training set: {len(loader.dataset)} images in batches of {loader.batch_size}, "
        f"{loader.num_workers} workers; {len(classes)} classes: {shown}"
    )
