"""Losses, gradients and detections of dense detectors against MMDetection's own.

The numbers were computed by the code of MMDetection 3.3.0 on a CPU, with the weights of
``make_weight`` and batch norms in evaluation mode, for a batch with crowds, an image without
objects, and images of four sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.training.models import build_detector
from deploykit.training.structures import Batch, Targets

DATA = Path(__file__).parent / "data" / "dense_losses.json"
CASES: dict[str, dict[str, Any]] = json.loads(DATA.read_text())
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


def make_batch() -> Batch:
    """Four images of noise, with objects and crowds."""
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


def filler(reference: Any, case: dict[str, Any]) -> Callable[[Any], Any]:
    """Return what gives a model the weights of a case."""
    weights = {"seed": 0, "overrides": case["overrides"], "keep": case.get("keep", ())}
    return reference({}, weights).fill


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_mmdetection(reference_class, name):
    case = CASES[name]
    model = filler(reference_class, case)(build_detector(case["model"]))
    losses = model.train()(make_batch())
    sum(losses.values()).backward()
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        case["losses"], rel=1e-5
    )
    norms = {}
    for part in case["gradient_norms"]:
        gradients = [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
        norms[part] = torch.cat([g.flatten() for g in gradients]).double().norm().item()
    assert norms == pytest.approx(case["gradient_norms"], rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_detections_are_those_of_mmdetection(reference_class, name):
    case = CASES[name]
    model = filler(reference_class, case)(build_detector(case["model"]))
    batch = make_batch()
    with torch.inference_mode():
        boxes, scores, labels, counts = model.predict(batch.images, batch.image_sizes)
    assert counts.tolist() == [len(image["scores"]) for image in case["detections"]]
    assert counts.max() >= 10
    for row, (count, image) in enumerate(zip(counts.tolist(), case["detections"], strict=True)):
        np.testing.assert_allclose(scores[row, :count], image["scores"], atol=1e-5)
        np.testing.assert_allclose(boxes[row, :count], image["boxes"], atol=5e-3)
        assert labels[row, :count].tolist() == image["labels"]
