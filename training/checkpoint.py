"""Checkpoint files: safe reading, atomic writing, and what is in them.

A checkpoint is a dict that ``torch.save`` wrote. The keys are MMEngine's, so that tools of either
project find their way in the files of the other:

- ``meta``: ``cfg`` (text of the resolved config), ``dataset_meta`` (``classes``, ``palette``),
  ``epoch``, ``iter``, ``seed``, ``versions``, ``time`` and ``deploykit`` (the model spec as JSON);
- ``state_dict``: the weights to run the model with (the averaged ones when EMA is on);
- ``ema_state_dict``: the weights that the optimizer steps on, when EMA is on;
- ``optimizer``, ``param_schedulers``, ``rng`` and other state of the training run.

Only plain types are written. Read are plain types and the objects of MMEngine and numpy that its
``Runner`` leaves in a file, as inert stand-ins: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from deploykit.atomic_file import atomic_path
from deploykit.errors import CheckpointError
from deploykit.inert_pickle import NUMPY, InertObject, name_of_attribute

_PLAIN_SCALARS = (str, bytes, int, float, bool, type(None), torch.dtype, torch.Size)
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)

# Objects that MMEngine and MMCV put into checkpoints, by their full names. ``getattr`` is how a
# HistoryBuffer names its own methods.
_STAND_INS: tuple[tuple[Any, str], ...] = (
    *((stand_in, ".".join(name)) for name, stand_in in NUMPY.items()),
    (name_of_attribute, "builtins.getattr"),
    (InertObject, "mmengine.logging.history_buffer.HistoryBuffer"),
    (InertObject, "mmengine.logging.message_hub.MessageHub"),
    (InertObject, "mmengine.config.config.Config"),
    (InertObject, "mmcv.utils.config.Config"),
    (dict, "mmengine.config.config.ConfigDict"),
    (dict, "mmcv.utils.config.ConfigDict"),
    (dict, "addict.addict.Dict"),
)
_stand_ins_lock = Lock()  # torch keeps the list of what may be unpickled in a global


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything in it.

    Archives are checked against their checksums first, because torch itself reads a file with
    flipped bits without complaint.

    Args:
        path: A ``.pth`` file written by deploykit, MMEngine or plain ``torch.save``.

    Returns:
        The dict in the file. Tensors are on the CPU; numbers of numpy are Python's, MMEngine's
        objects are dicts of their attributes.

    Raises:
        CheckpointError: There is no such file, it is damaged, it holds classes that are not on the
            allow-list, or it does not hold a dict.
    """
    file = Path(path)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise CheckpointError(f"{file}: the checkpoint {problem}; give the path of a .pth file")
    if file.stat().st_size == 0:
        raise CheckpointError(f"{file}: the checkpoint is empty; use another one")
    _check_archive(file)
    try:
        with _stand_ins_lock, torch.serialization.safe_globals(list(_STAND_INS)):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler on damaged bytes can raise nearly anything
        raise CheckpointError(f"{file}: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{file}: expected a dict with a 'state_dict', found {type(content).__name__}; "
            "is this a checkpoint?"
        )
    return dict(content)


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint so that the file appears whole or not at all.

    Args:
        path: The final path; an existing file is replaced.
        checkpoint: Nested dicts, lists and tuples of tensors, strings and numbers.

    Raises:
        CheckpointError: A value is of another type, or the file cannot be written.
    """
    content = dict(checkpoint)
    _check_plain(content, "checkpoint")
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error}") from error


def weights_of(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> dict[str, Tensor]:
    """Return the model weights in a checkpoint.

    Args:
        checkpoint: What ``read_checkpoint`` returned: a dict with ``state_dict``, or a bare dict of
            tensors as torchvision publishes them. With EMA, ``state_dict`` holds the averages.
        source: Where it came from, for messages.

    Returns:
        Parameter and buffer tensors by name, without the ``module.`` prefix that a parallel
        wrapper leaves.

    Raises:
        CheckpointError: There are no weights in it.
    """
    weights = checkpoint.get("state_dict")
    if weights is None:
        weights = _averages(checkpoint.get("ema_state_dict")) or checkpoint
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{source}: no weights found; expected a non-empty 'state_dict'")
    strangers = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"{source}: expected a dict of tensors, but {strangers[0]!r} is "
            f"{type(weights[strangers[0]]).__name__}; is this a checkpoint?"
        )
    prefixed = all(name.startswith("module.") for name in weights)
    return {name[7:] if prefixed else name: value for name, value in weights.items()}


def _averages(averaged: Any) -> dict[str, Any]:
    """Return the weights of an averaged model without its counter of steps."""
    if not isinstance(averaged, Mapping):
        return {}
    return {name: value for name, value in averaged.items() if name != "steps"}


def _check_archive(file: Path) -> None:
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return  # torch's older format; the unpickler judges it
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"{file}: this is a TorchScript program, not a checkpoint; give the .pth file "
                    "of its weights"
                )
            damaged = archive.testzip()
    except _ARCHIVE_ERRORS as error:
        raise CheckpointError(
            f"{file}: the checkpoint is damaged or cut short ({error}); "
            "copy or download it again, or use another one"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{file}: the checkpoint is damaged: the checksum of '{damaged}' does not match; "
            "copy or download it again, or use another one"
        )


def _reason(error: Exception) -> str:
    refused = re.search(r"(?:Unsupported global: )?GLOBAL (\S+)", str(error))
    if refused:
        return (
            f"the checkpoint holds a {refused.group(1)} object, which is not on the list of types "
            "that are safe to read; save it again with tensors and plain types only"
        )
    refused = re.search(r"it holds ([^\n]+)", str(error))  # the words of our stand-ins
    if refused:
        return f"the checkpoint holds {refused.group(1)}, which is not safe to read, or is damaged"
    if isinstance(error, (pickle.UnpicklingError, KeyError, EOFError)):
        return "this is not a PyTorch checkpoint, or it is damaged; give a .pth file"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
    return (
        f"this is not a PyTorch checkpoint, or it is damaged "
        f"({type(error).__name__}: {first_line[:160]}); give a .pth file"
    )


def _check_plain(value: Any, place: str) -> None:
    if type(value) in _PLAIN_SCALARS or isinstance(value, Tensor):
        return
    if type(value) in (dict, OrderedDict):
        for key, entry in value.items():
            _check_plain(key, f"a key of {place}")
            _check_plain(entry, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{place}[{index}]")
    else:
        raise CheckpointError(
            f"{place} is of type {type(value).__name__}; checkpoints hold tensors, numbers, "
            "strings, lists, tuples and dicts only"
        )
