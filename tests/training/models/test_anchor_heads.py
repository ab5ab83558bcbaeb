from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from deploykit.errors import ConfigError
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.training.models import build_detector
from deploykit.training.models.heads.dense_detections import DenseTestConfig, top_pairs
from deploykit.training.structures import Batch, Targets

TEST_CONFIG = {
    "nms_pre": 200,
    "min_bbox_size": 4,
    "nms": {"type": "nms", "iou_threshold": 0.7},
    "max_per_img": 40,
}


@pytest.fixture(scope="module")
def configs(recipe):
    """Configs of detectors of 200 thousand parameters, by recipe, as shipped otherwise."""

    def make(name: str, **head):
        model = recipe(f"{name}_r50_fpn_1x_coco")["model"]
        model["backbone"] |= {"depth": 18, "base_channels": 8, "init_cfg": None}
        model["neck"] |= {"in_channels": [8, 16, 32, 64], "out_channels": 16}
        narrow = {"in_channels": 16, "feat_channels": 16}
        if name == "rpn":
            model["rpn_head"] |= narrow | head
            model["test_cfg"]["rpn"] = dict(TEST_CONFIG)
        else:
            model["bbox_head"] |= narrow | {"stacked_convs": 1, "num_classes": 3} | head
            model["test_cfg"] = TEST_CONFIG | {"score_thr": 0.3}
        return model

    return make


@pytest.fixture(scope="module")
def detectors(configs):
    """Detectors with random weights whose predictions are diverse."""

    def make(name: str, **head):
        torch.manual_seed(0)
        model = build_detector(configs(name, **head))
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                deviation = math.sqrt(2 / parameter[0].numel())
                torch.nn.init.normal_(parameter, std=deviation)
            if key.endswith("_reg.weight"):
                parameter.data *= 0.1
            if key.endswith("_cls.weight"):
                parameter.data *= 0.05
        return model.eval()

    return make


def slow_candidates(score, pred, anchors, classes, config):
    """One level of one image: (score, anchor, class, deltas) above the threshold, the best ones."""
    logits = score.permute(1, 2, 0).reshape(-1, classes).double().numpy()
    deltas = pred.permute(1, 2, 0).reshape(-1, 4).double().numpy()
    scores = 1 / (1 + np.exp(-logits))
    found = [
        (scores[anchor, label], anchors[anchor], label, deltas[anchor])
        for anchor, label in np.ndindex(scores.shape)
        if scores[anchor, label] > config.get("score_thr", 0)
    ]
    return sorted(found, key=lambda item: -item[0])[: config["nms_pre"]]


def slow_detections(levels, width, height, config, by_level):
    """MMDetection's test path for one image, from its definition."""
    boxes, scores, groups = [], [], []
    for level, candidates in enumerate(levels):
        for score, anchor, label, delta in candidates:
            size = anchor[2:] - anchor[:2]
            center = (anchor[:2] + anchor[2:]) / 2 + delta[:2] * size
            size = size * np.exp(np.clip(delta[2:], np.log(16 / 1000), -np.log(16 / 1000)))
            box = np.concatenate((center - size / 2, center + size / 2))
            box = np.clip(box, 0, [width, height, width, height])
            if (box[2:] - box[:2] > config["min_bbox_size"]).all():
                boxes.append(box)
                scores.append(score)
                groups.append(level if by_level else label)
    boxes, scores = np.array(boxes, np.float32), np.array(scores, np.float32)
    groups = np.array(groups, np.int64)
    threshold, count = config["nms"]["iou_threshold"], config["max_per_img"]
    keep = batched_nms(boxes[None], scores[None], groups[None], threshold, count)[0]
    keep = keep[keep >= 0]
    return boxes[keep], scores[keep], groups[keep] * (not by_level)


@pytest.mark.parametrize("name", ["retinanet", "rpn"])
def test_predict_equals_the_slow_definition(detectors, random_images, name):
    model = detectors(name)
    images = random_images(2, 128, 160)
    sizes = torch.tensor([[128, 160], [100, 130]], dtype=torch.int32)
    config = TEST_CONFIG | ({"score_thr": 0.3} if name == "retinanet" else {})
    with torch.inference_mode():
        outputs = model.bbox_head(model.extract_feat(model.data_preprocessor(images, sizes)))
        boxes, scores, labels, counts = model.predict(images, sizes)
    assert counts.min() > 5
    generator, classes = model.bbox_head.prior_generator, model.bbox_head.num_classes
    for image, (height, width) in enumerate(sizes.tolist()):
        levels = [
            slow_candidates(
                score[image],
                pred[image],
                generator.level_priors(level, tuple(score.shape[2:])).double().numpy(),
                classes,
                config,
            )
            for level, (score, pred) in enumerate(zip(*outputs, strict=True))
        ]
        expected = slow_detections(levels, width, height, config, by_level=name == "rpn")
        count = int(counts[image])
        assert count == len(expected[0])
        np.testing.assert_allclose(boxes[image, :count], expected[0], atol=1e-3)
        np.testing.assert_allclose(scores[image, :count], expected[1], atol=1e-6)
        np.testing.assert_array_equal(labels[image, :count], expected[2])
        assert (labels[image, count:] == -1).all()
        assert not boxes[image, count:].any()
        assert not scores[image, count:].any()


