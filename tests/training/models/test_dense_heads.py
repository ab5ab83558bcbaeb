"""What every dense head must do, on the small detectors of ``test_dense_losses``."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch.export import Dim

from deploykit.errors import ConfigError
from deploykit.training.models import build_detector
from deploykit.training.structures import Targets

CASES = json.loads((Path(__file__).parent / "data" / "dense_losses.json").read_text())


@pytest.fixture
def detector(reference_class):
    """Returns the detector of a case with diverse predictions, by name."""

    def make(name: str):
        case = CASES[name]
        weights = {"seed": 0, "overrides": case["overrides"], "keep": case.get("keep", ())}
        return reference_class({}, weights).fill(build_detector(case["model"]))

    return make


@pytest.fixture
def model_config():
    return lambda name: copy.deepcopy(CASES[name]["model"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_images_without_objects_train(model_config, make_batch, name, counts):
    torch.manual_seed(0)
    model = build_detector(model_config(name)).train()
    model.init_weights()
    losses = model(make_batch(counts, size=128))
    sum(losses.values()).backward()
    assert all(loss.dim() == 0 and math.isfinite(loss.item()) for loss in losses.values())
    free = name == "free-anchor"
    assert losses["negative_bag_loss" if free else "loss_cls"] > 0
    of_objects = losses["positive_bag_loss" if free else "loss_bbox"]
    assert (of_objects > 0) == (sum(counts) > 0)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", CASES)
def test_half_precision_training_keeps_losses_in_float32(detector, make_batch, name):
    model = detector(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_batch([2, 3], size=128))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("name", CASES)
def test_no_image_influences_another(detector, random_images, name):
    model = detector(name)
    images = random_images(3, 160, 128)
    images[1] = 0
    sizes = torch.tensor([[160, 128], [100, 128], [141, 93]], dtype=torch.int32)
    with torch.inference_mode():
        together = model.predict(images, sizes)
        alone = [model.predict(images[i : i + 1], sizes[i : i + 1]) for i in range(3)]
    assert together[3].min() > 0
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        # Convolution libraries may block a batch differently, hence not bit by bit.
        torch.testing.assert_close(output, torch.cat(singles), atol=2e-3, rtol=1e-4)
    for image, (height, width) in enumerate(sizes.tolist()):
        assert together[0][image, :, 2].max() <= width
        assert together[0][image, :, 3].max() <= height


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_export_with_dynamic_shapes_gives_the_same_results(detector, random_images, name):
    model = detector(name)
    # PyTorch takes axes of length 1 for constants; the coarsest stride is 128.
    rows, columns = Dim("rows", min=5, max=40), Dim("columns", min=5, max=40)
    batch = Dim("batch", min=1, max=16)
    shapes = {"inputs": {0: batch, 1: 32 * rows, 2: 32 * columns}, "image_sizes": {0: batch}}
    sizes = torch.tensor([[160, 192], [140, 150]], dtype=torch.int32)
    example = (random_images(2, 160, 192), sizes)
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    exported = program.module()
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "deploykit.batched_nms.default" in targets
    assert not {t for t in targets if "nonzero" in t or "_local_scalar_dense" in t}
    for size in ((1, 192, 160), (3, 256, 224)):
        images = random_images(*size)
        sizes = torch.tensor([[size[1] - 7 * i, size[2] - 3 * i] for i in range(size[0])])
        sizes = sizes.to(torch.int32)
        with torch.inference_mode():
            expected, actual = model.predict(images, sizes), exported(images, sizes)
        assert expected[3].max() > 0
        for output, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(output, wanted)


def fcos_assignment(head, boxes):
    """Which object each point predicts, point by point, from the paper's rules."""
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    expected = []
    for (rows, columns), stride, (low, high) in zip(
        sizes, head.strides, head.regress_ranges, strict=True
    ):
        for cell in range(rows * columns):
            x, y = (cell % columns + 0.5) * stride, (cell // columns + 0.5) * stride
            best, best_area = -1, math.inf
            for index, (x1, y1, x2, y2) in enumerate(boxes):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                inside = min(sides) > 0
                if head.center_sampling:
                    reach = stride * head.center_sample_radius
                    near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < reach
                    inside = inside and near
                area = (x2 - x1) * (y2 - y1)
                if inside and low <= max(sides) <= high and area < best_area:
                    best, best_area = index, area
            expected.append(best)
    return sizes, expected


@pytest.mark.parametrize("name", ["fcos", "fcos-center"])
@pytest.mark.parametrize("seed", range(4))
def test_fcos_assigns_each_point_the_smallest_object_in_range(model_config, name, seed):
    head = build_detector(model_config(name)).bbox_head
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(12, 2, generator=generator) * 100).round()
    boxes = torch.cat((corner, corner + torch.rand(12, 2, generator=generator) * 60 + 1), dim=1)
    sizes, expected = fcos_assignment(head, boxes.tolist())
    priors = head.prior_generator.grid_priors(sizes)
    ranges = torch.cat(
        [
            torch.tensor(limits).expand(height * width, 2)
            for limits, (height, width) in zip(head.regress_ranges, sizes, strict=True)
        ]
    )
    labels = torch.zeros(12, dtype=torch.int64)
    assert head._objects(priors, ranges, Targets(boxes, labels)).tolist() == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize("seed", range(4))
