"""A very small engine: built, and run where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.errors import BackendError
from deploykit.tensorrt_flavour import collect_messages, logger

SIZE = 4


def build_tiny_engine(flavour: ModuleType) -> tuple[bytes | None, str]:
    """Build y = relu(x @ x) for x float32 [4, 4].

    Args:
        flavour: What ``load_flavour`` returned.

    Returns:
        The plan, or ``None`` and TensorRT's reason.
    """
    trt: Any = flavour
    with collect_messages(flavour, "ERROR") as log:
        builder = trt.Builder(logger(flavour))
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        x = network.add_input("x", trt.float32, (SIZE, SIZE))
        plain = trt.MatrixOperation.NONE
        product = network.add_matrix_multiply(x, plain, x, plain).get_output(0)
        y = network.add_activation(product, trt.ActivationType.RELU).get_output(0)
        y.name = "y"
        network.mark_output(y)
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        return None, " ".join(" ".join(log.errors).split())[:300] or "TensorRT gave no reason"
    return bytes(plan), ""


def run_tiny_engine(name: str, plan: bytes) -> None:
    """Run the engine the way ``Detector`` runs engines, and check its result.

    Args:
        name: The flavour.
        plan: What ``build_tiny_engine`` returned.

    Raises:
        BackendError: It does not run, or the result is wrong.
    """
    from deploykit.runtimes.tensorrt.cuda_device import CudaDevice
    from deploykit.runtimes.tensorrt.engine import TensorRTEngine
    from deploykit.runtimes.tensorrt.session import EngineSession
    from deploykit.tensorrt_flavour import load_flavour

    path = Path("doctor.engine")
    device = CudaDevice(0)
    with device.activated():
        engine = TensorRTEngine(load_flavour(name), name, plan, path)
    session = EngineSession(device, engine, path)
    try:
        x = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) - 8
        for _ in range(3):  # plain, captured, replayed
            y = session.run({"x": x})["y"]
            if not np.allclose(y, np.maximum(x @ x, 0), rtol=1e-2):
                raise BackendError(f"a small engine gives a wrong result: {y.tolist()}")
    finally:
        session.close()