def test_softmax_scores_leave_out_the_background(detectors, random_images):
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    model = detectors("retinanet", loss_cls=loss)
    assert model.bbox_head.retina_cls.out_channels == 9 * 4
    model.bbox_head.test_config = DenseTestConfig(
        score_thr=0.0, nms_pre=None, iou_threshold=1.0, max_per_img=5
    )
    images = random_images(1, 64, 64)
    with torch.inference_mode():
        logits, _ = model.bbox_head(model.extract_feat(model.data_preprocessor(images)))
        _, scores, labels, _ = model.predict(images)
    rows = torch.cat([x[0].permute(1, 2, 0).reshape(-1, 4) for x in logits]).softmax(1)[:, :3]
    best = rows.flatten().topk(5)
    torch.testing.assert_close(scores[0], best.values)
    assert labels[0].tolist() == (best.indices % 3).tolist()


@given(
    scores=st.lists(st.integers(0, 1000), min_size=24, max_size=24, unique=True),
    classes=st.sampled_from([1, 2, 3, 6]),
    count=st.one_of(st.none(), st.integers(1, 30)),
)
@settings(max_examples=60, deadline=None)
def test_top_pairs_are_the_best_of_all(scores, classes, count):
    rows = torch.tensor(scores, dtype=torch.float32).view(1, -1, classes)
    values, labels, location = top_pairs(rows, count)
    expected = rows.flatten().sort(descending=True)
    length = min(24, count or 24)
    assert values[0].tolist() == expected.values[:length].tolist()
    assert torch.equal(location[0] * classes + labels[0], expected.indices[:length])


@pytest.mark.parametrize("name", ["retinanet", "rpn"])
def test_no_image_influences_another(detectors, random_images, name):
    model = detectors(name)
    images = random_images(3, 96, 64)
    images[1] = 0
    sizes = torch.tensor([[96, 64], [80, 64], [61, 33]], dtype=torch.int32)
    with torch.inference_mode():
        together = model.predict(images, sizes)
        alone = [model.predict(images[i : i + 1], sizes[i : i + 1]) for i in range(3)]
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        # Convolution libraries may block a batch differently, hence not bit by bit.
        torch.testing.assert_close(output, torch.cat(singles), atol=2e-3, rtol=1e-4)
    for image, (height, width) in enumerate(sizes.tolist()):
        assert together[0][image, :, 2].max() <= width
        assert together[0][image, :, 3].max() <= height


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "rpn"])
def test_export_with_dynamic_shapes_gives_the_same_results(detectors, random_images, name):
    model = detectors(name)
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


def make_targets(counts, size=96, crowds=0):
    generator = torch.Generator().manual_seed(0)

    def boxes(count):
        corner = torch.rand(count, 2, generator=generator) * size / 2
        return torch.cat((corner, corner + size / 8 + corner / 2), dim=1)

    return [
        Targets(boxes(count), torch.randint(3, (count,), generator=generator), boxes(crowds))
        for count in counts
    ]


@pytest.mark.parametrize("name", ["retinanet", "rpn"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 4)])
def test_images_without_objects_and_with_crowds(configs, random_images, name, counts):
    torch.manual_seed(0)
    model = build_detector(configs(name)).train()
    model.init_weights()
    images, sizes = random_images(2, 96, 96), torch.full((2, 2), 96, dtype=torch.int32)
    losses = model(Batch(images, sizes, make_targets(counts, crowds=1), [{}, {}]))
    prefix = "loss_rpn_" if name == "rpn" else "loss_"
    assert set(losses) == {f"{prefix}cls", f"{prefix}bbox"}
    sum(losses.values()).backward()
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    assert losses[f"{prefix}cls"] > 0
    assert (losses[f"{prefix}bbox"] > 0) == (sum(counts) > 0)
    for key, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


