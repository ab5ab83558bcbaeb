"""Runs the kernels on the host: the very CUDA source, compiled by g++ with an emulation header.

Slow, and for tests only: it shows that a kernel computes what it should, that its barriers suffice
and that it writes nowhere else. It shows nothing about speed, nor about what a real compiler and a
real device make of the source.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, MissingDependencyError
from deploykit.plugins_trt.kernel import Kernel, Launch, source_text

Array = npt.NDArray[Any]

# Unlike x86-64's default, no operation may be joined with another.
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-w",
)
_GUARD_BYTES = 256
_GUARD = 0xA5


@dataclass
class HostDevice:
    """Memory and launches on the host, behind the same methods as a GPU's.

    Args:
        folder: Where compiled kernels are kept, by what they compute.
        seed: Of the order in which the threads of a block run; 0: as they are numbered.
        fill: The byte that new memory is filled with.
    """

    folder: Path
    seed: int = 0
    fill: int = 0xFF
    _functions: dict[Kernel, Any] = field(default_factory=dict, repr=False)

    def upload(self, array: Array) -> Array:
        """Copy an array to the device."""
        copy = self.empty(array.shape, str(array.dtype))
        copy[...] = array
        return copy

    def download(self, array: Array) -> Array:
        """Copy an array from the device."""
        return array.copy()

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Allocate an array between two guards, which ``launch`` checks."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        padded = size + -size % 16
        memory = np.full(padded + 2 * _GUARD_BYTES + 16, self.fill, np.uint8)
        start = -memory.ctypes.data % 16 + _GUARD_BYTES
        memory[start - _GUARD_BYTES : start] = _GUARD
        memory[start + size : start + size + _GUARD_BYTES] = _GUARD
        return memory[start : start + size].view(dtype).reshape(tuple(shape))

    def launch(self, kernel: Kernel, launch: Launch, tensors: Mapping[str, Array]) -> None:
        """Run a kernel.

        Args:
            kernel: The kernel.
            launch: Its launch.
            tensors: Its inputs and outputs, by name, from ``empty`` or ``upload``.

        Raises:
            BackendError: The kernel uses barriers wrongly or wrote past a tensor.
        """
        if 0 in launch.grid:
            return
        if kernel not in self._functions:
            self._functions[kernel] = self._load(kernel)
        names = (*kernel.inputs, *kernel.outputs)
        pointers = [ctypes.c_void_p(tensors[name].ctypes.data) for name in names]
        scalars = [ctypes.c_int32(value) for value in launch.scalars]
        split = len(kernel.inputs)
        values: list[Any] = [*pointers[:split], *scalars, *pointers[split:]]
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = (ctypes.c_uint * 3)(*launch.grid)
        error = self._functions[kernel](arguments, grid, launch.threads, self.seed)
        if error is not None:
            raise BackendError(f"{kernel.name}: {error.decode()}")
        for name in names:
            if not _guards_intact(tensors[name]):
                raise BackendError(f"{kernel.name} wrote outside of {name}")

    def _load(self, kernel: Kernel) -> Any:
        library = self.folder / f"{kernel.name}-{_digest(kernel)}.so"
        if not library.exists():
            _compile(kernel, library)
        function = ctypes.CDLL(str(library)).emulate
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = ctypes.c_char_p
        return function


def _guards_intact(array: Array) -> bool:
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    start = array.ctypes.data - owner.ctypes.data
    after = start + array.nbytes
    guards = owner[start - _GUARD_BYTES : start], owner[after : after + _GUARD_BYTES]
    return all(bool((guard == _GUARD).all()) for guard in guards)


def _digest(kernel: Kernel) -> str:
    headers = [source_text(name) for name in ("host_emulation.h", "host_half.h")]
    return hashlib.sha256("\0".join([kernel.digest, *headers, *_FLAGS]).encode()).hexdigest()[:24]


def _compile(kernel: Kernel, library: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingDependencyError(
            "emulating a kernel needs the compiler g++, which was not found; install it"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    program = f'#include "host_emulation.h"\n#include "{kernel.name}.cu"\nEMULATE({kernel.name})\n'
    defines = [f"-D{name}={value}" for name, value in kernel.constants]
    with (
        as_file(files("deploykit.plugins_trt").joinpath("kernels")) as sources,
        tempfile.TemporaryDirectory(dir=library.parent) as scratch,
    ):
        built = Path(scratch) / "kernel.so"
        command = [compiler, *_FLAGS, *defines, f"-I{sources}", "-x", "c++", "-", "-o", str(built)]
        done = subprocess.run(  # noqa: S603  # our own source
            command, input=program, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise BackendError(f"{kernel.name} does not compile for the host:\n{done.stderr}")
        built.replace(library)
