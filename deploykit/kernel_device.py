"""Runs the kernels of ``plugins_trt`` on a GPU, without TensorRT: to test and to time them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError
from deploykit.plugins_trt.kernel import Kernel, Launch
from deploykit.plugins_trt.nvrtc import architecture_for, compile_ptx
from deploykit.runtimes.tensorrt.cuda_calls import call, load_driver
from deploykit.runtimes.tensorrt.cuda_device import CudaDevice

Array = npt.NDArray[Any]


class KernelArray:
    """A contiguous array in a GPU's memory.

    Args:
        address: Where it is.
        shape: Sizes of the axes.
        dtype: numpy's name of the element type.
        owner: What keeps the memory alive.
    """

    def __init__(self, address: int, shape: Sequence[int], dtype: str, owner: Any) -> None:
        self.address, self.shape, self.dtype = address, tuple(shape), dtype
        self._owner = owner


class KernelDevice:
    """Memory and kernel launches on a GPU, on one stream; see ``kernel_chain.Device``.

    Args:
        index: Number of the GPU.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        BackendError: No driver, no such GPU, or one that is too old.
    """

    def __init__(self, index: int = 0) -> None:
        self.gpu = CudaDevice(index)
        self._architecture = architecture_for(self.gpu.compute_capability)
        self._functions: dict[Kernel, Any] = {}
        with self.gpu.activated():
            self._stream = self.gpu.create_stream()

    def empty(self, shape: Sequence[int], dtype: str) -> KernelArray:
        """Allocate an array."""
        with self.gpu.activated():
            memory = self.gpu.allocate(_nbytes(shape, dtype))
        return KernelArray(memory.address, shape, dtype, memory)

    def upload(self, array: Array) -> KernelArray:
        """Copy an array to the GPU."""
        copy = self.empty(array.shape, str(array.dtype))
        with self.gpu.activated():
            pinned = self.gpu.allocate_pinned(max(array.nbytes, 1))
            pinned.array[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.gpu.copy_in(copy.address, pinned, 0, array.nbytes, self._stream.handle)
            self._stream.synchronize()
        return copy

    def download(self, array: KernelArray) -> Array:
        """Copy an array from the GPU, once all launches are done."""
        nbytes = _nbytes(array.shape, array.dtype)
        with self.gpu.activated():
            pinned = self.gpu.allocate_pinned(max(nbytes, 1))
            self.gpu.copy_out(pinned, 0, array.address, nbytes, self._stream.handle)
            self._stream.synchronize()
            return pinned.array[:nbytes].copy().view(array.dtype).reshape(array.shape)

    def launch(self, kernel: Kernel, launch: Launch, tensors: Mapping[str, Any]) -> None:
        """Launch a kernel; it runs after what was launched before.

        Args:
            kernel: The kernel.
            launch: Its launch.
            tensors: Its inputs and outputs by name, ``KernelArray``.
        """
        if 0 in launch.grid:
            return
        values: list[Any] = [ctypes.c_void_p(tensors[name].address) for name in kernel.inputs]
        values += [ctypes.c_int32(value) for value in launch.scalars]
        values += [ctypes.c_void_p(tensors[name].address) for name in kernel.outputs]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid, block = launch.grid, (launch.threads, 1, 1)
        with self.gpu.activated():
            function = self._function(kernel)
            stream, arguments = self._stream.handle, ctypes.addressof(places)
            call("cuLaunchKernel", function, *grid, *block, 0, stream, arguments, 0)

    def record(self, run: Callable[[], Any]) -> Callable[[], None]:
        """Record launches as a CUDA graph, as an engine replays them.

        Args:
            run: Launches kernels; it is called once before, so that they are loaded.

        Returns:
            A function that launches the graph.
        """
        run()
        with self.gpu.activated():
            self._stream.synchronize()
            self._stream.begin_capture()
            try:
                run()
            finally:
                graph = self._stream.end_capture()

        def replay() -> None:
            with self.gpu.activated():
                graph.launch(self._stream.handle)

        return replay

    def synchronize(self) -> None:
        """Wait for what was launched."""
        with self.gpu.activated():
            self._stream.synchronize()

    def time(self, run: Callable[[], None], repeats: int) -> list[float]:
        """Time launches by events on the stream, each repetition alone.

        Args:
            run: Launches kernels.
            repeats: How often.

        Returns:
            Milliseconds of each repetition.
        """
        flags = load_driver().CUevent_flags.CU_EVENT_DEFAULT
        milliseconds = []
        with self.gpu.activated():
            start, end = call("cuEventCreate", flags), call("cuEventCreate", flags)
            try:
                for _ in range(repeats):
                    call("cuEventRecord", start, self._stream.handle)
                    run()
                    call("cuEventRecord", end, self._stream.handle)
                    self._stream.synchronize()
                    milliseconds.append(float(call("cuEventElapsedTime", start, end)))
            finally:
                call("cuEventDestroy", start)
                call("cuEventDestroy", end)
        return milliseconds

    def _function(self, kernel: Kernel) -> Any:
        if kernel not in self._functions:
            module = call("cuModuleLoadData", compile_ptx(kernel, self._architecture))
            weakref.finalize(self, _unload, self.gpu, module)
            self._functions[kernel] = call("cuModuleGetFunction", module, kernel.name.encode())
        return self._functions[kernel]


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _unload(gpu: CudaDevice, module: Any) -> None:
    with suppress(BackendError), gpu.activated():
        call("cuModuleUnload", module)
