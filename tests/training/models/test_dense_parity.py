"""RetinaNet and FCOS against what MMDetection 3.3.0 computed on a CPU with the same weights."""

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
# Recipe -> name of the reference, and kinds of outputs of the head.
MODELS = {
    "retinanet_r50_fpn_1x_coco": ("retinanet_r50", 2),
    "fcos_r50-caffe_fpn_gn-head_1x_coco": ("fcos_r50", 3),
}
FEATURES = [
    (name, f"{part}.{level}")
    for name, (_, outputs) in MODELS.items()
    for part, levels in {
        "backbone": 4,
        "neck": 5,
        **{f"bbox_head.{kind}": 5 for kind in range(outputs)},
    }.items()
    for level in range(levels)
]


@pytest.fixture(scope="module")
def references(load_reference):
    return {name: load_reference(reference) for name, (reference, _) in MODELS.items()}


def everything_computed(config, reference):
    """All that a detector computes for the image, by name."""
    model = reference.fill(build_detector(config["model"]))
    prepared = Preprocessor(input_spec_from_config(config))([cv2.imread(str(IMAGE))])
    images, sizes = torch.from_numpy(prepared.images), torch.from_numpy(prepared.image_sizes)
    with torch.inference_mode():
        pixels = model.data_preprocessor(images, sizes)
        backbone = model.backbone(pixels)
        neck = model.neck(backbone)
        outputs = model.bbox_head(neck)
        limits = torch.tensor([[[1199.0, 800, 1199, 800]]])
        detections = model.bbox_head.predict_by_feat(outputs, limits)
    parts = {"backbone": backbone, "neck": neck}
    parts |= {f"bbox_head.{kind}": levels for kind, levels in enumerate(outputs)}
    features = {f"{part}.{i}": x for part, levels in parts.items() for i, x in enumerate(levels)}
    return {
        "input": pixels,
        "image_sizes": prepared.image_sizes,
        "scale_factor": np.asarray(prepared.scale_factors[0]),
        "detections": [output[0].numpy() for output in detections],
        **features,
    }


@pytest.fixture(scope="module")
def results(recipe, references):
    return {name: everything_computed(recipe(name), references[name]) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_network_input_is_bit_equal(results, references, name):
    result, reference = results[name], references[name]
    assert result["image_sizes"].tolist() == [reference.arrays["meta.img_shape"].tolist()]
    assert result["input"].shape == tuple(reference.arrays["input.shape"]) == (1, 3, 800, 1216)
    sample = reference.sample(result["input"])
    np.testing.assert_array_equal(sample, reference.arrays["input.slice"])
    np.testing.assert_allclose(result["scale_factor"], reference.arrays["meta.scale_factor"])


@pytest.mark.parametrize(("name", "feature"), FEATURES)
def test_features_are_within_ten_times_the_noise(results, references, name, feature):
    references[name].check_feature(feature, results[name][feature])


@pytest.mark.parametrize("name", MODELS)
def test_all_detections_match(results, references, name):
    boxes, scores, labels, count = results[name]["detections"]
    assert count == 100
    original = boxes / np.tile(results[name]["scale_factor"], 2)
    references[name].check_detections(original, scores, labels, count)
