from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.training.models import BaseDetector, build_detector
from deploykit.training.structures import Batch, Targets

SIZES = [(120, 160), (128, 100), (96, 96), (128, 160)]
OBJECTS = [
    [((10, 20, 60, 90), 0), ((80, 30, 150, 110), 2), ((20, 25, 58, 85), 1)],
    [],
    [((5, 5, 40, 40), 1), ((30, 30, 90, 90), 0), ((50, 8, 70, 30), 2), ((4, 4, 92, 92), 1)],
    [((40, 50, 100, 120), 0)],
]
CROWDS = [[(100, 10, 158, 100)], [(10, 10, 80, 100), (50, 60, 98, 126)], [], []]

# Factors that make the last layers neither sure of everything nor of nothing.
OVERRIDES = {
    "rpn_head.rpn_cls.weight": {"mul": 0.1},
    "rpn_head.rpn_reg.weight": {"mul": 0.02},
    "roi_head.bbox_head.fc_cls.weight": {"mul": 0.5},
    "roi_head.bbox_head.fc_reg.weight": {"mul": 0.1},
    "roi_head.mask_head.conv_logits.weight": {"mul": 0.2},
}
for _stage in range(3):
    OVERRIDES[f"roi_head.bbox_head.{_stage}.fc_cls.weight"] = {"mul": 0.1}
    OVERRIDES[f"roi_head.bbox_head.{_stage}.fc_reg.weight"] = {"mul": 0.1}
    OVERRIDES[f"roi_head.mask_head.{_stage}.conv_logits.weight"] = {"mul": 0.2}


def shrink(model: dict[str, Any], samples: int = 64) -> dict[str, Any]:
    """Make the config of a two-stage detector with ResNet-50 one of a hundred thousand weights."""
    model["backbone"] |= {"depth": 18, "base_channels": 4, "init_cfg": None, "frozen_stages": -1}
    model["neck"] |= {"in_channels": [4, 8, 16, 32], "out_channels": 8}
    model["rpn_head"] |= {"in_channels": 8, "feat_channels": 8}
    head = model["roi_head"]
    stages = head["bbox_head"] if isinstance(head["bbox_head"], list) else [head["bbox_head"]]
    for stage in stages:
        stage |= {"in_channels": 8, "fc_out_channels": 32, "num_classes": 3}
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        if name in head:
            head[name] |= {"out_channels": 8, "finest_scale": 14}
    if "mask_head" in head:
        head["mask_head"] |= {"in_channels": 8, "conv_out_channels": 8, "num_classes": 3}
    rcnn = model["train_cfg"]["rcnn"]
    for config in [model["train_cfg"]["rpn"], *(rcnn if isinstance(rcnn, list) else [rcnn])]:
        config["sampler"]["num"] = samples
    model["train_cfg"]["rpn_proposal"] |= {"nms_pre": 100, "max_per_img": 60}
    model["test_cfg"]["rpn"] |= {"nms_pre": 100, "max_per_img": 40}
    model["test_cfg"]["rcnn"] |= {"max_per_img": 10}
    return model


@pytest.fixture(scope="session")
def shrunk_recipe(recipe) -> Callable[[str], Any]:
    """Returns the config of a recipe with a small model, by the name of the recipe."""

    def load(name: str) -> Any:
        config = recipe(f"{name}_r50_fpn_1x_coco")
        shrink(config["model"])
        return config

    return load


@pytest.fixture(scope="session")
def small_two_stage(recipe, reference_class) -> Callable[..., BaseDetector]:
    """Returns a small detector by the name of its recipe, with deterministic weights."""

    def build(name: str, change: Mapping[str, Any] | None = None, **options: Any) -> BaseDetector:
        model = shrink(recipe(f"{name}_r50_fpn_1x_coco")["model"], **options)
        for path, value in (change or {}).items():
            *parents, last = path.split(".")
            place = model
            for part in parents:
                place = place[part]
            place[last] = value
        weights = {"seed": 0, "overrides": OVERRIDES}
        return reference_class({}, weights).fill(build_detector(model))

    return build


def ellipse(box, height: int, width: int) -> np.ndarray:
    """The mask of an object: the ellipse in its box."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[:height, :width] + 0.5
    return (2 * x - x1 - x2) ** 2 / (x2 - x1) ** 2 + (2 * y - y1 - y2) ** 2 / (y2 - y1) ** 2 <= 1


@pytest.fixture(scope="session")
def mixed_batch() -> Batch:
    """Four images of as many sizes: with crowds, without objects, with one and with several."""
    images = np.random.RandomState(0).randint(0, 256, (4, 128, 160, 3)).astype(np.uint8)
    targets = []
    for objects, crowds in zip(OBJECTS, CROWDS, strict=True):
        masks = [ellipse(box, 128, 160) for box, _ in objects] or np.zeros((0, 128, 160))
        targets.append(
            Targets(
                torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4),
                torch.tensor([label for _, label in objects], dtype=torch.int64),
                torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4),
                torch.from_numpy(np.array(masks, np.uint8)),
            )
        )
    sizes = torch.tensor(SIZES, dtype=torch.int32)
    return Batch(torch.from_numpy(images), sizes, targets, [{}] * 4)
