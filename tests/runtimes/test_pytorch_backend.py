from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import deploykit.training.model_spec
from deploykit.errors import BackendError, UsageError
from deploykit.runtimes.backend import Backend, open_backend
from deploykit.runtimes.pytorch_backend import PyTorchBackend


class MeanColour(torch.nn.Module):
    """``predict`` with one box per image, from its mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.eye_(self.scale.weight)
        self.sizes: list[Any] = []

    def predict(self, images: torch.Tensor, image_sizes: torch.Tensor | None = None) -> tuple:
        self.sizes.append(image_sizes)
        if images.shape[0] > 8:
            raise RuntimeError("out of memory:\ntried to allocate a lot")
        mean = self.scale(images.float().mean(dim=(1, 2)))
        zeros = torch.zeros_like(mean[:, :1])
        boxes = torch.cat([zeros, zeros, mean[:, :2]], dim=1)[:, None]
        count = torch.ones(len(images), dtype=torch.int32)
        return boxes, mean[:, :1] / 255, count[:, None], count


@pytest.fixture
def checkpoint(tmp_path: Path, spec: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load_model(path: Path, config: Any = None, device: str = "cpu") -> SimpleNamespace:
        assert path == tmp_path / "model.pth"
        model = MeanColour().to(device).eval()
        return SimpleNamespace(model=model, spec=spec(image_sizes_input=True), config=config)

    monkeypatch.setattr(deploykit.training.model_spec, "load_model", load_model)
    path = tmp_path / "model.pth"
    path.touch()
    return path


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 64, 64, 3), np.uint8)
    return images, np.full((count, 2), 64, np.int32)


def test_runs_the_model(checkpoint: Path) -> None:
    backend = open_backend(checkpoint, device="cpu")
    assert isinstance(backend, PyTorchBackend) and isinstance(backend, Backend)
    assert (backend.name, backend.device) == ("pytorch", "cpu")
    images, sizes = batch(3)
    outputs = backend.infer(images, sizes)
    assert list(outputs) == ["boxes", "scores", "labels", "num_dets"]
    assert all(isinstance(value, np.ndarray) for value in outputs.values())
    mean = images.mean(axis=(1, 2))
    np.testing.assert_allclose(outputs["boxes"][:, 0, 2:], mean[:, :2], rtol=1e-5)
    model = backend._model
    assert model.sizes[0].tolist() == sizes.tolist()
    outputs["boxes"][:] = 0  # the arrays are the caller's


def test_failures_are_one_line(checkpoint: Path) -> None:
    backend = open_backend(checkpoint)
    with pytest.raises(BackendError, match=r"shape \[9, 64, 64, 3\]: out of memory") as caught:
        backend.infer(*batch(9))
    assert "\n" not in str(caught.value)


def test_threads_get_the_results_of_a_serial_run(checkpoint: Path) -> None:
    backend = open_backend(checkpoint)
    batches = [batch(1 + seed % 4, seed) for seed in range(32)]
    serial = [backend.infer(*item) for item in batches]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda item: backend.infer(*item), batches))
    for ours, theirs in zip(serial, parallel, strict=True):
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])


def test_use_after_close(checkpoint: Path) -> None:
    backend = open_backend(checkpoint)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="is closed"):
        backend.infer(*batch(1))


def test_devices(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'tpu9x'"):
        open_backend(checkpoint, device="tpu9x")
    with pytest.raises(BackendError, match=r"PyTorch sees \d+ CUDA device"):
        open_backend(checkpoint, device="cuda:99")


def test_options(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        backend = PyTorchBackend(checkpoint, num_threads=1, channels_last=True)
        assert torch.get_num_threads() == 1
        images, sizes = batch(2)
        assert backend.infer(images, sizes)["num_dets"].tolist() == [1, 1]
    finally:
        torch.set_num_threads(before)


def test_noise_is_small_repeatable_and_gone_afterwards(checkpoint: Path):
    backend = PyTorchBackend(checkpoint)
    inputs = batch(2)
    scores = backend.infer(*inputs)["scores"]
    noisy = [
        backend.infer_with_noise(*inputs, noise=1e-3, seed=seed)["scores"] for seed in (0, 1, 1)
    ]
    for found in noisy:
        assert 0 < np.abs(found / scores - 1).max() < 1.001e-3
    assert (noisy[0] != noisy[1]).all() and (noisy[1] == noisy[2]).all()
    np.testing.assert_array_equal(backend.infer(*inputs)["scores"], scores)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.infer_with_noise(*inputs, noise=1e-3, seed=0)
