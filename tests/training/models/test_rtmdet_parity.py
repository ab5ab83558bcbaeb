"""RTMDet-tiny against what MMDetection 3.3.0 computed on a CPU with the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit.training.models import build_detector
from deploykit.training.structures import Batch, Targets

IMAGE = Path(__file__).parents[2] / "data" / "china.jpg"
FEATURES = [f"{part}.{level}" for part in ("backbone", "neck") for level in range(3)]
FEATURES += [f"bbox_head.{branch}.{level}" for branch in range(2) for level in range(3)]


@pytest.fixture(scope="module")
def reference(load_reference):
    return load_reference("rtmdet_tiny")


@pytest.fixture(scope="module")
def detector(recipe, reference):
    return reference.fill(build_detector(recipe("rtmdet_tiny")["model"]))


@pytest.fixture(scope="module")
def images(reference):
    image = cv2.imread(str(IMAGE))
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(
        reference.arrays["meta.decoded_sha256"]
    )
    padded = np.full((640, 640, 3), 114, dtype=np.uint8)  # the image is 640 wide: no resizing
    padded[: image.shape[0]] = image
    return torch.from_numpy(padded[None, :, :, ::-1].copy())


@pytest.fixture(scope="module")
def features(detector, images):
    with torch.inference_mode():
        backbone = detector.backbone(detector.data_preprocessor(images))
        neck = detector.neck(backbone)
        scores, distances = detector.bbox_head(neck)
    return dict(zip(FEATURES, (*backbone, *neck, *scores, *distances), strict=True))


def test_state_dict_is_that_of_mmdetection(detector, reference):
    shapes = {key: list(value.shape) for key, value in detector.state_dict().items()}
    assert shapes == reference.weights["shapes"]


def test_network_input_is_bit_equal(detector, images, reference):
    pixels = detector.data_preprocessor(images)
    assert pixels.shape == (1, 3, 640, 640)
    np.testing.assert_array_equal(reference.sample(pixels), reference.arrays["input.slice"])


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_within_ten_times_the_noise(features, reference, name):
    reference.check_feature(name, features[name])


def test_all_detections_match(detector, images, reference):
    with torch.inference_mode():
        outputs = [output[0].numpy() for output in detector.predict(images)]
    assert outputs[3] == 300
    reference.check_detections(*outputs)


# MMDetection's losses, and norms of their gradients, for the image with the first eight objects and
# its mirror image with the first two, in evaluation mode. Its own runs differ by 1e-6 (the
# gradients of the first layer by 1e-5) from one number of threads to another.
OBJECTS = [
    ((120, 60, 330, 250), 0),
    ((300, 90, 520, 260), 5),
    ((0, 0, 640, 427), 33),
    ((40, 280, 110, 400), 2),
    ((500, 300, 560, 380), 2),
    ((200, 200, 230, 240), 79),
    ((10, 10, 26, 30), 14),
    ((310, 95, 500, 255), 5),
]
LOSSES = {"loss_cls": 122.16417, "loss_bbox": 0.9345269}
GRADIENT_NORMS = {
    "backbone.stem.0.conv.weight": 3098.88,
    "backbone.stage4.2.attention.fc.weight": 936.8607,
    "neck.out_convs.1.conv.weight": 1114.655,
    "bbox_head.cls_convs.0.0.conv.weight": 3157.028,
    "bbox_head.rtm_cls.0.weight": 1785.291,
    "bbox_head.rtm_cls.2.bias": 3.00521,
    "bbox_head.rtm_reg.0.weight": 0.565017,
    "bbox_head.rtm_reg.1.weight": 0.8736199,
}


def test_losses_and_gradients_are_those_of_mmdetection(detector, images):
    targets = [
        Targets(
            torch.tensor([box for box, _ in OBJECTS[:count]], dtype=torch.float32),
            torch.tensor([label for _, label in OBJECTS[:count]]),
        )
        for count in (8, 2)
    ]
    both = torch.cat((images, images.flip(2)))
    sizes = torch.full((2, 2), 640, dtype=torch.int32)
    detector.zero_grad()
    losses = detector.loss(Batch(both, sizes, targets, [{}, {}]))
    sum(losses.values()).backward()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(LOSSES, rel=1e-5)
    parameters = dict(detector.named_parameters())
    norms = {name: parameters[name].grad.norm().item() for name in GRADIENT_NORMS}
    detector.zero_grad()
    assert norms == pytest.approx(GRADIENT_NORMS, rel=2e-4)
