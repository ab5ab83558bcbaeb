"""Arrays on the device: those of callers, in; ours, out. No framework is needed for either.

In: anything with ``__dlpack__`` on a CUDA device or with ``__cuda_array_interface__`` (PyTorch,
CuPy, PyCUDA, Numba). Out: ``DeviceArray``, which has both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.runtimes.tensorrt import dlpack
from deploykit.runtimes.tensorrt.device import LEGACY_DEFAULT_STREAM, Device, Event, Memory, Shape


@dataclass(frozen=True)
class DeviceInput:
    """An array of a caller, checked.

    Args:
        address: Where it is on the device.
        shape: Its shape.
        dtype: Its type; the elements are C-contiguous.
        stream: The stream after whose work it is complete, if its producer tells.
        owner: What keeps it alive.
    """

    address: int
    shape: Shape
    dtype: np.dtype[Any]
    stream: int | None
    owner: object

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_device_array(value: object) -> bool:
    """Return whether ``value`` is an array on a CUDA device, by what it offers."""
    if isinstance(value, np.ndarray):
        return False
    return _offers_dlpack(value) or hasattr(value, "__cuda_array_interface__")


def _offers_dlpack(value: Any) -> bool:
    place = getattr(value, "__dlpack_device__", None)
    return place is not None and int(place()[0]) == dlpack.CUDA


def read_device_array(value: Any, name: str, stream: int) -> DeviceInput:
    """Return what an array on the device says about itself.

    Args:
        value: Something ``is_device_array`` is true for.
        name: Of the input it is for, for messages.
        stream: Handle of the caller's stream. A DLPack producer makes it wait until the array is
            complete, whatever stream the array is computed on; that is why DLPack comes first.

    Raises:
        UsageError: The elements are not C-contiguous or are masked.
    """
    if _offers_dlpack(value):
        capsule = value.__dlpack__(stream=stream)
        address, shape, strides, dtype, _ = dlpack.read_capsule(capsule)
        array = DeviceInput(address, shape, dtype, None, capsule)
    else:
        interface = value.__cuda_array_interface__
        if interface.get("mask") is not None:
            raise UsageError(f"'{name}' is a masked array; expected a plain one")
        shape = tuple(int(size) for size in interface["shape"])
        strides, ready = interface.get("strides"), interface.get("stream")
        dtype = np.dtype(interface["typestr"])
        array = DeviceInput(int(interface["data"][0] or 0), shape, dtype, ready, value)
    if strides is not None and not _is_contiguous(shape, tuple(strides), dtype.itemsize):
        raise UsageError(
            f"'{name}' has the strides {tuple(strides)} for the shape {shape}; expected "
            "C-contiguous elements (tensor.contiguous(), cupy.ascontiguousarray)"
        )
    return array


def _is_contiguous(shape: Shape, strides: Shape, itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


def stream_handle(stream: object) -> int:
    """Return the handle of a caller's stream.

    Args:
        stream: ``None`` for the legacy default stream, a number, or an object with
            ``__cuda_stream__`` (cuda-core, Numba), ``cuda_stream`` (PyTorch), ``ptr`` (CuPy) or
            ``handle`` (PyCUDA).

    Raises:
        UsageError: It is none of those.
    """
    if stream is None:
        return LEGACY_DEFAULT_STREAM
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, bool):
        return int(stream) or LEGACY_DEFAULT_STREAM
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        pair = protocol() if callable(protocol) else protocol
        return int(pair[1]) or LEGACY_DEFAULT_STREAM
    for attribute in ("cuda_stream", "ptr", "handle"):
        handle = getattr(stream, attribute, None)
        if handle is not None:
            return int(handle) or LEGACY_DEFAULT_STREAM
    raise UsageError(
        f"cannot read a CUDA stream from {type(stream).__name__}; expected a handle (int), "
        "torch.cuda.Stream, pycuda.driver.Stream, cupy.cuda.Stream or __cuda_stream__"
    )


class ResultBlock:
    """Memory that the arrays of one result share; given back when the last of them is forgotten.

    Args:
        device: Where it is.
        nbytes: Its size.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self.device = device
        self.memory: Memory = device.allocate(nbytes)
        self.ready: Event = device.create_event()


class DeviceArray:
    """An output that stayed on the device, C-contiguous.

    ``torch.from_dlpack(array)``, ``cupy.from_dlpack(array)``, ``numba.cuda.as_cuda_array(array)``
    take it without a copy; PyCUDA kernels take it as an argument. The memory is freed when this
    object and all that was made from it are gone, which waits for the work of the device.

    Args:
        block: What holds its memory.
        offset: Where in the block it starts, in bytes.
        shape: Its shape.
        dtype: Its type.
        stream: The stream after whose work it is complete.
    """

    def __init__(
        self, block: ResultBlock, offset: int, shape: Shape, dtype: np.dtype[Any], stream: int
    ) -> None:
        self._block = block
        self.address = block.memory.address + offset
        self.shape = shape
        self.dtype = dtype
        self.stream = stream

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._block.device.dlpack_type, self._block.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule; ``stream`` (-1: none) waits until the array is complete."""
        place = self.__dlpack_device__()
        if copy or (dl_device is not None and tuple(dl_device) != place):
            raise BufferError("an output of deploykit is handed out where it is, without a copy")
        if stream != -1:
            device = self._block.device
            with device.activated():
                device.wait(stream_handle(stream), self._block.ready)
        return dlpack.make_capsule(self.address, self.shape, self.dtype, place, self)

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on cuda:{self._block.device.index})"
