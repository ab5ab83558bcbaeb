"""Losses, gradients and detections of two-stage detectors against MMDetection's own.

The numbers were computed by MMDetection 3.3.0 on a CPU in evaluation mode, with the weights of
``small_two_stage``, for ``mixed_batch``. The samplers take all regions, as their draws cannot be
the same. With equal weights, its results and ours differ by 1e-6.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit.mask_paste import paste_masks

CASES = json.loads((Path(__file__).parent / "data" / "two_stage.json").read_text())
ALL = 10**6


@pytest.fixture(scope="module", params=CASES)
def case(request, small_two_stage):
    numbers = CASES[request.param]
    change = copy.deepcopy(numbers["change"])
    return numbers, small_two_stage(numbers["recipe"], change, samples=ALL)


def test_losses_and_gradients(case, mixed_batch):
    numbers, model = case
    losses = model(mixed_batch)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(
        numbers["losses"], rel=1e-4
    )
    norms = {}
    for part in numbers["gradient_norms"]:
        gradients = [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
        norms[part] = torch.cat([g.flatten() for g in gradients]).double().norm().item()
    assert norms == pytest.approx(numbers["gradient_norms"], rel=1e-3)


def test_detections(case, mixed_batch):
    numbers, model = case
    with torch.inference_mode():
        outputs = model.predict(mixed_batch.images, mixed_batch.image_sizes)
    for image, expected in enumerate(numbers["detections"]):
        boxes, scores, labels, count, *masks = (output[image].numpy() for output in outputs)
        assert count == len(expected["scores"])
        np.testing.assert_allclose(scores[:count], expected["scores"], atol=1e-4)
        np.testing.assert_allclose(boxes[:count], expected["boxes"], atol=5e-3)
        np.testing.assert_array_equal(labels[:count], expected["labels"])
        if masks:
            size = tuple(mixed_batch.image_sizes[image].tolist())
            areas = paste_masks(masks[0][:count], boxes[:count], size).sum(axis=(1, 2))
            np.testing.assert_allclose(areas, expected["mask_areas"], atol=2)
