"""Devices that run the kernels on the host."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from deploykit.plugins_trt.host_emulation import HostDevice


@pytest.fixture(scope="session")
def emulated(tmp_path_factory) -> Callable[..., HostDevice]:
    """Return ``emulated(seed)``, a device; each kernel is compiled once per session."""
    if shutil.which("g++") is None:
        pytest.skip("emulating kernels needs the compiler g++")
    folder = tmp_path_factory.mktemp("kernels")
    return lambda seed=0, fill=0xFF: HostDevice(folder, seed, fill)
