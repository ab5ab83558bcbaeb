"""``CudaDevice``: one GPU through the CUDA driver API and cuda-bindings."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.tensorrt import dlpack
from deploykit.runtimes.tensorrt.cuda_calls import call, load_driver
from deploykit.runtimes.tensorrt.device import LEGACY_DEFAULT_STREAM

# CUDA refuses blocks of no bytes.
_SMALLEST_BLOCK = 256
# The handles 0, 1 and 2 name default streams, which belong to whatever context is current.
_PER_THREAD_DEFAULT_STREAM = 2
_FIX_CONTEXT = (
    "deploykit, PyTorch and CuPy use the primary context; with PyCUDA use "
    "'import pycuda.autoprimaryctx' instead of 'import pycuda.autoinit'"
)


class CudaDevice:
    """One GPU, through its primary context; see ``Device``.

    The context is retained until the last object made from it is gone, even past the end of a
    backend: arrays that were handed out stay valid.

    Args:
        index: The N of ``cuda:N``.

    Raises:
        BackendError: No driver, no GPU, or not that many of them.
    """

    dlpack_type = dlpack.CUDA

    def __init__(self, index: int = 0) -> None:
        self._driver = load_driver()
        count = call("cuDeviceGetCount")
        if not 0 <= index < count:
            known = ", ".join(f"cuda:{number}" for number in range(count))
            raise BackendError(f"there is no device cuda:{index}; this machine has {known}")
        self.index = index
        self._device = call("cuDeviceGet", index)
        raw_name: bytes = call("cuDeviceGetName", 128, self._device)
        self.name = raw_name.split(b"\0")[0].decode(errors="replace")
        attributes = self._driver.CUdevice_attribute
        self.compute_capability = (
            int(
                call(
                    "cuDeviceGetAttribute",
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    self._device,
                )
            ),
            int(
                call(
                    "cuDeviceGetAttribute",
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                    self._device,
                )
            ),
        )
        version = int(call("cuDriverGetVersion"))
        self.driver_version = (version // 1000, version % 1000 // 10)
        self.context = call("cuDevicePrimaryCtxRetain", self._device)
        weakref.finalize(self, _quietly, "cuDevicePrimaryCtxRelease", self._device)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Push the primary context for this thread, and pop it afterwards."""
        call("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> CudaMemory:
        """Return memory of the device (CUDA aligns it to 256 bytes or more)."""
        return CudaMemory(self, nbytes)

    def allocate_pinned(self, nbytes: int) -> CudaPinnedMemory:
        """Return page-locked memory of the host."""
        return CudaPinnedMemory(self, nbytes)

    def create_stream(self) -> CudaStream:
        """Return a new stream that does not wait for the legacy default stream."""
        return CudaStream(self)

    def create_event(self) -> CudaEvent:
        """Return a new event, which measures no time."""
        return CudaEvent(self)

    def wait(self, stream: int, event: Any) -> None:
        """Let ``stream`` wait for ``event``."""
        call("cuStreamWaitEvent", stream, event.handle, 0)

    def copy_in(self, target: int, source: Any, offset: int, nbytes: int, stream: int) -> None:
        """Queue a copy from pinned memory."""
        call("cuMemcpyHtoDAsync", target, source.address + offset, nbytes, stream)

    def copy_out(self, target: Any, offset: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy to pinned memory."""
        call("cuMemcpyDtoHAsync", target.address + offset, source, nbytes, stream)

    def copy_within(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy between two addresses of the device."""
        call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def clear(self, target: int, nbytes: int, stream: int) -> None:
        """Queue writing zeros."""
        call("cuMemsetD8Async", target, 0, nbytes, stream)

    def check_address(self, address: int) -> None:
        """Raise ``UsageError`` unless ``address`` is memory of this device and context."""
        kinds = self._driver.CUpointer_attribute
        try:
            ordinal = call(
                "cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address
            )
            memory = call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
        except BackendError as error:
            raise UsageError(
                f"the array at {address:#x} is not memory that CUDA knows; expected an array on "
                f"cuda:{self.index} ({error})"
            ) from error
        if int(memory) != int(self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE):
            raise UsageError(
                f"the array at {address:#x} is in host memory; pass it as a numpy array"
            )
        if int(ordinal) != self.index:
            raise UsageError(
                f"the array is on cuda:{int(ordinal)}, the engine is on cuda:{self.index}; move one"
            )
        try:
            owner = call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_CONTEXT, address)
        except BackendError:
            return  # memory of pools and virtual mappings belongs to no context
        if int(owner) not in (0, int(self.context)):
            raise UsageError(f"the array belongs to another CUDA context; {_FIX_CONTEXT}")

    def check_stream(self, stream: int) -> None:
        """Raise ``UsageError`` unless ``stream`` belongs to this device and context."""
        if stream in (0, LEGACY_DEFAULT_STREAM, _PER_THREAD_DEFAULT_STREAM):
            return
        if int(call("cuStreamGetCtx", stream)) != int(self.context):
            raise UsageError(
                f"the stream {stream:#x} belongs to another CUDA context; {_FIX_CONTEXT}"
            )


class _Resource:
    """Something of the driver that is given back once: by ``free``, or when it is forgotten."""

    def __init__(self, device: CudaDevice, give_back: Callable[[CudaDevice, Any], None], it: Any):
        self._finalizer = weakref.finalize(self, give_back, device, it)

    def free(self) -> None:
        """Give it back to the driver. Again: does nothing."""
        self._finalizer()


class CudaMemory(_Resource):
    """Memory of the device; see ``Memory``. Freeing it waits for work of the device."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self.nbytes = nbytes
        pointer = call("cuMemAlloc", max(nbytes, _SMALLEST_BLOCK))
        self.address = int(pointer)
        super().__init__(device, _in_context("cuMemFree"), pointer)


class CudaPinnedMemory(_Resource):
    """Page-locked memory of the host; see ``PinnedMemory``."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(call("cuMemHostAlloc", max(nbytes, _SMALLEST_BLOCK), 0))
        super().__init__(device, _in_context("cuMemFreeHost"), self.address)
        block = (ctypes.c_uint8 * nbytes).from_address(self.address)
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array(block)


class CudaStream(_Resource):
    """A stream; see ``Stream``."""

    def __init__(self, device: CudaDevice) -> None:
        self._driver = device._driver
        self._device = device
        stream = call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.handle = int(stream)
        super().__init__(device, _in_context("cuStreamDestroy"), stream)

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        call("cuStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """Record what this thread queues. Other threads may go on allocating meanwhile."""
        modes = self._driver.CUstreamCaptureMode
        call("cuStreamBeginCapture", self.handle, modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self) -> CudaGraph:
        """Stop recording and return what was recorded."""
        graph = call("cuStreamEndCapture", self.handle)
        try:
            executable = call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)
        return CudaGraph(self._device, executable)


class CudaEvent(_Resource):
    """An event; see ``Event``."""

    def __init__(self, device: CudaDevice) -> None:
        flags = device._driver.CUevent_flags
        event = call("cuEventCreate", flags.CU_EVENT_DISABLE_TIMING)
        self.handle = event
        super().__init__(device, _in_context("cuEventDestroy"), event)

    def record(self, stream: int) -> None:
        """Move the event behind all work that ``stream`` has now."""
        call("cuEventRecord", self.handle, stream)


class CudaGraph(_Resource):
    """An executable graph; see ``Graph``."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._executable = executable
        super().__init__(device, _in_context("cuGraphExecDestroy"), executable)

    def launch(self, stream: int) -> None:
        """Queue the work."""
        call("cuGraphLaunch", self._executable, stream)


def _in_context(name: str) -> Callable[[CudaDevice, Any], None]:
    """Return a function that gives something back in the context of its device.

    It cannot raise: it may run while an error is on its way or while the process ends.
    """

    def give_back(device: CudaDevice, it: Any) -> None:
        with suppress(BackendError), device.activated():
            call(name, it)

    return give_back


def _quietly(name: str, *arguments: Any) -> None:
    with suppress(BackendError):
        call(name, *arguments)
