from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.export import Dim

from deploykit.errors import ConfigError
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.training.models.detectors.single_stage import box_limits
from deploykit.training.models.heads.dense_detections import (
    DenseTestConfig,
    suppress,
    top_candidates,
)


def slow_detections(logits, distances, strides, config, width, height):
    """MMDetection's test path for one image, from its definition, in numpy.

    Per level: threshold every (cell, class) score, keep the best ``nms_pre``, decode and clip. Over
    all levels: drop small boxes, suppress per class, keep the best ``max_per_img``.
    """
    boxes, scores, labels = [], [], []
    for level_logits, level_distances, stride in zip(logits, distances, strides, strict=True):
        level_scores = 1 / (1 + np.exp(-level_logits.astype(np.float64)))
        found = [
            (level_scores[c, y, x], y, x, c)
            for c, y, x in np.ndindex(level_scores.shape)
            if level_scores[c, y, x] > config["score_thr"]
        ]
        found.sort(key=lambda item: -item[0])
        for score, y, x, c in found[: config["nms_pre"]]:
            left, top, right, bottom = level_distances[:, y, x]
            box = [x * stride - left, y * stride - top, x * stride + right, y * stride + bottom]
            box = np.clip(box, 0, [width, height, width, height])
            if (box[2:] - box[:2] > config["min_bbox_size"]).all():
                boxes.append(box)
                scores.append(score)
                labels.append(c)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores, labels = np.array(scores, np.float32), np.array(labels, np.int64)
    keep = batched_nms(
        boxes[None], scores[None], labels[None], config["nms"]["iou_threshold"], len(scores)
    )[0]
    keep = keep[keep >= 0][: config["max_per_img"]]
    return boxes[keep], scores[keep], labels[keep]


@pytest.mark.parametrize("head", [{}, {"exp_on_reg": True}, {"with_objectness": True}])
def test_predict_equals_the_slow_definition(small_detector, random_images, head):
    model = small_detector(**head)
    options = {
        "score_thr": 0.3,
        "nms_pre": 50,
        "min_bbox_size": 5,
        "nms": {"type": "nms", "iou_threshold": 0.6},
        "max_per_img": 30,
    }
    model.bbox_head.test_config = DenseTestConfig.from_config(options)
    images = random_images(2, 64, 96)
    with torch.inference_mode():
        logits, distances = model.bbox_head(
            model.extract_feat(model.data_preprocessor(images, None))
        )
        boxes, scores, labels, counts = model.predict(images)
    assert counts.min() > 3
    for image in range(2):
        expected = slow_detections(
            [level[image].numpy() for level in logits],
            [level[image].numpy() for level in distances],
            (8, 16, 32),
            options,
            width=96,
            height=64,
        )
        count = int(counts[image])
        assert count == len(expected[0])
        np.testing.assert_allclose(boxes[image, :count], expected[0], atol=1e-3)
        np.testing.assert_allclose(scores[image, :count], expected[1], atol=1e-6)
        np.testing.assert_array_equal(labels[image, :count], expected[2])


def test_outputs_have_a_fixed_shape_and_empty_rows(small_detector, random_images):
    model = small_detector()
    model.bbox_head.test_config = DenseTestConfig(
        score_thr=0.35, iou_threshold=0.3, max_per_img=100
    )
    with torch.inference_mode():
        boxes, scores, labels, counts = model.predict(random_images(3, 64, 64))
    assert (boxes.shape, scores.shape, labels.shape, counts.shape) == (
        (3, 100, 4),
        (3, 100),
        (3, 100),
        (3,),
    )
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
    assert (labels.dtype, counts.dtype) == (torch.int32, torch.int32)
    assert 0 < counts.max() < 100
    for image, count in enumerate(counts.tolist()):
        assert (scores[image].diff() <= 0).all()
        assert (scores[image, :count] > 0.35).all()
        assert (labels[image, :count] >= 0).all()
        assert (labels[image, count:] == -1).all()
        assert not boxes[image, count:].any()
        assert not scores[image, count:].any()


