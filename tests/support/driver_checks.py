"""Checks of the TensorRT backend on ``fake_libcuda.c``, each run in a process of its own.

``LD_LIBRARY_PATH`` has to name the folder with the stand-in as ``libcuda.so.1``. The calls go
through the genuine cuda-bindings; engines run on the CPU (``fake_tensorrt_runtime.py``).

    python driver_checks.py CHECK ENGINE GRAPH IMAGES
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt_runtime
import numpy as np

from deploykit import Detector
from deploykit.cli import main
from deploykit.engine_spec import read_engine, read_engine_spec, write_engine
from deploykit.errors import BackendError, UsageError
from deploykit.image_io import read_image
from deploykit.runtimes.backend import Backend, open_backend
from deploykit.runtimes.tensorrt.backend import TensorRTBackend
from deploykit.runtimes.tensorrt.cuda_calls import call
from deploykit.runtimes.tensorrt.cuda_device import CudaDevice

driver = ctypes.CDLL("libcuda.so.1")
KINDS = ("device", "host", "stream", "event", "graph", "executable", "context")


def live() -> dict[str, int]:
    """Return how many things of each kind the driver has given out."""
    gc.collect()
    return {kind: driver.fake_live(number) for number, kind in enumerate(KINDS)}


def assert_nothing_lives() -> None:
    assert not any(live().values()), live()
    assert driver.fake_depth() == 0


def batch(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (rows, 64, 64, 3), np.uint8)
    return images, np.full((rows, 2), (40, 50), np.int32)


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name])


def check_detector(engine: Path, graph: Path, images: Path) -> None:
    pictures = [read_image(path) for path in sorted(images.glob("*.png"))]
    with Detector(engine) as ours, Detector(graph) as theirs:
        assert isinstance(ours.backend, Backend) and ours.backend.device == "cuda:0"
        assert ours.backend.name == "tensorrt-rtx"
        for repeat in range(3):
            assert ours(pictures) == theirs(pictures), repeat
            for picture in pictures[:5]:
                assert ours(picture).to_json() == theirs(picture).to_json()
        assert live()["executable"] > 0
    assert_nothing_lives()


def check_backend(engine: Path, graph: Path, images: Path) -> None:
    reference = open_backend(graph)
    for options in ({}, {"cuda_graphs": False}, {"lanes": 1, "max_graphs": 1}):
        with TensorRTBackend(engine, **options) as backend:
            for number in range(40):
                given = batch(1 + number % 7, number)
                assert_same(backend.infer(*given), reference.infer(*given))
        assert_nothing_lives()


def check_threads(engine: Path, graph: Path, images: Path) -> None:
    reference = open_backend(graph)
    items = [batch(1 + seed % 8, seed) for seed in range(100)]
    with TensorRTBackend(engine, lanes=3) as backend, ThreadPoolExecutor(6) as pool:
        for given, ours in zip(items, pool.map(lambda it: backend.infer(*it), items), strict=True):
            assert_same(ours, reference.infer(*given))
        assert live()["stream"] <= 3
    assert_nothing_lives()


class OnDevice:
    """An array in the driver's memory, with the CUDA array interface."""

    def __init__(self, device: CudaDevice, values: np.ndarray) -> None:
        with device.activated():
            self.memory = device.allocate(values.nbytes)
        ctypes.memmove(self.memory.address, values.ctypes.data, values.nbytes)
        self.shape = values.shape
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.address, False),
            "version": 3,
        }


def on_host(array: Any) -> np.ndarray:
    data = ctypes.string_at(array.address, array.nbytes)
    return np.frombuffer(data, array.dtype).reshape(array.shape)


def check_device_arrays(engine: Path, graph: Path, images: Path) -> None:
    reference = open_backend(graph)
    device = CudaDevice(0)
    with device.activated():
        stream = device.create_stream()
    for options in ({}, {"cuda_graphs": False}):
        with TensorRTBackend(engine, **options) as backend:
            for number in range(8):
                pixels, sizes = batch((4, 3)[number % 2], number)
                array = OnDevice(device, pixels)
                expected = reference.infer(pixels, sizes)
                handle = (stream.handle, None)[number % 2]
                assert_same(backend.infer(array, sizes, stream=handle), expected)
                outputs = backend.infer_device(array, OnDevice(device, sizes), stream=handle)
                assert_same({name: on_host(value) for name, value in outputs.items()}, expected)
            target = OnDevice(device, expected["boxes"] * 0)
            given = backend.infer_device(array, sizes, stream=handle, out={"boxes": target})
            assert given == {"boxes": target}
            values = ctypes.string_at(target.memory.address, expected["boxes"].nbytes)
            assert values == expected["boxes"].tobytes()
            del target, given
            assert outputs["boxes"].__cuda_array_interface__["data"][0] == outputs["boxes"].address
            assert outputs["boxes"].__dlpack_device__() == (2, 0)
            for wrong, message in (
                (np.ascontiguousarray(pixels, np.float32), "is float32"),
                (pixels[0], "expected uint8 with 4 axes"),
            ):
                try:
                    backend.infer(OnDevice(device, wrong), sizes)
                except UsageError as error:
                    assert message in str(error), error
                else:
                    raise AssertionError(message)
            try:
                backend.infer(pixels, sizes, stream=12345)
            except BackendError as error:
                assert "cuStreamGetCtx failed: CUDA_ERROR_INVALID_HANDLE" in str(error), error
            else:
                raise AssertionError("12345 is no stream")
        values = on_host(outputs["boxes"])
        np.testing.assert_array_equal(values, expected["boxes"])
        del outputs, array, values
    stream.free()
    del device, stream
    assert_nothing_lives()