def test_proposals_do_not_know_classes(detectors, random_images):
    model = detectors("rpn")
    model.bbox_head.sampler.num = 10**6
    model.bbox_head.sampler.num_positive = 10**6
    images, sizes = random_images(1, 96, 96), torch.full((1, 2), 96, dtype=torch.int32)
    targets = make_targets([3])
    losses = [
        model(Batch(images, sizes, [Targets(targets[0].boxes, labels)], [{}]))
        for labels in (torch.tensor([0, 1, 2]), torch.tensor([7, 7, 7]))
    ]
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.mark.parametrize("border", [-1, 0, 20])
def test_anchors_beyond_the_border_are_not_trained(configs, border):
    config = configs("retinanet", anchor_generator={
        "type": "AnchorGenerator", "scales": [1], "ratios": [1.0], "base_sizes": [24] * 5,
        "strides": [8, 16, 32, 64, 128],
    })  # fmt: skip
    config["train_cfg"] |= {"allowed_border": border}
    head = build_detector(config).bbox_head
    sizes = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
    outputs = (
        tuple(torch.zeros(1, 3, *size, requires_grad=True) for size in sizes),
        tuple(torch.zeros(1, 4, *size) for size in sizes),
    )
    # 96 x 96 pixels of which the image fills 80 x 60; without objects every anchor is background.
    image_size = torch.tensor([[80, 60]])
    losses = head.loss_by_feat(outputs, make_targets([0]), torch.tensor([[96, 64]]), image_size)
    losses["loss_cls"].backward()
    trained = torch.cat([score.grad[0, 0].ne(0).flatten() for score in outputs[0]])
    expected = []
    for stride, (rows, columns) in zip((8, 16, 32, 64, 128), sizes, strict=True):
        for y, x in np.ndindex(rows, columns):
            inside = y * stride < 96 and x * stride < 64
            if border >= 0:
                left, top = x * stride - 12 + border, y * stride - 12 + border
                right, bottom = x * stride + 12 - border, y * stride + 12 - border
                inside = inside and left >= 0 and top >= 0 and right < 60 and bottom < 80
            expected.append(inside)
    assert trained.tolist() == expected


def test_weight_of_positive_anchors(configs, random_images):
    images, sizes = random_images(1, 96, 96), torch.full((1, 2), 96, dtype=torch.int32)
    losses = []
    for weight in (-1, 1.0, 3.0):
        config = configs("retinanet")
        config["train_cfg"]["pos_weight"] = weight
        torch.manual_seed(0)
        model = build_detector(config).eval()
        losses.append(model(Batch(images, sizes, make_targets([2]), [{}]))["loss_cls"].item())
    assert losses[0] == losses[1] < losses[2]


def test_levels_share_convolutions_but_not_norms(configs):
    config = configs("retinanet")
    config["bbox_head"] |= {"type": "RetinaSepBNHead", "num_ins": 5, "norm_cfg": {"type": "BN"}}
    head = build_detector(config).bbox_head
    assert head.cls_convs[0][0].conv is head.cls_convs[4][0].conv
    assert head.cls_convs[0][0].bn is not head.cls_convs[4][0].bn
    torch.manual_seed(0)
    head.init_weights()
    assert torch.sigmoid(head.retina_cls.bias).tolist() == pytest.approx([0.01] * 27)
    assert head.cls_convs[2][0].conv.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_half_precision_training_keeps_the_loss_in_float32(detectors, random_images):
    model = detectors("rpn").train()
    images, sizes = random_images(1, 96, 96), torch.full((1, 2), 96, dtype=torch.int32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(Batch(images, sizes, make_targets([3]), [{}]))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_overfitting_one_batch_finds_its_objects(configs):
    torch.manual_seed(0)
    config = configs("retinanet")
    config["backbone"] |= {"frozen_stages": -1, "norm_eval": False, "base_channels": 16}
    config["neck"]["in_channels"] = [16, 32, 64, 128]
    model = build_detector(config).train()
    model.init_weights()
    images = torch.zeros(2, 96, 96, 3, dtype=torch.uint8)
    images[0, 16:56, 8:40] = torch.tensor([250, 30, 30], dtype=torch.uint8)
    images[1, 40:90, 30:80] = torch.tensor([30, 250, 30], dtype=torch.uint8)
    boxes = torch.tensor([[8.0, 16, 40, 56], [30, 40, 80, 90]])
    targets = [Targets(boxes[i : i + 1], torch.tensor([i])) for i in range(2)]
    batch = Batch(images, torch.full((2, 2), 96, dtype=torch.int32), targets, [{}, {}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        found, _, labels, _ = model.eval().predict(images)
    assert labels[:, 0].tolist() == [0, 1]
    assert (found[:, 0] - boxes).abs().max() < 6


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("retinanet", {"num_classes": 0}, "RetinaHead: num_classes"),
        ("retinanet", {"stacked_convs": -1}, "stacked_convs"),
        ("rpn", {"num_classes": 3}, None),  # corrected by the detector, as by MMDetection
        ("rpn", {"num_convs": 0}, "num_convs"),
    ],
)
def test_heads_that_do_not_exist_are_refused(configs, name, change, message):
    config = configs(name, **change)
    if message is None:
        assert build_detector(config).bbox_head.num_classes == 1
        return
    with pytest.raises(ConfigError, match=message):
        build_detector(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assign": {}}, "assigner"),
        ({"sampler": {"type": "RandomSampler", "num": 9, "pos_fraction": 0.5}}, "add_gt_as_prop"),
    ],
)
def test_training_configs_that_do_not_fit_are_refused(configs, change, message):
    config = configs("retinanet")
    config["train_cfg"] |= change
    with pytest.raises(ConfigError, match=message):
        build_detector(config)


def test_training_needs_an_assigner(configs, random_images):
    config = configs("retinanet")
    config["train_cfg"] = None
    batch = Batch(random_images(1, 64, 64), torch.full((1, 2), 64), make_targets([1]), [{}])
    with pytest.raises(ConfigError, match="train_cfg"):
        build_detector(config)(batch)
