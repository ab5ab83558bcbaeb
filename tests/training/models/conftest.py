from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploykit.training
from deploykit.training.config import load_config
from deploykit.training.models import BaseDetector, build_detector
from deploykit.training.structures import Batch, Targets

RECIPES = Path(deploykit.training.__file__).parent / "recipes"
DATA = Path(__file__).parent / "data"


def _small_config(num_classes: int = 3, **head: Any) -> dict[str, Any]:
    config = load_config(RECIPES / "rtmdet_tiny.py")["model"]
    config["backbone"] |= {"widen_factor": 0.125, "init_cfg": None}
    config["neck"] |= {"in_channels": [32, 64, 128], "out_channels": 32}
    config["bbox_head"] |= {"in_channels": 32, "feat_channels": 32, "num_classes": num_classes}
    config["bbox_head"] |= head
    config["test_cfg"] |= {"nms_pre": 200, "max_per_img": 20}
    return config


@pytest.fixture(scope="session")
def recipe() -> Callable[[str], Any]:
    """Returns the config of a shipped recipe."""
    return lambda name: load_config(RECIPES / f"{name}.py")


@pytest.fixture(scope="session")
def small_config() -> Callable[..., dict[str, Any]]:
    """Returns the config of an RTMDet of 50 thousand parameters."""
    return _small_config


def _small_detector(seed: int = 0, **options: Any) -> BaseDetector:
    torch.manual_seed(seed)
    model = build_detector(_small_config(**options))
    # Heads start with tiny weights, from which every prediction looks alike; these do not.
    for parameter in model.bbox_head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    for scores, distances in zip(model.bbox_head.rtm_cls, model.bbox_head.rtm_reg, strict=True):
        torch.nn.init.constant_(scores.bias, -1.0)
        torch.nn.init.uniform_(distances.bias, 0.8, 2.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="session")
def small_detector() -> Callable[..., BaseDetector]:
    """Returns a small RTMDet with random weights whose predictions are diverse."""
    return _small_detector


