from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import deploykit.training
from deploykit.training.config import load_config
from deploykit.training.models import BaseDetector, build_detector
from deploykit.training.structures import Batch, Targets

RECIPES = Path(deploykit.training.__file__).parent / "recipes"


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