def test_no_image_influences_another(small_detector, random_images):
    model = small_detector()
    images = random_images(4, 96, 64)
    images[2] = 0
    with torch.inference_mode():
        together = model.predict(images)
        alone = [model.predict(image[None]) for image in images]
    for output, singles in zip(together, zip(*alone, strict=True), strict=True):
        # Convolution libraries may block a batch differently, hence not bit by bit.
        torch.testing.assert_close(output, torch.cat(singles), atol=2e-4, rtol=1e-5)


def test_boxes_are_clipped_to_the_image_where_its_size_is_given():
    images = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    assert box_limits(images, None).tolist() == [[[96, 64, 96, 64]]]
    sizes = torch.tensor([[40, 96], [64, 50]], dtype=torch.int32)
    assert box_limits(images, sizes).tolist() == [[[96, 40, 96, 40]], [[50, 64, 50, 64]]]


def test_padding_after_normalisation_equals_the_image_alone(small_config, small_detector):
    model = small_detector()
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [40, 60]], dtype=torch.int32)
    with torch.inference_mode():
        pixels = model.data_preprocessor(images, sizes)
    assert not pixels[1, :, 40:].any()
    assert not pixels[1, :, :, 60:].any()
    assert pixels[1, :, :40, :60].ne(0).any()


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_gives_the_same_results(small_detector, random_images, dynamic):
    model = small_detector()
    images = random_images(2, 96, 128)
    shapes = None
    if dynamic:
        rows, columns = Dim("rows", min=2, max=40), Dim("columns", min=2, max=40)
        shapes = {
            "inputs": {0: Dim("batch", min=1, max=16), 1: 32 * rows, 2: 32 * columns},
        }
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    operators = {str(node.target) for node in program.graph.nodes}
    assert "deploykit.batched_nms.default" in operators
    assert not {name for name in operators if "nonzero" in name or "_local_scalar" in name}
    exported = program.module()
    sizes = [(1, 64, 64), (3, 160, 96), (2, 96, 128)] if dynamic else [(2, 96, 128)]
    for seed, size in enumerate(sizes):
        images = random_images(*size, seed=seed)
        with torch.inference_mode():
            expected = model.predict(images)
            actual = exported(images)
        assert expected[3].max() > 0
        for output, reference in zip(actual, expected, strict=True):
            torch.testing.assert_close(output, reference)


def test_top_candidates_picks_cell_and_class_pairs():
    logits = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)
    logits = torch.roll(logits, 1, dims=1)  # class 0 now has the largest numbers
    values, classes, locations = top_candidates(logits, 5)
    assert values.shape == classes.shape == locations.shape == (2, 5)
    assert classes[0].tolist() == [0, 0, 0, 0, 2]
    assert locations[0].tolist() == [3, 2, 1, 0, 3]
    assert torch.equal(logits[1, classes[1], locations[1] // 2, locations[1] % 2], values[1])
    assert top_candidates(logits, None)[0].shape == (2, 12)
    assert top_candidates(logits, 1000)[0].shape == (2, 12)


def test_class_agnostic_suppression():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    labels = torch.tensor([[0, 1, 1]])
    by_class = suppress(boxes, scores, labels, DenseTestConfig(max_per_img=4))
    agnostic = suppress(boxes, scores, labels, DenseTestConfig(class_agnostic=True, max_per_img=4))
    assert by_class[2].tolist() == [[0, 1, 1, -1]]
    assert agnostic[2].tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize(
    "config",
    [
        {"nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        {"nms": {"type": "nms", "iou_thr": 0.5}},
        {"max_per_image": 10},
        {"max_per_img": 0},
        {"multi_label": False},
    ],
)
def test_unsupported_test_configs_are_refused(config):
    with pytest.raises(ConfigError, match="test_cfg"):
        DenseTestConfig.from_config(config)
