"""Losses and gradients of anchor-based detectors against MMDetection's own.

The numbers were computed by MMDetection 3.3.0 on a CPU in evaluation mode, with the weights of
``make_weight``, for a batch with crowds, an image without objects, and images of four sizes. The
sampler of the proposal networks takes all anchors, as its draws cannot be the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.training.models import build_detector
from deploykit.training.structures import Batch, Targets

CASES = json.loads((Path(__file__).parent / "data" / "anchor_losses.json").read_text())
SIZES = [(120, 160), (128, 100), (96, 96), (128, 160)]
OBJECTS = [
    [((10, 20, 60, 90), 0), ((80, 30, 150, 110), 2), ((20, 25, 58, 85), 1)],
    [],
    [
        ((5, 5, 40, 40), 1),
        ((30, 30, 90, 90), 0),
        ((50, 8, 70, 30), 2),
        ((8, 60, 24, 92), 2),
        ((4, 4, 92, 92), 1),
    ],
    [((40, 50, 100, 120), 0)],
]
CROWDS = [[(100, 10, 158, 100)], [(10, 10, 80, 100), (50, 60, 98, 126)], [], []]
BIASES = ("retina_cls", "rpn_cls", "conv_cls")
FACTORS = {
    "retina_cls": 0.02,
    "conv_cls": 0.02,
    "rpn_cls": 0.1,
    "retina_reg": 0.004,
    "conv_reg": 0.004,
    "rpn_reg": 0.02,
}


@pytest.fixture(scope="module")
def batch():
    images = np.random.RandomState(0).randint(0, 256, (4, 128, 160, 3)).astype(np.uint8)
    targets = [
        Targets(
            torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for _, label in objects], dtype=torch.int64),
            torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4),
        )
        for objects, crowds in zip(OBJECTS, CROWDS, strict=True)
    ]
    sizes = torch.tensor(SIZES, dtype=torch.int32)
    return Batch(torch.from_numpy(images), sizes, targets, [{}] * 4)


@pytest.fixture(scope="module")
def fill(reference_class):
    """Gives a model deterministic weights, small ones to its last layers."""
    overrides = {f"bbox_head.{name}.weight": {"mul": mul} for name, mul in FACTORS.items()}
    overrides |= {f"bbox_head.{name}.bias": {"add": -1} for name in BIASES}
    return reference_class({}, {"seed": 0, "overrides": overrides}).fill


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_mmdetection(fill, batch, name):
    case = CASES[name]
    model = fill(build_detector(case["model"]))
    losses = model(batch)
    sum(losses.values()).backward()
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        case["losses"], rel=1e-5
    )
    norms = {}
    for part in case["gradient_norms"]:
        gradients = [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
        norms[part] = torch.cat([g.flatten() for g in gradients]).double().norm().item()
    assert norms == pytest.approx(case["gradient_norms"], rel=1e-4)
