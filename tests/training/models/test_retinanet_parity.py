"""RetinaNet against what MMDetection 3.3.0 computed on a CPU with the same weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit.runtimes.preprocess import Preprocessor
from deploykit.training.input_spec import input_spec_from_config
from deploykit.training.models import build_detector

IMAGE = Path(__file__).parents[2] / "data" / "china.jpg"
PARTS = {"backbone": 4, "neck": 5, "bbox_head.0": 5, "bbox_head.1": 5}
FEATURES = [f"{part}.{level}" for part, levels in PARTS.items() for level in range(levels)]


@pytest.fixture(scope="module")
def reference(load_reference):
    return load_reference("retinanet_r50")


@pytest.fixture(scope="module")
def results(recipe, reference):
    """Everything that the detector computes for the image, by name."""
    config = recipe("retinanet_r50_fpn_1x_coco")
    model = reference.fill(build_detector(config["model"]))
    prepared = Preprocessor(input_spec_from_config(config))([cv2.imread(str(IMAGE))])
    images, sizes = torch.from_numpy(prepared.images), torch.from_numpy(prepared.image_sizes)
    with torch.inference_mode():
        pixels = model.data_preprocessor(images, sizes)
        backbone = model.backbone(pixels)
        neck = model.neck(backbone)
        scores, deltas = model.bbox_head(neck)
        limits = torch.tensor([[[1199.0, 800, 1199, 800]]])
        detections = model.bbox_head.predict_by_feat((scores, deltas), limits)
    features = dict(zip(FEATURES, (*backbone, *neck, *scores, *deltas), strict=True))
    return {
        "input": pixels,
        "image_sizes": prepared.image_sizes,
        "scale_factor": np.asarray(prepared.scale_factors[0]),
        "detections": [output[0].numpy() for output in detections],
        **features,
    }


def test_network_input_is_bit_equal(results, reference):
    assert results["image_sizes"].tolist() == [reference.arrays["meta.img_shape"].tolist()]
    assert results["input"].shape == tuple(reference.arrays["input.shape"]) == (1, 3, 800, 1216)
    sample = reference.sample(results["input"])
    np.testing.assert_array_equal(sample, reference.arrays["input.slice"])
    np.testing.assert_allclose(results["scale_factor"], reference.arrays["meta.scale_factor"])


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_within_ten_times_the_noise(results, reference, name):
    reference.check_feature(name, results[name])


def test_all_detections_match(results, reference):
    boxes, scores, labels, count = results["detections"]
    assert count == 100
    reference.check_detections(boxes / np.tile(results["scale_factor"], 2), scores, labels, count)
