"""What ``engine.py`` calls exists, under the same names, in both flavours of TensorRT."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import genuine_tensorrt
import numpy as np
import pytest

from deploykit.runtimes.tensorrt import engine

NAMES = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "num_optimization_profiles",
        "device_memory_size_v2",
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_shape",
        "get_tensor_profile_shape",
        "get_tensor_dtype",
        "create_execution_context",
    ),
    "IExecutionContext": (
        "active_optimization_profile",
        "set_optimization_profile_async",
        "set_device_memory",
        "set_input_shape",
        "set_tensor_address",
        "get_tensor_shape",
        "execute_async_v3",
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorLocation": ("DEVICE",),
    "TensorIOMode": ("INPUT",),
}
RTX_NAMES = {
    "Runtime": ("get_engine_validity",),
    "EngineValidity": ("INVALID",),
    "ICudaEngine": ("create_runtime_config",),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER", "LAZY"),
    "IRuntimeConfig": (
        "set_execution_context_allocation_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "create_runtime_cache",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("serialize", "deserialize"),
}


def missing(module: ModuleType, names: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{kind}.{name}"
        for kind, members in names.items()
        for name in members
        if not hasattr(getattr(module, kind, None), name)
    ]


def check_dtypes(module: Any) -> None:
    for ours, theirs in ((np.uint8, "UINT8"), (np.int32, "INT32"), (np.float32, "FLOAT")):
        assert np.dtype(module.nptype(getattr(module.DataType, theirs))) == ours


def test_the_list_is_what_is_used() -> None:
    folder = Path(engine.__file__).parent
    text = (folder / "engine.py").read_text() + (folder / "kernel_cache.py").read_text()
    for names in (NAMES, RTX_NAMES):
        for members in names.values():
            for name in members:
                assert name in text, name


def test_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert missing(trt, NAMES) == [] and missing(trt, RTX_NAMES) == []
    check_dtypes(trt)


@pytest.mark.skipif(
    bool(genuine_tensorrt.missing_packages()),
    reason=f"needs {genuine_tensorrt.PACKAGES}, the classes of TensorRT without its libraries",
)
def test_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> None:
    trt = genuine_tensorrt.load(tmp_path_factory.mktemp("libraries"))
    assert missing(trt, NAMES) == []
    check_dtypes(trt)
    assert not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"), "which engine.py asks for"