@pytest.fixture
def random_images() -> Callable[..., torch.Tensor]:
    """Returns uint8 [B, H, W, 3] images of coloured rectangles on noise."""

    def make(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 80, (batch, height, width, 3), generator=generator)
        for image in images:
            for _ in range(6):
                y, x = (int(torch.randint(n, (1,), generator=generator)) for n in (height, width))
                colour = torch.randint(80, 256, (3,), generator=generator)
                image[y : y + height // 3, x : x + width // 3] = colour
        return images.to(torch.uint8)

    return make


@pytest.fixture
def make_batch(random_images: Callable[..., torch.Tensor]) -> Callable[..., Batch]:
    """Returns a batch with a given number of random objects per image."""

    def make(counts: Sequence[int], size: int = 96, num_classes: int = 3, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        targets = []
        for count in counts:
            centers = torch.rand(count, 2, generator=generator) * size
            half = torch.rand(count, 2, generator=generator) * size / 4 + 4
            boxes = torch.cat((centers - half, centers + half), dim=1).clamp(0, size)
            labels = torch.randint(num_classes, (count,), generator=generator)
            targets.append(Targets(boxes, labels))
        sizes = torch.full((len(counts), 2), size, dtype=torch.int32)
        return Batch(
            random_images(len(counts), size, size, seed), sizes, targets, [{}] * len(counts)
        )

    return make


def make_weight(key: str, shape: Sequence[int], recipe: dict[str, Any]) -> np.ndarray:
    """The deterministic weight of a key: a function of its name, adjusted by the recipe."""
    override = recipe["overrides"].get(key, {})
    if "alias_of" in override:
        return make_weight(override["alias_of"], shape, recipe)
    digest = hashlib.sha256(f"{recipe['seed']}:{key}".encode()).digest()
    random = np.random.RandomState(int.from_bytes(digest[:4], "little"))
    if key.endswith("running_var"):
        value = random.uniform(0.8, 1.2, shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.05 * random.standard_normal(shape)
    elif len(shape) == 0:
        value = 1 + 0.05 * random.standard_normal()
    elif len(shape) == 1:
        value = 1 + 0.1 * random.standard_normal(shape)
    else:
        gain = 2.0 if len(shape) > 2 else 1.0
        value = random.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
    factor = np.asarray(override.get("mul", 1.0))
    factor = factor.reshape(factor.shape + (1,) * (len(shape) - 1) * factor.ndim)
    return np.asarray(value * factor + np.asarray(override.get("add", 0.0)), dtype=np.float32)


@dataclass(frozen=True)
class Reference:
    """What MMDetection 3.3.0 computed on a CPU, and the weights that it had.

    Of each tensor there are the shape, a sample, and mean, standard deviation, least, greatest and
    mean absolute value; ``noise`` is how much it changes with another convolution library.
    """

    arrays: dict[str, np.ndarray]
    weights: dict[str, Any]

    def fill(self, model: BaseDetector) -> BaseDetector:
        """Give a model the weights, and put it into evaluation mode."""
        state = {
            key: torch.from_numpy(make_weight(key, value.shape, self.weights))
            for key, value in model.state_dict().items()
            if not key.endswith(("num_batches_tracked", *self.weights.get("keep", ())))
        }
        model.load_state_dict(state, strict=False)
        return model.eval()

    @staticmethod
    def sample(tensor: torch.Tensor) -> np.ndarray:
        flat = tensor.flatten().numpy()
        places = np.linspace(0, flat.size - 1, min(flat.size, 256)).round()
        return flat[np.unique(places).astype(int)]

    def check_feature(self, name: str, tensor: torch.Tensor) -> None:
        """Assert that a tensor is within ten times the noise of MMDetection's."""
        noise = dict(zip(self.arrays["noise.names"], self.arrays["noise.max_rel"], strict=True))
        expected = self.arrays[f"{name}.slice"]
        assert tensor.shape == tuple(self.arrays[f"{name}.shape"])
        tolerance = 10 * noise[name] * np.abs(expected).max()
        assert np.abs(self.sample(tensor) - expected).max() <= tolerance
        values = tensor.double()
        statistics = [values.mean(), values.std(correction=0), values.min(), values.max()]
        np.testing.assert_allclose(
            [*statistics, values.abs().mean()],
            self.arrays[f"{name}.stats"],
            rtol=1e-4,
            atol=tolerance,
        )

    def check_detections(
        self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, count: int
    ) -> list[int]:
        """Assert that detections, in pixels of the original image, are MMDetection's.

        Returns the row of MMDetection's that each one is.
        """
        assert count == len(self.arrays["pred.scores"])
        # Detections of nearly the same score may change places: match by label and nearest box.
        unmatched, rows = list(range(count)), []
        for box, score, label in list(zip(boxes, scores, labels, strict=True))[:count]:
            same_label = [i for i in unmatched if self.arrays["pred.labels"][i] == label]
            errors = [np.abs(self.arrays["pred.bboxes"][i] - box).max() for i in same_label]
            best = int(np.argmin(errors))
            assert errors[best] < 0.05
            assert abs(self.arrays["pred.scores"][same_label[best]] - score) < 1e-4
            unmatched.remove(same_label[best])
            rows.append(same_label[best])
        return rows


@pytest.fixture(scope="session")
def reference_class() -> type[Reference]:
    """Returns ``Reference``, for weights without numbers of MMDetection."""
    return Reference


@pytest.fixture(scope="session")
def load_reference() -> Callable[[str], Reference]:
    """Returns MMDetection's numbers for ``china.jpg`` by the name of the model."""

    def load(name: str) -> Reference:
        weights = json.loads((DATA / f"{name}_weights.json").read_text())
        with np.load(DATA / f"{name}_china.npz") as arrays:
            return Reference(dict(arrays), weights)

    return load
