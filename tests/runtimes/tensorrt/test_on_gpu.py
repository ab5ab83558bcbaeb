"""Engines that run: TensorRT-RTX on a real GPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import BackendError, DeploykitError, UsageError
from deploykit.runtimes.backend import Backend, open_backend
from deploykit.runtimes.tensorrt.backend import TensorRTBackend
from deploykit.runtimes.tensorrt.cuda_calls import call, load_driver
from deploykit.runtimes.tensorrt.cuda_device import CudaDevice, CudaGraph
from deploykit.spec import DimRange

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

Batch = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    """Skip where there is no GPU."""
    try:
        load_driver()
    except DeploykitError as error:
        pytest.skip(str(error))


@pytest.fixture
def engine(write_rtx_engine: Callable[..., Path]) -> Path:
    """An engine for batches of 1 to 8; ``graph.onnx`` beside it is what it was built from."""
    path = write_rtx_engine(batch=DimRange(1, 4, 8), image_sizes_input=True)
    try:
        TensorRTBackend(path).close()
    except BackendError as error:
        if "UNSUPPORTED_CC" in str(error):
            pytest.skip(f"TensorRT-RTX does not support this GPU: {error}")
        raise
    return path


@pytest.fixture
def reference(engine: Path) -> Iterator[Backend]:
    """ONNX Runtime with the graph of the engine, on the CPU."""
    backend = open_backend(engine.with_name("graph.onnx"), device="cpu")
    yield backend
    backend.close()


def batch(rows: int, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (rows, 64, 64, 3), np.uint8)
    return images, generator.integers(1, 64, (rows, 2), np.int32)


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-3)


def test_the_results_of_onnx_runtime(engine: Path, reference: Backend) -> None:
    with TensorRTBackend(engine) as backend:
        for number in range(24):
            given = batch(1 + number % 8, number)
            assert_close(backend.infer(*given), reference.infer(*given))


@pytest.mark.parametrize("batches", [DimRange.fixed(4), DimRange(1, 4, 8)])
def test_graphs_change_nothing(
    write_rtx_engine: Callable[..., Path],
    engine: Path,
    batches: DimRange,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_rtx_engine("other.engine", batch=batches)
    launches: list[int] = []
    launch = CudaGraph.launch
    monkeypatch.setattr(CudaGraph, "launch", lambda self, s: (launches.append(s), launch(self, s)))
    with TensorRTBackend(path) as graphs, TensorRTBackend(path, cuda_graphs=False) as plain:
        for number in range(20):
            given = batch(3 + number % 2, number)
            with_graph = graphs.infer(*given)
            for name, value in plain.infer(*given).items():
                np.testing.assert_array_equal(with_graph[name], value)
    assert len(launches) >= 17


def test_threads(engine: Path, reference: Backend) -> None:
    items = [batch(1 + seed % 8, seed) for seed in range(200)]
    with TensorRTBackend(engine, lanes=3) as backend, ThreadPoolExecutor(6) as pool:
        for given, ours in zip(items, pool.map(lambda it: backend.infer(*it), items), strict=True):
            assert_close(ours, reference.infer(*given))


def free_memory() -> int:
    gc.collect()
    device = CudaDevice(0)
    with device.activated():
        return int(call("cuMemGetInfo")[0])


def test_a_thousand_inferences_leak_nothing(engine: Path) -> None:
    keep = CudaDevice(0)  # keeps the context, whose size is not what is measured
    with TensorRTBackend(engine) as backend:
        for number in range(40):
            backend.infer(*batch(1 + number % 8, number))
            backend.infer_device(*batch(1 + number % 8, number))
        before = free_memory()
        for number in range(1000):
            backend.infer(*batch(1 + number % 8, number))
            backend.infer_device(*batch(1 + number % 8, number))
        assert abs(free_memory() - before) <= 4 << 20
    opened = free_memory()
    for _ in range(20):
        with TensorRTBackend(engine) as backend:
            backend.infer(*batch(4))
    assert abs(free_memory() - opened) <= 16 << 20
    assert keep.index == 0


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("side_stream", [True, False])
def test_tensors_of_pytorch(
    engine: Path, reference: Backend, cuda_graphs: bool, side_stream: bool
) -> None:
    torch: Any = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    stream = torch.cuda.Stream() if side_stream else torch.cuda.current_stream()
    with TensorRTBackend(engine, cuda_graphs=cuda_graphs) as backend, torch.cuda.stream(stream):
        for number in range(12):
            images, sizes = batch((4, 3, 8)[number % 3], number)
            on_gpu = torch.from_numpy(images).cuda(non_blocking=True)
            # Slow work before and after: without order, zeros or nines are what is seen.
            noise = torch.randn(2000, 2000, device="cuda")
            target = torch.zeros_like(on_gpu)
            for _ in range(20):
                noise = noise @ noise / noise.norm()
            target.copy_(on_gpu)
            outputs = backend.infer_device(target, sizes, stream=stream)
            target.fill_(9)
            found = {name: torch.from_dlpack(value) for name, value in outputs.items()}
            expected = reference.infer(images, sizes)
            assert_close({name: value.cpu().numpy() for name, value in found.items()}, expected)
            assert_close(backend.infer(on_gpu, sizes, stream=stream), expected)
            assert_close(backend.infer(on_gpu[: len(on_gpu)], sizes), expected)
        del found, outputs
        with pytest.raises(UsageError, match="C-contiguous"):
            backend.infer(on_gpu.transpose(1, 2), sizes)
        with pytest.raises(UsageError, match="expected a numpy array, or an array on the GPU"):
            backend.infer(on_gpu.cpu(), sizes)


def test_arrays_of_pycuda(engine: Path, reference: Backend) -> None:
    pytest.importorskip("pycuda", reason="PyCUDA is not installed")
    import pycuda.autoprimaryctx  # noqa: F401  (makes the context that PyTorch and deploykit use)
    import pycuda.driver as cuda
    from pycuda import gpuarray

    stream = cuda.Stream()
    with TensorRTBackend(engine) as backend:
        for number in range(6):
            images, sizes = batch(4, number)
            on_gpu = gpuarray.to_gpu_async(images, stream=stream)
            outputs = backend.infer_device(on_gpu, sizes, stream=stream)
            expected = reference.infer(images, sizes)
            for name, value in outputs.items():
                host = np.empty(value.shape, value.dtype)
                cuda.memcpy_dtoh_async(host, value.address, stream)
                stream.synchronize()
                np.testing.assert_allclose(host, expected[name], rtol=1e-4, atol=1e-3)


def test_a_detector_from_its_checkpoint(toy_checkpoint: Path, tmp_path: Path) -> None:
    """Convert with the command, then compare with the command."""
    engine = tmp_path / "toy.engine"
    convert = ["convert", str(toy_checkpoint), "--to", "tensorrt", "--flavour", "rtx"]
    assert main([*convert, "--out", str(engine)]) == 0
    photos = str(Path(__file__).parents[2] / "data" / "china.jpg")
    assert main(["parity", str(toy_checkpoint), str(engine), "--images", photos]) == 0


def test_a_gpu_that_is_not_there(engine: Path) -> None:
    with pytest.raises(BackendError, match=r"there is no device cuda:99; this machine has cuda:0"):
        TensorRTBackend(engine, device="cuda:99")
