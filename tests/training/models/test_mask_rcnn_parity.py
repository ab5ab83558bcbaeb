"""Mask R-CNN and Faster R-CNN against what MMDetection 3.3.0 computed on a CPU.

The reference gave both the same weights, and they came to the same boxes, so that one pass through
the backbone serves both.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from deploykit.mask_paste import paste_masks
from deploykit.runtimes.preprocess import Preprocessor
from deploykit.training.input_spec import input_spec_from_config
from deploykit.training.models import build_detector
from deploykit.training.models.detectors.single_stage import box_limits
from deploykit.training.models.roi_heads.roi_sampling import Proposals

pytestmark = pytest.mark.slow

IMAGE = Path(__file__).parents[2] / "data" / "china.jpg"
PARTS = {"backbone": 4, "neck": 5, "rpn_head.0": 5, "rpn_head.1": 5}
FEATURES = [f"{part}.{level}" for part, levels in PARTS.items() for level in range(levels)]
HEIGHT, WIDTH = 427, 640


@pytest.fixture(scope="module")
def reference(load_reference):
    return load_reference("mask_rcnn_r50")


@pytest.fixture(scope="module")
def run(recipe, reference):
    """Everything that the detectors compute for the image, by name."""
    config = recipe("mask-rcnn_r50_fpn_1x_coco")
    model = reference.fill(build_detector(config["model"]))
    faster = reference.fill(build_detector(recipe("faster-rcnn_r50_fpn_1x_coco")["model"]))
    prepared = Preprocessor(input_spec_from_config(config))([cv2.imread(str(IMAGE))])
    images, sizes = torch.from_numpy(prepared.images), torch.from_numpy(prepared.image_sizes)
    limits = box_limits(images, sizes)
    with torch.inference_mode():
        pixels = model.data_preprocessor(images, sizes)
        backbone = model.backbone(pixels)
        neck = model.neck(backbone)
        outputs = model.rpn_head(neck)
        boxes, _, _, counts = model.rpn_head.predict_by_feat(outputs, limits)
        proposals = Proposals.of_counts(boxes, counts)
        detections = model.roi_head.predict(neck, proposals, limits)
        faster_detections = faster.roi_head.predict(neck, proposals, limits)
    features = (*backbone, *neck, *outputs[0], *outputs[1])
    return {
        "model": model,
        "input": pixels,
        "neck": neck,
        "proposals": boxes[0],
        "scale_factor": np.tile(np.asarray(prepared.scale_factors[0]), 2),
        "mask-rcnn": [output[0].numpy() for output in detections],
        "faster-rcnn": [output[0].numpy() for output in faster_detections],
        **dict(zip(FEATURES, features, strict=True)),
    }


def check_close(actual, expected, tolerance):
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_network_input_is_bit_equal(run, reference):
    assert run["input"].shape == tuple(reference.arrays["input.shape"]) == (1, 3, 800, 1216)
    sample = reference.sample(run["input"])
    np.testing.assert_array_equal(sample, reference.arrays["input.slice"])


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_within_ten_times_the_noise(run, reference, name):
    reference.check_feature(name, run[name])


def test_proposals_are_those_of_mmdetection(run, reference):
    expected = torch.from_numpy(reference.arrays["rpn.proposals.bboxes.full"])
    assert run["proposals"].shape == expected.shape == (1000, 4)
    nearest = torch.cdist(expected, run["proposals"], p=float("inf")).amin(dim=1)
    # Scores that tie within the noise may decide otherwise about a few.
    assert (nearest < 0.01).sum() >= 995


def test_box_head_on_the_reference_proposals(run, reference):
    proposals = torch.from_numpy(reference.arrays["rpn.proposals.bboxes.full"])
    rois = torch.cat((torch.zeros(1000, 1), proposals), dim=1)
    head = run["model"].roi_head
    with torch.inference_mode():
        crops = head.bbox_roi_extractor(run["neck"], rois)
        logits, deltas = head.bbox_head(crops)
    results = {"bbox_roi_extractor": crops, "bbox_head.0": logits, "bbox_head.1": deltas}
    for name, tensor in results.items():
        name = f"roi_head.{name}"
        assert tensor.shape == tuple(reference.arrays[f"{name}.shape"])
        # Noise was measured through the order of the proposals; this is ten times the neck's.
        check_close(reference.sample(tensor), reference.arrays[f"{name}.slice"], 1e-4)


def test_mask_head_on_the_reference_boxes(run, reference):
    boxes = reference.arrays["pred.bboxes"] * run["scale_factor"]
    rois = torch.from_numpy(np.insert(boxes, 0, 0, axis=1).astype(np.float32))
    head = run["model"].roi_head
    with torch.inference_mode():
        crops = head.mask_roi_extractor(run["neck"], rois)
        logits = head.mask_head(crops)
    for name, tensor in {"mask_roi_extractor": crops, "mask_head": logits}.items():
        reference.check_feature(f"roi_head.{name}", tensor)


@pytest.mark.parametrize("name", ["faster-rcnn", "mask-rcnn"])
def test_all_detections_match(run, reference, name):
    boxes, scores, labels, count = run[name][:4]
    assert count == 100
    reference.check_detections(boxes / run["scale_factor"], scores, labels, count)


def test_all_masks_match(run, reference):
    boxes, scores, labels, count, logits = run["mask-rcnn"]
    assert logits.shape == (100, 28, 28)
    boxes = boxes / run["scale_factor"]
    rows = reference.check_detections(boxes, scores, labels, count)
    encoded = reference.arrays["pred.mask_rle"].tobytes().split(b"\n")
    size = [HEIGHT, WIDTH]
    expected = [rle.decode({"size": size, "counts": encoded[row]}).astype(bool) for row in rows]
    assert [mask.sum() for mask in expected] == reference.arrays["pred.mask_area"][rows].tolist()
    # Boxes that are off by 1e-4 pixels decide some pixel at the threshold otherwise, which is a lot
    # for masks of thirty pixels; with the same boxes all masks must agree.
    own_boxes = paste_masks(logits, boxes, (HEIGHT, WIDTH))
    same_boxes = paste_masks(logits, reference.arrays["pred.bboxes"][rows], (HEIGHT, WIDTH))
    for own, same, mask in zip(own_boxes, same_boxes, expected, strict=True):
        assert (own ^ mask).sum() <= max(2, 0.01 * (own | mask).sum())
        assert (same ^ mask).sum() <= 0.01 * (same | mask).sum()