def test_fovea_assigns_the_middle_of_the_smallest_object_that_fits(model_config, seed):
    head = build_detector(model_config("fovea")).bbox_head
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(9, 2, generator=generator) * 100).round()
    boxes = torch.cat((corner, corner + torch.rand(9, 2, generator=generator) * 60 + 9), dim=1)
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    expected = []
    for (rows, columns), stride, (low, high) in zip(
        sizes, head.strides, head.scale_ranges, strict=True
    ):
        level = [-1] * (rows * columns)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        for index in areas.argsort(descending=True).tolist():
            if not low <= areas[index].sqrt() <= high:
                continue
            x1, y1, x2, y2 = (boxes[index] / stride).tolist()
            shrink_x, shrink_y = (1 - head.sigma) * (x2 - x1) / 2, (1 - head.sigma) * (y2 - y1) / 2
            # Cells whose centre is in the middle part; outermost cells stand for what is beyond.
            left, right = math.ceil(x1 + shrink_x - 0.5), math.floor(x2 - shrink_x - 0.5)
            top, bottom = math.ceil(y1 + shrink_y - 0.5), math.floor(y2 - shrink_y - 0.5)
            left, right = (min(max(side, 0), columns - 1) for side in (left, right))
            top, bottom = (min(max(side, 0), rows - 1) for side in (top, bottom))
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    level[row * columns + column] = index
        expected += level
    labels = torch.zeros(9, dtype=torch.int64)
    assert head._objects(sizes, Targets(boxes, labels)).tolist() == expected
    assert len(set(expected)) > 5


def test_free_anchor_does_not_call_a_hit_background(model_config):
    head = build_detector(model_config("free-anchor")).bbox_head
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 2], [0, 0, 10, 9]])
    target = Targets(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]]), torch.tensor([1, 1]))
    hit = head._hit_probability(torch.zeros(4, 4), anchors, target)
    assert not hit[:, [0, 2]].any()
    # The threshold is 0.4; the best box of an object is sure, the others in proportion.
    sure = [1.0, (7 / 8 - 0.4) / (8 / 9 - 0.4), 0.0, 1.0]
    torch.testing.assert_close(hit[:, 1], torch.tensor(sure))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fovea", {"with_deform": True}, "with_deform"),
        ("fovea", {"base_edge_list": [16]}, "base_edge_list"),
        ("gfl", {"anchor_generator": {
            "type": "AnchorGenerator", "scales": [1, 2], "ratios": [1.0], "strides": [8, 16]}},
         "one anchor per cell"),
        ("atss", {"stacked_convs": 0}, "stacked_convs"),
        ("atss", {"loss_cls": {"type": "CrossEntropyLoss"}}, "use_sigmoid"),
        ("fsaf", {"reg_decoded_bbox": False}, "reg_decoded_bbox"),
        ("free-anchor", {"loss_cls": {"type": "CrossEntropyLoss"}}, "use_sigmoid"),
    ],
)  # fmt: skip
def test_options_that_are_not_supported_are_refused(model_config, name, change, message):
    config = model_config(name)
    config["bbox_head"] |= change
    with pytest.raises(ConfigError, match=message):
        build_detector(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"stacked_convs": -1}, "stacked_convs"),
        ({"regress_ranges": [[-1, 64]]}, "regress_ranges"),
        ({"cls_predictor_cfg": {"type": "NormedConv2d"}}, "cls_predictor_cfg"),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, "use_sigmoid"),
    ],
)
def test_point_heads_that_do_not_exist_are_refused(model_config, change, message):
    config = model_config("fcos")
    config["bbox_head"] |= change
    with pytest.raises(ConfigError, match=message):
        build_detector(config)
