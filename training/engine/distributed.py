"""Training by several processes: who am I, and what do the others say.

Start with ``torchrun --nproc-per-node N -m deploykit train CONFIG``; torchrun sets the environment
variables that ``join`` reads. All functions do the obvious for a single process.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from deploykit.errors import TrainingError

# Others wait while one process evaluates or writes a checkpoint.
_PATIENCE = timedelta(hours=2)


def join(device: str) -> bool:
    """Join the process group that torchrun announces, if there is one.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``, which decides on gloo or NCCL.

    Returns:
        Whether this call joined (then ``leave`` is the caller's job).

    Raises:
        TrainingError: The group could not be formed.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return False
    if distributed.is_initialized():
        return False
    on_gpu = device != "cpu" and torch.cuda.is_available()
    try:
        if on_gpu:
            torch.cuda.set_device(local_rank())
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes could not be joined: {error}") from error
    return True


def leave() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """Return the number of this process; 0 is the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """Return the value of every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the value of process 0."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]
