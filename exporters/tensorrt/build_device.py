"""The GPU of the machine that builds, if there is one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BuildDevice:
    """A GPU.

    Args:
        name: E.g. ``"NVIDIA RTX A4000"``.
        compute_capability: E.g. ``"8.6"``.
        driver_version: CUDA version of the driver, e.g. ``"13.0"``.
    """

    name: str
    compute_capability: str
    driver_version: str


def build_device() -> BuildDevice | None:
    """Return the GPU that TensorRT builds on, the first visible one, or ``None`` without one."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        _call(driver.cuInit(0))
        device = _call(driver.cuDeviceGet(0))
        name = _call(driver.cuDeviceGetName(256, device))
        attribute = driver.CUdevice_attribute
        major, minor = (
            _call(driver.cuDeviceGetAttribute(which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        version = int(_call(driver.cuDriverGetVersion()))
    except Exception:  # without a driver the bindings raise whatever their loader raises
        return None
    text = name.split(b"\0")[0].decode() if isinstance(name, bytes) else os.fspath(name)
    return BuildDevice(text, f"{major}.{minor}", f"{version // 1000}.{version % 1000 // 10}")


def _call(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise RuntimeError(str(status))
    return values[0] if values else None
