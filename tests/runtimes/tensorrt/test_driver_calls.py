"""The real calls of CUDA, through the genuine cuda-bindings, on a stand-in for the driver.

They show that every call has the right name, order and types of arguments, that every error is
checked, and that all is given back. No GPU is involved, and TensorRT runs no engine here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.spec import DimRange

SUPPORT = Path(__file__).parents[2] / "support"
CHECKS = (
    "detector",
    "backend",
    "threads",
    "device_arrays",
    "other_flavour",
    "kernel_cache",
    "out_of_memory",
    "leaks",
    "forgotten",
    "devices",
    "host_code",
    "foreign_context",
    "commands",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    source = str(SUPPORT / "fake_libcuda.c")
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1"), source, "-lpthread"], check=True)
    return folder


def test_every_check_is_run() -> None:
    text = (SUPPORT / "driver_checks.py").read_text()
    defined = {
        line.split("(")[0][10:] for line in text.splitlines() if line.startswith("def check_")
    }
    assert defined == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_stand_in_for_the_driver(
    check: str,
    driver: Path,
    write_rtx_engine: Callable[..., Path],
    image_folder: Path,
) -> None:
    engine = write_rtx_engine(batch=DimRange(1, 4, 8), image_sizes_input=True)
    graph = engine.with_name("graph.onnx")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(driver),
        "PYTHONPATH": str(SUPPORT),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(SUPPORT / "driver_checks.py"), check, engine, graph, image_folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=engine.parent,
    )
    assert result.returncode == 0 and result.stdout.endswith("done\n"), (
        result.stdout + result.stderr
    )


def refusal(engine: Path, images: Path, driver: Path, **environment: str) -> str:
    """Return the one line that the command ends with, after exit code 2."""
    result = subprocess.run(
        [sys.executable, "-m", "deploykit", "detect", str(engine), str(images)],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=engine.parent,
    )
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_driver_without_gpu(
    driver: Path, write_rtx_engine: Callable[..., Path], image_folder: Path
) -> None:
    line = refusal(write_rtx_engine(), image_folder, driver, FAKE_CUDA_DEVICES="0")
    assert "the NVIDIA driver sees none" in line and "CUDA_ERROR_NO_DEVICE" in line


@pytest.mark.parametrize(
    ("described", "built", "here"),
    [
        ({"compute_capability": "9.0", "device_name": "NVIDIA H100"}, "H100 with .*9.0", "8.6"),
        ({"driver_version": "14.1"}, "CUDA 14.1", "CUDA 13.2"),
    ],
)
def test_another_gpu_or_driver(
    driver: Path,
    write_rtx_engine: Callable[..., Path],
    image_folder: Path,
    described: dict[str, str],
    built: str,
    here: str,
) -> None:
    line = refusal(write_rtx_engine(described=described), image_folder, driver)
    assert re.search(built, line) and here in line and "deploykit convert" in line
