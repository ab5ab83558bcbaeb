"""RTMDet-tiny against what MMDetection 3.3.0 computed on a CPU with the same weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploykit.training.models import build_detector
from deploykit.training.structures import Batch, Targets

HERE = Path(__file__).parent
IMAGE = HERE.parents[1] / "data" / "china.jpg"
FEATURES = [f"{part}.{level}" for part in ("backbone", "neck") for level in range(3)]
FEATURES += [f"bbox_head.{branch}.{level}" for branch in range(2) for level in range(3)]


def make_weight(key: str, shape: list[int], recipe: dict) -> np.ndarray:
    """The deterministic weight of a key: a function of its name, adjusted by the recipe."""
    override = recipe["overrides"].get(key, {})
    if "alias_of" in override:
        return make_weight(override["alias_of"], shape, recipe)
    digest = hashlib.sha256(f"{recipe['seed']}:{key}".encode()).digest()
    random = np.random.RandomState(int.from_bytes(digest[:4], "little"))
    if key.endswith("running_var"):
        value = random.uniform(0.8, 1.2, shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.05 * random.standard_normal(shape)
    elif len(shape) == 1:
        value = 1 + 0.1 * random.standard_normal(shape)
    else:
        value = random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    factor = np.asarray(override.get("mul", 1.0))
    factor = factor.reshape(factor.shape + (1,) * (len(shape) - 1) * factor.ndim)
    return (value * factor + np.asarray(override.get("add", 0.0))).astype(np.float32)


@pytest.fixture(scope="module")
def weights():
    recipe = json.loads((HERE / "data" / "rtmdet_tiny_weights.json").read_text())
    state = {}
    for key, shape in recipe["shapes"].items():
        counter = key.endswith("num_batches_tracked")
        value = np.array(0) if counter else make_weight(key, shape, recipe)
        state[key] = torch.from_numpy(value).reshape(shape)
    return state


@pytest.fixture(scope="module")
def reference():
    with np.load(HERE / "data" / "rtmdet_tiny_china.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def detector(recipe, weights):
    model = build_detector(recipe("rtmdet_tiny")["model"])
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def images(reference):
    image = cv2.imread(str(IMAGE))
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(reference["meta.decoded_sha256"])
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


def sample(tensor: torch.Tensor) -> np.ndarray:
    flat = tensor.flatten().numpy()
    places = np.linspace(0, flat.size - 1, min(flat.size, 256)).round()
    return flat[np.unique(places).astype(int)]


def test_state_dict_is_that_of_mmdetection(recipe, weights):
    own = build_detector(recipe("rtmdet_tiny")["model"]).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}


def test_network_input_is_bit_equal(detector, images, reference):
    pixels = detector.data_preprocessor(images)
    assert pixels.shape == (1, 3, 640, 640)
    np.testing.assert_array_equal(sample(pixels), reference["input.slice"])


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_within_ten_times_the_noise(features, reference, name):
    noise = dict(zip(reference["noise.names"], reference["noise.max_rel"], strict=True))[name]
    expected = reference[f"{name}.slice"]
    assert features[name].shape == tuple(reference[f"{name}.shape"])
    error = np.abs(sample(features[name]) - expected).max() / np.abs(expected).max()
    assert error <= 10 * noise
    values = features[name].double()
    mean, std, low, high, magnitude = reference[f"{name}.stats"]
    statistics = [values.mean(), values.std(correction=0), values.min(), values.max()]
    np.testing.assert_allclose(
        [*statistics, values.abs().mean()], [mean, std, low, high, magnitude], rtol=1e-4
    )


def test_all_detections_match(detector, images, reference):
    with torch.inference_mode():
        boxes, scores, labels, count = (output[0].numpy() for output in detector.predict(images))
    assert count == len(reference["pred.scores"]) == 300
    # Detections of nearly the same score may change places: match by label and nearest box.
    unmatched = list(range(300))
    for box, score, label in zip(boxes, scores, labels, strict=True):
        same_label = [i for i in unmatched if reference["pred.labels"][i] == label]
        errors = [np.abs(reference["pred.bboxes"][i] - box).max() for i in same_label]
        best = int(np.argmin(errors))
        assert errors[best] < 0.05
        assert abs(reference["pred.scores"][same_label[best]] - score) < 1e-4
        unmatched.remove(same_label[best])
    assert not unmatched


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
