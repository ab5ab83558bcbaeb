"""Weighting and averaging of element-wise losses."""

from __future__ import annotations

import torch
from torch import Tensor

from deploykit.errors import ConfigError

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(name: str, reduction: str) -> str:
    """Return ``reduction`` if there is such a thing.

    Raises:
        ConfigError: There is not.
    """
    if reduction not in REDUCTIONS:
        raise ConfigError(f"{name}: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    return reduction


def reduce_loss(
    loss: Tensor,
    weight: Tensor | None,
    reduction: str,
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Weight and reduce an element-wise loss.

    Args:
        loss: float32 [...].
        weight: Weight per element, broadcastable to ``loss``, or ``None``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        avg_factor: What ``"mean"`` divides the sum by, instead of the number of elements.

    Returns:
        A scalar, or a tensor like ``loss`` for ``"none"``. The mean of nothing is 0.

    Raises:
        ValueError: ``avg_factor`` was given for a sum.
    """
    if weight is not None:
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        if avg_factor is not None:
            raise ValueError("avg_factor has no meaning for the reduction 'sum'")
        return loss.sum()
    if avg_factor is None:
        return loss.mean() if loss.numel() else loss.sum()
    return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)


def mean_over_workers(value: Tensor) -> Tensor:
    """Return the mean of a scalar over the processes of a distributed training.

    Losses are divided by such means, so that an image weighs the same whatever process it is on.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    value = value.detach().clone()
    distributed.all_reduce(value.div_(distributed.get_world_size()))
    return value
