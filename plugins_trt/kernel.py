"""What a CUDA kernel of ours is: source, constants, parameters; and how it is launched.

One description serves everybody who runs a kernel: the compiler, the launch through the driver, the
emulation on the host and the TensorRT plugin.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import numpy as np

from deploykit.errors import BackendError

FLOATS: dict[str, str] = {"float32": "float", "float16": "Half"}

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
# Of the kernels, but not of those that run them on the host.
_HOST_ONLY = ("host_half.h", "host_emulation.h")


@dataclass(frozen=True)
class Kernel:
    """A kernel with its constants.

    The parameters are pointers to the inputs, then int32 scalars, then pointers to the outputs, as
    TensorRT passes them.

    Args:
        name: Of the entry point; the source is the file of this name.
        constants: What the source takes from the preprocessor.
        inputs: Names of the input tensors.
        scalars: Names of the scalars.
        outputs: Names of the output tensors.
    """

    name: str
    constants: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    scalars: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def parameter_types(self) -> list[str]:
        """PTX types of the parameters, in order."""
        return (
            ["u64"] * len(self.inputs) + ["u32"] * len(self.scalars) + ["u64"] * len(self.outputs)
        )

    @property
    def source(self) -> str:
        """The text of the kernel."""
        return source_text(f"{self.name}.cu")

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the kernel computes."""
        parts = [source_digest(self.name), repr(self.constants)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Launch:
    """The shape of a launch and the scalars that go with it: numbers, or TensorRT's expressions.

    Args:
        grid: Blocks along x, y and z.
        threads: Of a block, along x.
        scalars: In order.
    """

    grid: tuple[Any, Any, Any]
    threads: int
    scalars: tuple[Any, ...]


class ShapeArithmetic(Protocol):
    """What sizes are computed with besides ``+``, ``*`` and ``//``."""

    def cdiv(self, first: Any, second: Any) -> Any:
        """Divide, rounded up."""

    def min(self, first: Any, second: Any) -> Any:
        """Return the lesser one."""


class Numbers:
    """``ShapeArithmetic`` of plain numbers. TensorRT's is the module ``tensorrt.plugin``."""

    @staticmethod
    def cdiv(first: int, second: int) -> int:
        """Divide, rounded up."""
        return -(-first // second)

    @staticmethod
    def min(first: int, second: int) -> int:
        """Return the lesser one."""
        return min(first, second)


def constants(values: Mapping[str, int | float | str]) -> tuple[tuple[str, str], ...]:
    """Return constants as the preprocessor takes them, floats exactly.

    Args:
        values: Numbers, or C++ text.
    """
    return tuple((name, _literal(value)) for name, value in values.items())


def _literal(value: int | float | str) -> str:
    if isinstance(value, float):
        return f"{float(np.float32(value)).hex()}f"
    return str(value)


@cache
def source_text(name: str) -> str:
    """Return the text of a file in ``kernels/``."""
    return files("deploykit.plugins_trt").joinpath("kernels", name).read_text()


def included_files(name: str) -> Sequence[str]:
    """Return the files that a file in ``kernels/`` includes on a device, sorted."""
    found: set[str] = set()
    pending = [name]
    while pending:
        for include in _INCLUDE.findall(source_text(pending.pop())):
            if include not in found and include not in _HOST_ONLY:
                found.add(include)
                pending.append(include)
    return sorted(found)


def source_digest(kernel_name: str) -> str:
    """Return the SHA-256 of the source of a kernel and of all that it includes."""
    names = [f"{kernel_name}.cu", *included_files(f"{kernel_name}.cu")]
    parts = [part for name in names for part in (name, source_text(name))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def float_type(dtype: str, what: str) -> str:
    """Return the C++ type of a floating-point tensor.

    Args:
        dtype: Its numpy name.
        what: The tensor, for the message.

    Raises:
        BackendError: The kernels do not take this type.
    """
    if dtype not in FLOATS:
        raise BackendError(
            f"{what} must be float32 or float16 for our plugins, got {dtype}: "
            "cast it before the node"
        )
    return FLOATS[dtype]
