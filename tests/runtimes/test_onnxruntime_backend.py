from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from deploykit.errors import BackendError, SpecError, UsageError
from deploykit.runtimes.backend import Backend, open_backend
from deploykit.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from deploykit.spec import METADATA_KEY, DimRange, ModelSpec

WriteOnnx = Callable[..., Path]


def batch(count: int, seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, size, size, 3), np.uint8)
    return images, np.full((count, 2), size, np.int32)


def test_runs_the_graph(onnx_path: Path, spec: Callable[..., ModelSpec]) -> None:
    backend = open_backend(onnx_path)
    assert isinstance(backend, OnnxRuntimeBackend) and isinstance(backend, Backend)
    assert backend.spec == spec()
    assert (backend.name, backend.device) == ("onnxruntime", "cpu")
    images, sizes = batch(3)
    outputs = backend.infer(images, sizes)
    assert list(outputs) == ["boxes", "scores", "labels", "num_dets"]
    mean = images.astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(outputs["boxes"][:, 0, 2:], mean[:, :2], rtol=1e-5)
    np.testing.assert_allclose(outputs["scores"][:, 0], mean[:, 0] / 255, rtol=1e-5)
    assert outputs["labels"].tolist() == [[0, 1]] * 3
    assert outputs["num_dets"].tolist() == [2, 2, 2]


def test_image_sizes_reach_the_graph(write_onnx: WriteOnnx) -> None:
    backend = open_backend(write_onnx(image_sizes_input=True))
    images, _ = batch(2)
    outputs = backend.infer(images, np.array([[10, 20], [30, 40]], np.int32))
    assert outputs["boxes"][:, 0, 2:].tolist() == [[20, 10], [40, 30]]


def test_a_file_without_spec_tells_how_to_make_one(write_onnx: WriteOnnx) -> None:
    path = write_onnx(with_spec=False)
    with pytest.raises(SpecError, match=r"no deploykit model spec.*deploykit convert") as caught:
        open_backend(path)
    assert str(path) in str(caught.value)


def test_a_damaged_spec(write_onnx: WriteOnnx) -> None:
    path = write_onnx()
    model = onnx.load(path)
    helper.set_model_props(model, {METADATA_KEY: '{"version": 1}'})
    onnx.save(model, path)
    with pytest.raises(SpecError, match="incomplete model spec"):
        open_backend(path)


@pytest.mark.parametrize("content", [b"", b"garbage", "half"])
def test_a_damaged_file_is_one_line(onnx_path: Path, content: bytes | str) -> None:
    data = onnx_path.read_bytes()
    onnx_path.write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(BackendError, match="cannot load") as caught:
        open_backend(onnx_path)
    assert "\n" not in str(caught.value)
    assert str(onnx_path) in str(caught.value)


def test_a_graph_that_does_not_fit_its_spec(
    write_onnx: WriteOnnx, spec: Callable[..., ModelSpec]
) -> None:
    path = write_onnx()
    for changed, message in (
        (spec(image_sizes_input=True), "its spec says .*image_sizes"),
        ("masks", r"lacks the outputs \['masks'\]"),
    ):
        model = onnx.load(path)
        if changed == "masks":
            text = spec().to_json().replace('"num_dets"', '"num_dets", "masks"')
        else:
            text = changed.to_json()
        helper.set_model_props(model, {METADATA_KEY: text})
        onnx.save(model, path.with_name("changed.onnx"))
        with pytest.raises(BackendError, match=message):
            open_backend(path.with_name("changed.onnx"))


def test_missing_files_and_unknown_suffixes(tmp_path: Path, onnx_path: Path) -> None:
    with pytest.raises(BackendError, match=r"this is missing: .*none\.onnx"):
        open_backend(tmp_path / "none.onnx")
    with pytest.raises(BackendError, match="this is a directory"):
        (tmp_path / "folder.onnx").mkdir()
        open_backend(tmp_path / "folder.onnx")
    with pytest.raises(UsageError, match=r"cannot tell which backend.*\.onnx"):
        open_backend(tmp_path / "model.xyz")
    with pytest.raises(UsageError, match="'tflite'; known: onnxruntime, pytorch, tensorrt"):
        open_backend(onnx_path, "tflite")
    renamed = onnx_path.rename(tmp_path / "model.xyz")
    assert open_backend(renamed, "onnxruntime").name == "onnxruntime"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_unknown_devices(onnx_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        open_backend(onnx_path, device=device)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has CUDA",
)
def test_a_missing_provider_is_named(onnx_path: Path) -> None:
    with pytest.raises(BackendError, match=r"needs CUDAExecutionProvider, .*CPUExecutionProvider"):
        open_backend(onnx_path, device="cuda")


def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime promise CUDA; its sessions still come up on the CPU."""
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_silent_fall_back_to_the_cpu_is_an_error(
    onnx_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda(monkeypatch)
    with pytest.raises(
        BackendError, match="to run on CUDAExecutionProvider.*fell back to CPUExecutionProvider"
    ):
        open_backend(onnx_path, device="cuda:0")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_auto_warns_when_it_falls_back(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch)
    with pytest.warns(RuntimeWarning, match="fell back to CPUExecutionProvider.*trying the cpu"):
        backend = open_backend(onnx_path, device="auto")
    assert backend.device == "cpu"


def test_a_wrong_shape_is_reported(write_onnx: WriteOnnx) -> None:
    backend = open_backend(write_onnx(batch=DimRange.fixed(2)))
    images, sizes = batch(3)
    with pytest.raises(BackendError, match=r"an input of shape \[3, 64, 64, 3\]") as caught:
        backend.infer(images, sizes)
    assert "\n" not in str(caught.value)


def test_session_options(onnx_path: Path) -> None:
    images, sizes = batch(2)
    expected = OnnxRuntimeBackend(onnx_path).infer(images, sizes)
    for options in ({"num_threads": 1}, {"graph_optimization": "disabled"}):
        outputs = OnnxRuntimeBackend(onnx_path, **options).infer(images, sizes)
        np.testing.assert_allclose(outputs["boxes"], expected["boxes"], rtol=1e-5)
    with pytest.raises(UsageError, match="unknown graph optimization"):
        OnnxRuntimeBackend(onnx_path, graph_optimization="most")
    with pytest.raises(UsageError, match="num_threads must be at least 1"):
        open_backend(onnx_path, num_threads=0)


def test_threads_get_the_results_of_a_serial_run(onnx_path: Path) -> None:
    backend = open_backend(onnx_path)
    batches = [batch(1 + seed % 4, seed) for seed in range(64)]
    serial = [backend.infer(*item) for item in batches]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda item: backend.infer(*item), batches))
    for ours, theirs in zip(serial, parallel, strict=True):
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])


def test_use_after_close(onnx_path: Path) -> None:
    backend = open_backend(onnx_path)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.infer(*batch(1))
