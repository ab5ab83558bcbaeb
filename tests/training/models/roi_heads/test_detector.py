"""A small Mask R-CNN behind the detector."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit import Detector
from deploykit.training.checkpoint import write_checkpoint

IMAGE = Path(__file__).parents[3] / "data" / "china.jpg"


@pytest.fixture(scope="module")
def detector(small_two_stage, shrunk_recipe, tmp_path_factory):
    config = shrunk_recipe("mask-rcnn")
    path = tmp_path_factory.mktemp("mask_rcnn") / "model.pth"
    meta = {"cfg": config.dumps(), "dataset_meta": {"classes": ("a", "b", "c")}}
    state = small_two_stage("mask-rcnn").state_dict()
    write_checkpoint(path, {"meta": meta, "state_dict": state})
    return Detector(path, device="cpu", input_size=(160, 160))


def test_masks_lie_in_their_boxes(detector):
    assert detector.spec.architecture == "MaskRCNN"
    assert detector.spec.output.names[-1] == "masks"
    image = cv2.imread(str(IMAGE))
    found = detector(image)
    assert len(found) > 3
    assert found.masks.shape == (len(found), *image.shape[:2])
    assert found.masks.any(axis=(1, 2)).sum() > 2
    for box, mask in zip(found.boxes, found.masks, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if len(rows):
            assert box[0] - 1 <= columns[0] and columns[-1] + 1 <= box[2] + 1
            assert box[1] - 1 <= rows[0] and rows[-1] + 1 <= box[3] + 1


def test_batches_of_different_images_equal_single_ones(detector):
    image = cv2.imread(str(IMAGE))
    images = [image, image[:, 300:], cv2.flip(image, 1)[:200]]
    with torch.inference_mode():
        together = detector(images)
    for own, batched in zip((detector(each) for each in images), together, strict=True):
        assert len(own) == len(batched) > 0
        np.testing.assert_allclose(own.boxes, batched.boxes, atol=0.05)
        assert (own.masks ^ batched.masks).mean() < 1e-3
