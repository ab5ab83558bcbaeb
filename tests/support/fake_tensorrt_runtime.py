"""A stand-in for ``tensorrt_rtx.Runtime`` that runs engines on the CPU with ONNX Runtime.

Only ``Runtime`` and what comes from it is replaced; the rest of the module is the genuine one, and
a stand-in has no method or attribute that the genuine class lacks. Memory is that of
``fake_libcuda.c``. Addresses have to be aligned and set, shapes to fit the graph, scratch memory to
be large enough.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import tensorrt_rtx as trt

from deploykit.spec import InputSpec

GENUINE = {
    name: getattr(trt, name)
    for name in ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeCache")
}
SCRATCH = 4096
# Whether contexts start without an optimisation profile.
PROFILES_ARE_CHOSEN_LATE = False
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DTYPES = {
    "tensor(uint8)": trt.DataType.UINT8,
    "tensor(int32)": trt.DataType.INT32,
    "tensor(float)": trt.DataType.FLOAT,
}


class _Like:
    """Refuses what the genuine class does not have."""

    genuine = ""

    def __init_subclass__(cls) -> None:
        public = {name for name in vars(cls) if not name.startswith("_")} - {"genuine", "made"}
        missing = public - set(dir(GENUINE[cls.genuine]))
        assert not missing, f"{cls.genuine} has no {missing}"


def install(graph: Path, spec: InputSpec) -> None:
    """Let engines run ``graph`` from now on, in this process.

    Args:
        graph: An ONNX file.
        spec: The shapes that its inputs may have.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_enqueue.argtypes = (ctypes.c_void_p, _WORK, ctypes.c_void_p)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    class Runtime(_Like):
        genuine = "Runtime"
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, trt.ILogger)
            self._genuine = GENUINE["Runtime"](logger)

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            engine = Engine(driver, session, spec)
            engine._host_code_allowed = self.engine_host_code_allowed
            return engine

    trt.Runtime = Runtime


class Engine(_Like):
    """See ``ICudaEngine``."""

    genuine = "ICudaEngine"
    num_optimization_profiles = 1
    device_memory_size_v2 = SCRATCH

    def __init__(self, driver: Any, session: Any, spec: InputSpec) -> None:
        self._driver, self._session, self._spec = driver, session, spec
        self._inputs = {node.name: node for node in session.get_inputs()}
        self._outputs = {node.name: node for node in session.get_outputs()}
        self._all = self._inputs | self._outputs
        self.num_io_tensors = len(self._all)

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_location(self, name: str) -> Any:
        return trt.TensorLocation.DEVICE

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return _DTYPES[self._all[name].type]

    def get_tensor_shape(self, name: str) -> Any:
        sizes = [size if isinstance(size, int) else -1 for size in self._all[name].shape]
        return trt.Dims(sizes)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        assert profile_index == 0
        ranges = (self._spec.batch, self._spec.height, self._spec.width)
        tail = [3] if name == "images" else []
        axes = ranges if name == "images" else ranges[:1]
        if name != "images":
            tail = list(self._inputs[name].shape[1:])
        return [
            trt.Dims([getattr(axis, kind) for axis in axes] + tail)
            for kind in ("min", "opt", "max")
        ]

    def create_runtime_config(self) -> Any:
        return _Config()

    def create_execution_context(self, config: Any) -> Any:
        strategy = config.strategy if isinstance(config, _Config) else config
        assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(config, _Config):
            config.cache._compiled = 1
        return Context(self)


class _Cache(_Like):
    """See ``IRuntimeCache``: counts the contexts that compiled into it."""

    genuine = "IRuntimeCache"
    made: ClassVar[list[_Cache]] = []

    def __init__(self) -> None:
        self._compiled = 0
        self._blobs: list[bytes] = []
        _Cache.made.append(self)

    def deserialize(self, blob: bytes) -> bool:
        self._blobs.append(blob)
        if not blob.startswith(b"kernels "):
            return False
        self._compiled = int(blob[8:])
        return True

    def serialize(self) -> bytes:
        return b"kernels %d" % self._compiled


class _Config:
    """What of ``IRuntimeConfig`` is used; a genuine one needs a genuine engine."""

    dynamic_shapes_kernel_specialization_strategy: Any = None
    strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> _Cache:
        return _Cache()

    def set_runtime_cache(self, cache: _Cache) -> bool:
        self.cache = cache
        return True


for _name in vars(_Config):
    if not _name.startswith("_") and _name != "strategy":
        assert hasattr(trt.IRuntimeConfig, _name)


class Context(_Like):
    """See ``IExecutionContext``."""

    genuine = "IExecutionContext"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = False
        self.active_optimization_profile = -1 if PROFILES_ARE_CHOSEN_LATE else 0
        self._kept: list[Any] = []

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert profile_index == 0 and stream_handle > 2 and not self._shapes
        self.active_optimization_profile = 0
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0 and size >= SCRATCH
        self._scratch = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = [size if isinstance(size, int) else -1 for size in self._engine._all[name].shape]
        assert all(want in (-1, size) for want, size in zip(fixed, shape, strict=True))
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self._addresses[name] = memory
        return memory % 256 == 0

    def get_tensor_shape(self, name: str) -> Any:
        shape = self._engine._all[name].shape
        return trt.Dims([self._shapes["images"][0], *shape[1:]])

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.active_optimization_profile == 0
        assert self._scratch and set(self._addresses) == set(self._engine._all)
        assert set(self._shapes) == set(self._engine._inputs)
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def work(_: Any) -> None:
            feeds = {}
            for name, node in self._engine._inputs.items():
                feeds[name] = _read(addresses[name], shapes[name], _dtype(node))
            names = list(self._engine._outputs)
            for name, value in zip(names, self._engine._session.run(names, feeds), strict=True):
                ctypes.memmove(addresses[name], value.ctypes.data, value.nbytes)

        self._kept.append(_WORK(work))
        return self._engine._driver.fake_enqueue(stream_handle, self._kept[-1], None) == 0


def _dtype(node: Any) -> np.dtype[Any]:
    return np.dtype(trt.nptype(_DTYPES[node.type]))


def _read(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    data = ctypes.string_at(address, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(shape)
