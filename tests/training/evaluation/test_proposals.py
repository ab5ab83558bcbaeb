"""Recall of proposals, and files of them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from deploykit.detections import Detections
from deploykit.errors import ConfigError, DatasetError
from deploykit.proposals import read_proposals
from deploykit.training.data import build_dataset
from deploykit.training.evaluation import CocoMetric, DumpProposals, build_metrics
from deploykit.training.evaluation.proposal_recall import (
    average_recalls,
    matched_ious,
    pairwise_iou,
)

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def random_boxes(rng, count):
    corners = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], 1).astype(np.float32)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def recall_by_hand(truths, proposals, limit):
    """Pairs from the highest IoU down; each object and each proposal is used once."""
    hits, objects = np.zeros(len(THRESHOLDS)), 0
    for truth, found in zip(truths, proposals, strict=True):
        objects += len(truth)
        pairs = sorted(
            ((iou(t, p), i, j) for i, t in enumerate(truth) for j, p in enumerate(found[:limit])),
            reverse=True,
        )
        used_truths, used_proposals = set(), set()
        for value, i, j in pairs:
            if i not in used_truths and j not in used_proposals:
                used_truths.add(i)
                used_proposals.add(j)
                hits += value >= THRESHOLDS
    return (hits / objects).mean()


@pytest.mark.parametrize("seed", range(5))
def test_recall_equals_a_count_by_hand(seed):
    rng = np.random.default_rng(seed)
    truths = [random_boxes(rng, int(count)) for count in rng.integers(0, 7, 6)]
    proposals = [
        np.concatenate([truth + rng.normal(0, 3, truth.shape), random_boxes(rng, 9)]).astype(
            np.float32
        )[rng.permutation(len(truth) + 9)]
        for truth in truths
    ]
    limits = (3, 6, 100)
    expected = [recall_by_hand(truths, proposals, limit) for limit in limits]
    assert 0 < expected[0] < expected[1] < expected[2] < 1
    np.testing.assert_allclose(
        average_recalls(truths, proposals, limits, THRESHOLDS), expected, atol=1e-6
    )


def test_matching_at_the_edges():
    nothing, two = np.zeros((0, 4), np.float32), random_boxes(np.random.default_rng(0), 2)
    assert matched_ious(pairwise_iou(nothing, two)).shape == (0,)
    assert matched_ious(pairwise_iou(two, nothing)).tolist() == [-1, -1]
    assert sorted(matched_ious(pairwise_iou(two, two[:1])).tolist())[0] == -1  # one is left over
    assert average_recalls([nothing], [two], (1, 2), THRESHOLDS) == [-1, -1]
    assert average_recalls([two], [two], (1, 2), THRESHOLDS) == [0.5, 1]


@pytest.fixture
def dataset(tmp_path):
    """Three images of 50 x 80 without pixels: two objects and a crowd, one object, none."""
    (tmp_path / "img").mkdir()
    annotations = [
        (5, 1, [10, 10, 20, 20], 0), (5, 2, [40, 5, 30, 30], 0), (5, 1, [0, 0, 80, 50], 1),
        (3, 2, [20, 10, 30, 20], 0),
    ]  # fmt: skip
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.png", "width": 80, "height": 50}
            for image in (5, 3, 9)
        ],
        "categories": [{"id": 1, "name": "dent"}, {"id": 2, "name": "scratch"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box,
             "area": box[2] * box[3], "iscrowd": crowd}
            for n, (image, category, box, crowd) in enumerate(annotations, 1)
        ],
    }  # fmt: skip
    for image in (5, 3, 9):
        (tmp_path / "img" / f"{image}.png").touch()
    (tmp_path / "ann.json").write_text(json.dumps(content))
    return build_dataset(
        {"type": "CocoDataset", "ann_file": "ann.json", "data_root": str(tmp_path),
         "data_prefix": {"img": "img"}, "test_mode": True}
    )  # fmt: skip


def proposals_of(boxes, scores):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64)
    return Detections(
        boxes,
        np.array(scores, np.float32),
        labels,
        class_names=("object",),
        image_size=(50, 80),
    )


FOUND = {
    5: proposals_of([[0, 0, 9, 9], [10, 10, 30, 30], [40, 5, 70, 35]], [0.9, 0.6, 0.7]),
    3: proposals_of([[20, 10, 50, 30]], [0.1]),
    9: proposals_of([], []),
}


def test_proposal_fast(dataset):
    (metric,) = build_metrics(
        {"type": "CocoMetric", "metric": "proposal_fast", "proposal_nums": (1, 2, 10)}, dataset
    )
    for image_id, found in FOUND.items():
        metric.add(image_id, found)
    # The best proposal of the first image is wrong, the second is the scratch; crowds do not count.
    assert metric.compute() == pytest.approx(
        {"coco/AR@1": 1 / 3, "coco/AR@2": 2 / 3, "coco/AR@10": 1}
    )


def test_proposal_fast_beside_other_metrics(dataset):
    metric = CocoMetric(metric=["bbox", "proposal_fast"], metric_items=["mAP_50", "AR@100"])
    metric.bind(dataset)
    for image_id, found in FOUND.items():
        metric.add(image_id, replace(found, class_names=dataset.classes))
    assert set(metric.compute()) == {"coco/bbox_mAP_50", "coco/AR@100", "coco/bbox_AR@100"}


@pytest.mark.parametrize("name", ["rpn.pkl", "rpn.npz"])
def test_dump_proposals(dataset, tmp_path, caplog, name):
    config = {
        "type": "DumpProposals",
        "output_dir": str(tmp_path / "proposals"),
        "proposals_file": name,
        "num_max_proposals": 2,
    }
    (metric,) = build_metrics(config, dataset)
    metric.add(5, FOUND[5])
    metric.merge({3: np.zeros((0, 5), np.float32), 5: np.zeros((0, 5), np.float32)})
    metric.merge(metric.collected())
    metric.add(3, FOUND[3])
    metric.add(9, FOUND[9])
    with caplog.at_level(logging.INFO):
        assert metric.compute() == {}
    assert "3 images with 1 proposals on average" in caplog.text
    table = read_proposals(tmp_path / "proposals" / name)
    rows = np.array([[0, 0, 9, 9, 0.9], [40, 5, 70, 35, 0.7]], np.float32)
    np.testing.assert_array_equal(table.find("img/5.png"), rows)
    np.testing.assert_allclose(table.find("img/3.png"), [[20, 10, 50, 30, 0.1]])
    assert table.find("img/9.png").shape == (0, 5)
    metric.reset()
    assert metric.collected() == {}


def test_mistakes(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"proposals_file must end in \.pkl"):
        DumpProposals(proposals_file="proposals.json")
    with pytest.raises(ConfigError, match="file_client_args"):
        DumpProposals(file_client_args={})
    metric = DumpProposals(output_dir=str(tmp_path))
    metric.bind(dataset)
    with pytest.raises(DatasetError, match="image 4 is not one of those"):
        metric.add(4, FOUND[9])
    twice = build_dataset({"type": "ConcatDataset", "datasets": [dataset, dataset]})
    with pytest.raises(DatasetError, match="6 images have only 3 different ones"):
        metric.bind(twice)