def check_other_flavour(engine: Path, graph: Path, images: Path) -> None:
    """TensorRT has no ``DynamicShapesKernelSpecializationStrategy``; a profile may be to choose."""
    del fake_tensorrt_runtime.trt.DynamicShapesKernelSpecializationStrategy
    fake_tensorrt_runtime.PROFILES_ARE_CHOSEN_LATE = True
    check_backend(engine, graph, images)


def check_kernel_cache(engine: Path, graph: Path, images: Path) -> None:
    """All contexts share one cache; a file keeps it; what does not fit is replaced."""
    file = engine.with_name("kernels.cache")
    made = fake_tensorrt_runtime._Cache.made
    for before in (None, b"", b"of another GPU"):
        if before is not None:
            file.write_bytes(before)
        made.clear()
        with TensorRTBackend(engine, kernel_cache=file) as backend:
            for number in range(12):
                backend.infer(*batch(1 + number % 4))
        assert len(made) == 1 and file.read_bytes() == b"kernels 1"
    stamp = file.stat().st_mtime_ns
    with TensorRTBackend(engine, kernel_cache=file) as backend:
        backend.infer(*batch(1))
    assert made[-1]._blobs == [b"kernels 1"]
    assert file.stat().st_mtime_ns == stamp, "nothing new, so nothing is written"
    folder = file.with_name("taken")
    folder.mkdir()
    backend = TensorRTBackend(engine, kernel_cache=folder)
    backend.infer(*batch(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend.close()
    assert any("are not kept" in str(warning.message) for warning in caught), caught
    assert_nothing_lives()


def check_out_of_memory(engine: Path, graph: Path, images: Path) -> None:
    """The error names the call and CUDA's reason; the next inference works; nothing leaks."""
    given = batch(4)
    expected = open_backend(graph).infer(*given)
    for function in (
        "cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuMemcpyHtoDAsync",
        "cuMemcpyDtoHAsync", "cuStreamSynchronize",
    ):  # fmt: skip
        with TensorRTBackend(engine) as backend:
            driver.fake_fail(function.encode(), 1)
            try:
                backend.infer(*given)
            except BackendError as error:
                wanted = f"CUDA: {function} failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"
                assert str(error) == wanted, error
            else:
                raise AssertionError(function)
            for _ in range(3):
                assert_same(backend.infer(*given), expected)
        assert_nothing_lives()


def check_leaks(engine: Path, graph: Path, images: Path) -> None:
    with TensorRTBackend(engine) as backend:
        given = batch(4)
        for _ in range(5):
            backend.infer(*given)
            backend.infer_device(*given)
        before = live()
        for _ in range(500):
            backend.infer(*given)
            backend.infer_device(*given)
        assert live() == before, (before, live())
    assert_nothing_lives()


def check_forgotten(engine: Path, graph: Path, images: Path) -> None:
    """A backend that nobody closed is given back when it is forgotten, from any thread."""
    backend = TensorRTBackend(engine)
    thread = threading.Thread(target=backend.infer, args=batch(2))
    thread.start()
    thread.join()
    del backend, thread
    assert_nothing_lives()


def check_devices(engine: Path, graph: Path, images: Path) -> None:
    try:
        TensorRTBackend(engine, device="cuda:3")
    except BackendError as error:
        assert str(error) == "there is no device cuda:3; this machine has cuda:0", error
    else:
        raise AssertionError("cuda:3")
    try:
        TensorRTBackend(engine, batch_buckets=[99])
    except UsageError as error:
        assert "batches of 1 to 8" in str(error), error
    else:
        raise AssertionError("99 is too many")
    assert_nothing_lives()


def check_host_code(engine: Path, graph: Path, images: Path) -> None:
    """Only an engine that needs the runtime it carries may run it."""
    spec, plan = read_engine(engine)
    compatible = replace(spec.build_flags, version_compatible=True)
    here = spec.tensorrt_version
    for flags, version, allowed in (
        (spec.build_flags, here, False),
        (compatible, here, False),
        (compatible, "1.0.0", True),
    ):
        write_engine(engine, plan, replace(spec, build_flags=flags, tensorrt_version=version))
        with TensorRTBackend(engine) as backend:
            loaded = backend._session._open().engine
            assert loaded._engine._host_code_allowed is allowed, (flags, version)


def check_foreign_context(engine: Path, graph: Path, images: Path) -> None:
    """A caller's own context is current again after every call."""
    with TensorRTBackend(engine) as backend:
        outer = CudaDevice(0)
        with outer.activated():
            backend.infer(*batch(1))
            assert driver.fake_depth() == 1
    call("cuDriverGetVersion")


def check_commands(engine: Path, graph: Path, images: Path) -> None:
    folder = engine.parent
    first = str(sorted(images.glob("*.png"))[0])
    assert main(["detect", str(engine), str(images), "--out", str(folder / "found")]) == 0
    assert main(["inspect", str(engine)]) == 0
    arguments = ["parity", str(graph), str(engine), "--images", str(images)]
    assert main([*arguments, "--json", str(folder / "parity.json")]) == 0
    record = json.loads((folder / "parity.json").read_text())
    assert record["passed"], record
    timing = folder / "timing.json"
    arguments = ["benchmark", str(engine), str(graph), "--images", first, "--min-time", "0.05"]
    arguments += ["--no-memory", "--rounds", "2", "--warmup", "1"]
    assert main([*arguments, "--json", str(timing)]) == 0
    text = timing.read_text()
    assert "tensorrt" in text and read_engine_spec(engine).tensorrt_version in text


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    engine, graph, images = map(Path, paths)
    fake_tensorrt_runtime.install(graph, read_engine_spec(engine).model.input)
    globals()[f"check_{name}"](engine, graph, images)
    print("done")
