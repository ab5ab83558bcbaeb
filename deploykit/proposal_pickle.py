"""Pickles of plain containers and numpy arrays, read without executing anything in them.

MMDetection's proposal files are pickles of a dict of mmengine's ``InstanceData``. The few globals
that such a file needs are replaced by our own, which hold values and do nothing; every other one is
refused.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DatasetError


class _Attributes(dict[str, Any]):
    """Stands in for an object: the dict of its attributes."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an object whose state is not a dict")
        self.update(state)


class _NumberType:
    """Stands in for a ``numpy.dtype`` of numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]", code):
            raise pickle.UnpicklingError(f"an array of type {code!r:.40}, not of numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def to_numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for a ``numpy.ndarray``, which it becomes in ``numpy.asarray``."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def __setstate__(self, state: Any) -> None:
        _, shape, number, is_fortran, data = state
        self.fill(data, number, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, number: Any, shape: Any, order: str) -> _Array:
        if not isinstance(number, _NumberType):
            raise pickle.UnpicklingError("an array without a type")
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        values = np.frombuffer(data, number.to_numpy())
        self.values = values.reshape(shape, order="F" if order == "F" else "C")
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.values, dtype=dtype)


def _array_of_bytes(data: Any, number: Any, shape: Any, order: str) -> _Array:
    """Stand in for numpy's ``_frombuffer``."""
    return _Array().fill(data, number, shape, order)


def _bytes_of_text(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for ``codecs.encode``, which Python calls for bytes in its older protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _NumberType,
    ("_codecs", "encode"): _bytes_of_text,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("collections", "OrderedDict"): dict,
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _array_of_bytes
for _module in ("mmengine.structures.instance_data", "mmengine.structures"):
    _ALLOWED[_module, "InstanceData"] = _Attributes


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which is not on the list of what is safe to read"
            )
        return found


def read_pickle(file: Path) -> Any:
    """Return what a pickle of plain containers, numpy arrays and ``InstanceData`` holds.

    ``InstanceData`` come back as dicts of their attributes, arrays as something that
    ``numpy.asarray`` takes.

    Raises:
        DatasetError: The file is damaged, or holds anything else.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        try:
            return _PlainUnpickler(stream).load()
        except OSError:
            raise
        except Exception as error:  # an unpickler on damaged bytes can raise nearly anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DatasetError(
                f"{file}: not a file of proposals, or damaged: {reason}; it may hold dicts, lists "
                f"and numpy arrays"
            ) from None
