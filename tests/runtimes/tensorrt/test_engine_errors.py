"""Engines that must not run, through the real TensorRT-RTX and the real command line."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_cuda import FakeDevice

from deploykit.cli import main
from deploykit.engine_spec import (
    BuildFlags,
    EngineSpec,
    PluginKernel,
    engine_spec_path,
    read_engine_spec,
    write_engine,
)
from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.backend import open_backend
from deploykit.runtimes.tensorrt import cuda_calls
from deploykit.runtimes.tensorrt.device import EngineTensor
from deploykit.runtimes.tensorrt.engine import TensorRTEngine
from deploykit.runtimes.tensorrt.engine_checks import check_device, check_tensors, check_version
from deploykit.spec import ModelSpec
from deploykit.tensorrt_flavour import load_flavour

WriteEngine = Callable[..., Path]
PATH = Path("model.engine")


def gpu_is_missing() -> bool:
    try:
        cuda_calls.load_driver()
    except BackendError:
        return True
    return False


def refusal(engine: Path, capsys: pytest.CaptureFixture[str], device: str = "auto") -> str:
    """Return the one line that ``deploykit detect`` ends with, after exit code 2."""
    image = engine.parent / "image.png"
    cv2.imwrite(str(image), np.zeros((64, 64, 3), np.uint8))
    assert main(["detect", str(engine), str(image), "--device", device]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_a_truncated_engine(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write_rtx_engine()
    data = engine.read_bytes()
    engine.write_bytes(data[: len(data) // 2])
    line = refusal(engine, capsys)
    assert f"{len(data) // 2:,} bytes" in line and f"{len(data):,}" in line and "cut off" in line


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_changed_byte(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    engine = write_rtx_engine()
    data = bytearray(engine.read_bytes())
    data[place] ^= 1
    engine.write_bytes(data)
    line = refusal(engine, capsys)
    assert hashlib.sha256(data).hexdigest()[:16] in line
    assert read_engine_spec(engine).engine_sha256[:16] in line


def test_an_engine_without_spec(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = write_rtx_engine()
    engine_spec_path(engine).unlink()
    line = refusal(engine, capsys)
    assert "no spec" in line and "model.engine.json" in line and "deploykit convert" in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}'])
def test_a_damaged_spec(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    engine = write_rtx_engine()
    engine_spec_path(engine).write_text(text)
    assert "model.engine.json" in refusal(engine, capsys)


def test_another_version_of_tensorrt(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(write_rtx_engine(described={"tensorrt_version": "1.6.0.27"}), capsys)
    assert "built with TensorRT-RTX 1.6.0.27" in line
    assert f"but {load_flavour('rtx').__version__} is installed" in line


def test_a_flavour_that_is_not_installed(
    write_rtx_engine: WriteEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = write_rtx_engine()
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    line = refusal(engine, capsys)
    assert "'tensorrt_rtx', which is not installed" in line
    assert "pip install 'deploykit[rtx]'" in line


def test_an_unknown_flavour(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(write_rtx_engine(described={"flavour": "tensorrt-9"}), capsys)
    assert "'tensorrt-9'" in line and "tensorrt, rtx" in line


def test_cuda_bindings_are_not_installed(
    write_rtx_engine: WriteEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda_calls.load_driver.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    line = refusal(write_rtx_engine(), capsys)
    assert "'cuda', which is not installed" in line and "pip install 'deploykit[rtx]'" in line


@pytest.mark.skipif(not gpu_is_missing(), reason="this machine has an NVIDIA GPU")
def test_no_gpu(write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(write_rtx_engine(), capsys)
    assert "needs an NVIDIA GPU" in line and "NVIDIA driver" in line and ".onnx" in line


@pytest.mark.parametrize("device", ["cpu", "gpu", "cuda:x"])
def test_devices_that_run_no_engine(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    line = refusal(write_rtx_engine(), capsys, device)
    assert f"device '{device}'" in line and "cuda:N" in line


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_tensorrt_itself_refuses_what_is_no_engine(size: int) -> None:
    """Even with a spec that fits it: TensorRT's refusal is an error, not a crash."""
    trt = pytest.importorskip("tensorrt_rtx")
    for data in (bytes(size), b"x" * size):
        with pytest.raises(BackendError, match=r"TensorRT-RTX .*model\.engine") as caught:
            TensorRTEngine(trt, "rtx", data, PATH)
        assert "\n" not in str(caught.value) and "deploykit convert" in str(caught.value)


