"""``TensorRTEngine``: an engine and its execution contexts, for both flavours of TensorRT."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.errors import BackendError
from deploykit.runtimes.backend import one_line
from deploykit.runtimes.tensorrt.device import EngineTensor, Memory, Shape
from deploykit.runtimes.tensorrt.kernel_cache import KernelCache
from deploykit.tensorrt_flavour import TITLES, collect_messages, logger


class TensorRTEngine:
    """A deserialised engine; see ``Engine``.

    Its device has to be active, here and in every other call.

    Args:
        trt: What ``load_flavour`` returned.
        flavour: Its name, for messages.
        plan: The serialised engine, checked against its spec.
        path: Where it came from, for messages.
        host_code: Whether the code for the host that a version-compatible engine carries may run.
        kernel_cache: Where TensorRT-RTX keeps the kernels that it compiles, or ``None``.

    Raises:
        BackendError: TensorRT refuses the engine.
    """

    def __init__(
        self,
        trt: ModuleType,
        flavour: str,
        plan: bytes,
        path: Path,
        *,
        host_code: bool = False,
        kernel_cache: Path | None = None,
    ) -> None:
        self._trt: Any = trt
        self._title = TITLES[flavour]
        self._path = path
        self._kernels = KernelCache(kernel_cache)
        self._lock = threading.Lock()
        with collect_messages(trt, "ERROR") as log:
            # Both are kept: an engine does not keep the runtime that made it.
            self._runtime: Any = self._trt.Runtime(logger(trt))
            if host_code:
                self._runtime.engine_host_code_allowed = True
            self._check_validity(plan, log.errors)
            self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{self._title} {trt.__version__} cannot load {path}: "
                f"{_reason(log.errors)}; build it again with: deploykit convert --to tensorrt"
            )
        if self._engine.num_optimization_profiles > 1:
            raise BackendError(
                f"{path} has {self._engine.num_optimization_profiles} optimisation profiles, "
                "expected one; build it with: deploykit convert --to tensorrt"
            )
        self.tensors = tuple(self._read_tensors())
        self.scratch_bytes = int(self._engine.device_memory_size_v2)

    def _check_validity(self, plan: bytes, errors: list[str]) -> None:
        """Let TensorRT-RTX say whether an engine fits this machine before it is loaded."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, bits = self._runtime.get_engine_validity(plan)
        if validity == self._trt.EngineValidity.INVALID:
            known = self._trt.EngineInvalidityDiagnostics.__members__.items()
            reasons = [name for name, bit in known if int(bits) & int(bit)]
            raise BackendError(
                f"{self._title} {self._trt.__version__} says that {self._path} is not valid on "
                f"this machine ({', '.join(reasons) or _reason(errors)}); "
                "build it again with: deploykit convert --to tensorrt --flavour rtx"
            )

    def _read_tensors(self) -> list[EngineTensor]:
        trt, engine = self._trt, self._engine
        tensors = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BackendError(
                    f"{self._path}: the tensor '{name}' has to be in host memory, which is not "
                    "supported: expected the inputs and outputs of deploykit's own models"
                )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(int(size) for size in engine.get_tensor_shape(name))
            profile = None
            if is_input:
                profile = (shape, shape, shape)
                if -1 in shape:
                    low, best, high = engine.get_tensor_profile_shape(name, 0)
                    profile = (tuple(low), tuple(best), tuple(high))
            tensors.append(EngineTensor(name, self._dtype(name), shape, is_input, profile))
        return tensors

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype = self._engine.get_tensor_dtype(name)
        try:
            scalar: type[Any] = self._trt.nptype(dtype)
        except TypeError:
            raise BackendError(
                f"{self._path}: the tensor '{name}' has the type {dtype}, which numpy lacks"
            ) from None
        return np.dtype(scalar)

    def create_context(self, scratch: Memory, stream: int, *, for_graph: bool) -> TensorRTContext:
        """Return a context that works in ``scratch``, on ``stream``."""
        trt = self._trt
        by_user = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        # Engines make contexts one at a time.
        with self._lock, collect_messages(trt, "ERROR") as log:
            strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
            if strategies is None:
                context = self._engine.create_execution_context(by_user)
            else:
                config = self._engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(by_user)
                # Kernels made for a shape come late with LAZY: a graph would keep the slow ones.
                config.dynamic_shapes_kernel_specialization_strategy = (
                    strategies.EAGER if for_graph else strategies.LAZY
                )
                self._kernels.attach(config)
                context = self._engine.create_execution_context(config)
        if context is None:
            raise BackendError(
                f"{self._title} cannot make an execution context for {self._path}: "
                f"{_reason(log.errors)}"
            )
        context.set_device_memory(scratch.address, scratch.nbytes)
        made = TensorRTContext(trt, context, self._title)
        made.choose_profile(stream)
        return made

    def free(self) -> None:
        """Keep the kernels it compiled; drop it and its runtime, which frees its weights."""
        self._kernels.save()
        self._engine = None
        self._runtime = None


class TensorRTContext:
    """An execution context; see ``ExecutionContext``.

    Args:
        trt: The flavour's module.
        context: TensorRT's own context.
        title: Name of the flavour, for messages.
    """

    def __init__(self, trt: ModuleType, context: Any, title: str) -> None:
        self._trt = trt
        self._context = context
        self._title = title

    def choose_profile(self, stream: int) -> None:
        """Choose the only profile, where TensorRT has not done so itself."""
        if self._context.active_optimization_profile != 0:
            self._check("set_optimization_profile_async", 0, stream)

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input."""
        self._check("set_input_shape", name, shape)

    def shape(self, name: str) -> Shape:
        """Return the shape of an output; -1 where it is unknown."""
        try:
            return tuple(int(size) for size in self._context.get_tensor_shape(name))
        except ValueError:  # TensorRT says "no shape" with a negative number of axes
            return (-1,)

    def set_address(self, name: str, address: int) -> None:
        """Set where a tensor is."""
        self._check("set_tensor_address", name, address)

    def enqueue(self, stream: int) -> None:
        """Queue one inference."""
        self._check("execute_async_v3", stream)

    def free(self) -> None:
        """Drop the context."""
        self._context = None

    def _check(self, method: str, *arguments: Any) -> None:
        with collect_messages(self._trt, "ERROR") as log:
            try:
                done = getattr(self._context, method)(*arguments)
            except Exception as error:  # the bindings raise what TensorRT's error recorder says
                raise BackendError(f"{self._title}: {method} failed: {one_line(error)}") from error
        if not done:
            raise BackendError(f"{self._title}: {method} failed: {_reason(log.errors)}")


def _reason(errors: list[str]) -> str:
    """Return the first error that TensorRT logged: the later ones follow from it."""
    return one_line(Exception(errors[0])) if errors else "it gives no reason"
