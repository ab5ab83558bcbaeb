"""Inert stand-ins for what pickles of other programs name.

An unpickler that is given these instead of the classes and functions of a pickle builds values and
runs nothing. They are shared by the readers of checkpoints and of proposal files.
"""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np


class InertObject(dict[str, Any]):
    """Stands in for an object: the dict of its attributes, or of its pickled state."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        if arguments:
            self["arguments"] = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.update(state)
        else:
            self["state"] = state


class InertDtype:
    """Stands in for a ``numpy.dtype`` of numbers or booleans."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]|f[248]|b1", code):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r:.40}, not of numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def to_numpy(self) -> np.dtype[Any]:
        """Return the type that this one stands for."""
        return np.dtype(self.order + self.code)


class InertArray:
    """Stands in for a ``numpy.ndarray``, which it becomes in ``numpy.asarray``."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray[Any, Any] = np.zeros(0, np.float32)

    def __setstate__(self, state: Any) -> None:
        _, shape, number, is_fortran, data = state
        self.fill(data, number, shape, "F" if is_fortran else "C")

    def fill(self, data: Any, number: Any, shape: Any, order: str) -> InertArray:
        """Take the values of an array from its bytes."""
        if not isinstance(number, InertDtype):
            raise pickle.UnpicklingError("it holds an array without a type")
        values = np.frombuffer(_as_bytes(data), number.to_numpy())
        self.values = values.reshape(shape, order="F" if order == "F" else "C")
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.values, dtype=dtype)


def array_of_bytes(data: Any, number: Any, shape: Any, order: str) -> InertArray:
    """Stand in for numpy's ``_frombuffer``."""
    return InertArray().fill(data, number, shape, order)


def number_of_bytes(number: Any, data: Any = None) -> int | float | bool:
    """Stand in for numpy's ``scalar``: a number of Python instead of numpy."""
    if not isinstance(number, InertDtype):
        raise pickle.UnpicklingError("it holds a number without a type")
    values = np.frombuffer(_as_bytes(data), number.to_numpy())
    if values.size != 1:
        raise pickle.UnpicklingError(f"it holds {values.size} numbers where one is expected")
    plain: int | float | bool = values[0].item()
    return plain


def bytes_of_text(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for ``codecs.encode``, which Python calls for bytes in its older protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def name_of_attribute(owner: Any, name: Any) -> str:
    """Stand in for ``getattr``, with which pickles name the methods of a class: only the name.

    Raises:
        pickle.UnpicklingError: The owner is no stand-in.
    """
    if not (isinstance(owner, type) and issubclass(owner, InertObject)):
        raise pickle.UnpicklingError(f"it holds a call of getattr on {owner!r:.60}")
    return str(name)


def _as_bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, str):  # of Python 2
        return data.encode("latin1")
    if isinstance(data, pickle.PickleBuffer):
        return data.raw().tobytes()
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(
            f"it holds an array whose data is {type(data).__name__}, not bytes"
        )
    return data


# Arrays and numbers of numpy, under the names of its versions.
NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): InertArray,
    ("numpy", "dtype"): InertDtype,
}
for _package in ("numpy.core", "numpy._core"):
    NUMPY[f"{_package}.multiarray", "_reconstruct"] = InertArray
    NUMPY[f"{_package}.multiarray", "scalar"] = number_of_bytes
    NUMPY[f"{_package}.numeric", "_frombuffer"] = array_of_bytes