def test_tensorrt_itself_refuses_a_damaged_engine(write_rtx_engine: WriteEngine) -> None:
    trt = load_flavour("rtx")
    data = write_rtx_engine().read_bytes()
    for damaged in (data[:100], data[: len(data) // 2]):
        with pytest.raises(BackendError, match=r"TensorRT-RTX .*model\.engine"):
            TensorRTEngine(trt, "rtx", damaged, PATH)


def test_an_engine_of_a_plan_that_is_none(
    write_rtx_engine: WriteEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign file with a spec made to fit it ends in one line, too."""
    engine = write_rtx_engine()
    junk = b"not a plan" * 100
    spec = replace(
        read_engine_spec(engine),
        engine_bytes=len(junk),
        engine_sha256=hashlib.sha256(junk).hexdigest(),
    )
    write_engine(engine, junk, spec)
    refusal(engine, capsys)


def test_the_python_interface(write_rtx_engine: WriteEngine) -> None:
    engine = write_rtx_engine()
    with pytest.raises(UsageError, match=r"known: onnxruntime, pytorch, tensorrt"):
        open_backend(engine, "rtx")
    with pytest.raises(UsageError, match=r"expected a file in \.onnx, \.pth, \.pt, \.engine"):
        open_backend(engine.parent / "model.plan")


def described(spec: Callable[..., ModelSpec], **changes: Any) -> EngineSpec:
    return EngineSpec(
        **{
            "model": spec(),
            "flavour": "tensorrt",
            "tensorrt_version": "10.13.3",
            "engine_sha256": "",
            "engine_bytes": 0,
            "onnx_sha256": "",
            "compute_capability": "8.6",
            "device_name": "NVIDIA A10",
            "driver_version": "13.0",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("built", "installed", "compatible", "refused"),
    [
        ("10.13.3", "10.13.3", False, False),
        ("10.13.3.9", "10.13.3.9", False, False),
        ("10.13.3", "10.14.0", False, True),
        ("10.13.3", "10.14.0", True, False),
        ("10.13.3", "10.12.0", True, True),
        ("10.13.3", "11.0.0", True, True),
    ],
)
def test_versions(
    spec: Callable[..., ModelSpec], built: str, installed: str, compatible: bool, refused: bool
) -> None:
    flags = BuildFlags(version_compatible=compatible)
    engine = described(spec, tensorrt_version=built, build_flags=flags)
    if not refused:
        check_version(engine, installed, PATH)
        return
    with pytest.raises(BackendError) as caught:
        check_version(engine, installed, PATH)
    message = str(caught.value)
    assert f"TensorRT {built}" in message and f" {installed} is installed" in message
    assert "\n" not in message and "deploykit convert" in message


@pytest.mark.parametrize(
    ("changes", "here", "message"),
    [
        ({}, (8, 6), None),
        ({}, (8, 9), r"NVIDIA A10 with compute capability 8\.6, but cuda:0 \(fake\) has .* 8\.9"),
        ({"build_flags": BuildFlags(hardware_compatible=True)}, (12, 0), None),
        ({"build_flags": BuildFlags(hardware_compatible=True)}, (7, 5), r"8\.0 or newer.* 7\.5"),
        ({"compute_capability": None}, (12, 0), None),
        ({"build_flags": BuildFlags(compute_capabilities=("8.6", "8.9"))}, (8, 9), None),
        ({"build_flags": BuildFlags(compute_capabilities=("8.6", "8.9"))}, (9, 0),
         r"for compute capability 8\.6, 8\.9, but cuda:0 \(fake\) has 9\.0"),
    ],
)  # fmt: skip
def test_gpus(
    spec: Callable[..., ModelSpec], changes: Any, here: tuple[int, int], message: str | None
) -> None:
    device = FakeDevice()
    device.compute_capability = here  # type: ignore[misc]
    if message is None:
        check_device(described(spec, **changes), device, PATH)
        return
    with pytest.raises(BackendError, match=message):
        check_device(described(spec, **changes), device, PATH)


@pytest.mark.parametrize(
    ("built", "here", "plugins", "refused"),
    [
        ("13.0", (13, 0), True, False),
        ("13.0", (13, 1), True, False),
        ("13.1", (13, 0), False, False),
        ("13.1", (13, 0), True, True),
        ("13.0", (12, 9), False, True),
        (None, (12, 0), False, False),
    ],
)
def test_drivers(
    spec: Callable[..., ModelSpec],
    built: str | None,
    here: tuple[int, int],
    plugins: bool,
    refused: bool,
) -> None:
    device = FakeDevice()
    device.driver_version = here  # type: ignore[misc]
    kernels = (PluginKernel("nms", "00"),) if plugins else ()
    engine = described(spec, driver_version=built, plugins=kernels)
    if not refused:
        check_device(engine, device, PATH)
        return
    with pytest.raises(BackendError, match=rf"CUDA {built}, .*supports CUDA {here[0]}.{here[1]}"):
        check_device(engine, device, PATH)


def test_tensors_that_the_spec_does_not_promise(spec: Callable[..., ModelSpec]) -> None:
    images = EngineTensor("images", np.dtype(np.uint8), (1, 64, 64, 3), True)
    sizes = EngineTensor("image_sizes", np.dtype(np.int32), (1, 2), True)
    outputs = tuple(
        EngineTensor(name, np.dtype(np.float32), (1, 2), False) for name in spec().output.names
    )
    check_tensors(spec(), (images, *outputs), PATH)
    check_tensors(spec(image_sizes_input=True), (images, sizes, *outputs), PATH)
    with pytest.raises(BackendError, match=r"its spec says .*image_sizes"):
        check_tensors(spec(image_sizes_input=True), (images, *outputs), PATH)
    with pytest.raises(BackendError, match=r"has the inputs .*'images': 'float32'"):
        check_tensors(spec(), (replace(images, dtype=np.dtype(np.float32)), *outputs), PATH)
    with pytest.raises(BackendError, match=r"lacks the outputs \['boxes'\]"):
        check_tensors(spec(), (images, *outputs[1:]), PATH)
