"""A training step on everything that COCO files hold, for every kind of detector.

Polygons of one and of several parts, run lengths, crowds, ignored objects, images with nothing but
a crowd and images without any annotation: alone and in one batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from deploykit.training.config import load_config
from deploykit.training.data import build_dataset
from deploykit.training.data.collate import collate
from deploykit.training.models import BaseDetector, build_detector
from deploykit.training.recipes import find_config
from deploykit.training.structures import Batch

NAMES = (
    "rpn", "retinanet", "fast-rcnn", "faster-rcnn", "mask-rcnn", "cascade-rcnn",
    "cascade-mask-rcnn",
)  # fmt: skip
SIZES = [(96, 128), (128, 96), (100, 90), (64, 64), (96, 96)]  # (height, width)
SQUARE = [10.0, 12, 50, 12, 50, 60, 10, 60]
PARTS = [[60.0, 20, 90, 20, 90, 40, 60, 40], [70.0, 50, 110, 50, 90, 80]]
TRIANGLE = [20.0, 60, 70, 60, 45, 100]
POLYGONS, CROWD, NOTHING, ONLY_CROWD, RUN_LENGTHS = range(5)


def annotation(image: int, segmentation: Any, label: int = 0, **changes: Any) -> dict[str, Any]:
    """Return an annotation whose box is that of its polygons or run lengths."""
    height, width = SIZES[image]
    if isinstance(segmentation, list):
        codes = rle.merge(rle.frPyObjects(segmentation, height, width))
    else:
        codes = rle.frPyObjects(segmentation, height, width)
    box = {"bbox": rle.toBbox(codes).tolist(), "area": float(rle.area(codes)), "iscrowd": 0}
    return {
        "image_id": image + 1,
        "category_id": label + 1,
        "segmentation": segmentation,
        **box,
        **changes,
    }


def run_lengths(image: int, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    """Return a rectangle as COCO's uncompressed run lengths, which go column by column."""
    height, width = SIZES[image]
    inside = bottom - top
    counts = [left * height + top, inside]
    counts += [height - inside, inside] * (right - left - 1)
    return {"size": [height, width], "counts": [*counts, height * width - sum(counts)]}


ANNOTATIONS = [
    annotation(POLYGONS, [SQUARE]),
    annotation(POLYGONS, PARTS, 2),
    annotation(CROWD, [TRIANGLE], 1),
    annotation(CROWD, run_lengths(CROWD, 5, 5, 90, 50), iscrowd=1),
    annotation(CROWD, [SQUARE], 2, ignore=1),
    annotation(ONLY_CROWD, run_lengths(ONLY_CROWD, 0, 0, 60, 60), 1, iscrowd=1),
    annotation(RUN_LENGTHS, run_lengths(RUN_LENGTHS, 30, 30, 80, 90), 2),
    annotation(RUN_LENGTHS, [[40.0, 10, 60, 10, 60, 30, 40, 30]], 1),
]


def load_batch(folder: Path, annotations: list[dict[str, Any]]) -> Batch:
    """Write a data set, read it through the pipeline and return all of it as a batch."""
    rng = np.random.default_rng(0)
    images = []
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3), np.uint8))
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
    content = {
        "images": images,
        "annotations": [{**each, "id": index + 1} for index, each in enumerate(annotations)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate("abc")],
    }
    (folder / "all.json").write_text(json.dumps(content))
    load = [{"type": "LoadImageFromFile"}]
    load += [{"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
    dataset = build_dataset(
        {
            "type": "CocoDataset",
            "ann_file": "all.json",
            "data_root": str(folder),
            "on_error": "raise",
            "pipeline": [*load, {"type": "PackDetInputs"}],
        }
    )
    assert len(dataset) == len(SIZES)
    batch = collate([dataset.fetch(index, rng) for index in range(len(SIZES))])
    corners = torch.from_numpy(rng.uniform(0, 60, (len(SIZES), 20, 2)).astype(np.float32))
    sides = torch.from_numpy(rng.uniform(5, 40, (len(SIZES), 20, 2)).astype(np.float32))
    batch.proposals = torch.cat((corners, corners + sides), dim=2)
    return batch


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return load_batch(tmp_path_factory.mktemp("all"), ANNOTATIONS)


def part(batch: Batch, rows: list[int]) -> Batch:
    assert batch.proposals is not None
    return Batch(
        batch.images[rows],
        batch.image_sizes[rows],
        [batch.targets[row] for row in rows],
        [batch.metas[row] for row in rows],
        batch.proposals[rows],
    )


def small_detector(name: str, ignore_iof_thr: float = -1) -> BaseDetector:
    """Return the detector of a recipe with a hundred thousand weights, in training."""
    model = load_config(find_config(f"{name}_r50_fpn_1x_coco"))["model"]
    model["backbone"] |= {"depth": 18, "base_channels": 4, "init_cfg": None, "frozen_stages": -1}
    model["backbone"] |= {"norm_cfg": {"type": "GN", "num_groups": 2}}
    model["neck"] |= {"in_channels": [4, 8, 16, 32], "out_channels": 8}
    for key in ("rpn_head", "bbox_head"):
        if key in model:
            model[key] |= {"in_channels": 8, "feat_channels": 8}
    if "bbox_head" in model:
        model["bbox_head"]["num_classes"] = 3
    heads = model.get("roi_head", {})
    stages = heads.get("bbox_head", [])
    for stage in stages if isinstance(stages, list) else [stages]:
        stage |= {"in_channels": 8, "fc_out_channels": 16, "num_classes": 3}
    for key in ("bbox_roi_extractor", "mask_roi_extractor"):
        if key in heads:
            heads[key] |= {"out_channels": 8, "finest_scale": 14}
    if "mask_head" in heads:
        heads["mask_head"] |= {"in_channels": 8, "conv_out_channels": 8, "num_classes": 3}
    for config in assigners(model["train_cfg"]):
        config["ignore_iof_thr"] = ignore_iof_thr
    torch.manual_seed(0)
    detector = build_detector(model)
    detector.init_weights()
    return detector.train()


def assigners(config: Any) -> list[dict[str, Any]]:
    """Return the configs of all assigners within a train_cfg."""
    if isinstance(config, list):
        return [each for part in config for each in assigners(part)]
    if not isinstance(config, dict):
        return []
    own = [config["assigner"]] if "assigner" in config else []
    return own + [each for part in config.values() for each in assigners(part)]


def train_step(model: BaseDetector, batch: Batch) -> dict[str, torch.Tensor]:
    """Compute losses and gradients, which must be finite and reach every weight."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    assert all(value.isfinite() for value in losses.values())
    sum(value for name, value in losses.items() if "loss" in name).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return losses


def test_annotations_arrive_as_they_are_meant(batch: Batch) -> None:
    assert [len(target.labels) for target in batch.targets] == [2, 1, 0, 0, 2]
    assert [len(target.ignored_boxes) for target in batch.targets] == [0, 1, 0, 1, 0]
    for target in batch.targets:
        assert target.masks is not None
        for box, mask in zip(target.boxes, target.masks, strict=True):
            rows, columns = (mask.any(dim=dim).nonzero().flatten() for dim in (1, 0))
            edges = torch.stack((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            assert (edges - box).abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignore_iof_thr", [-1, 0.5])
def test_every_mix_of_images_trains(batch: Batch, name: str, ignore_iof_thr: float) -> None:
    model = small_detector(name, ignore_iof_thr)
    for rows in (range(5), [NOTHING], [ONLY_CROWD], [CROWD], [NOTHING, ONLY_CROWD]):
        losses = train_step(model, part(batch, list(rows)))
        has_objects = not set(rows) <= {NOTHING, ONLY_CROWD}
        for key, value in losses.items():
            if "bbox" in key or "mask" in key:  # nothing to fit without a positive
                assert (value > 0) == has_objects, key
            elif "loss" in key:
                assert value > 0, key


def test_negatives_in_a_crowd_do_not_count(batch: Batch) -> None:
    models = [small_detector("retinanet", threshold) for threshold in (-1, 0.5)]
    for model in models:  # at first every anchor is sure to be background, and hardly counts
        torch.nn.init.zeros_(model.bbox_head.retina_cls.bias)
    whole, without = (train_step(model, part(batch, [CROWD])) for model in models)
    assert without["loss_cls"] < 0.9 * whole["loss_cls"]
    assert without["loss_bbox"] == whole["loss_bbox"]
    # Where there is no object, MMDetection ignores no region.
    whole, without = (train_step(model, part(batch, [ONLY_CROWD])) for model in models)
    assert without["loss_cls"] == whole["loss_cls"]


@pytest.mark.parametrize("compressed", [False, True])
def test_polygons_train_as_their_run_lengths(
    batch: Batch, tmp_path: Path, compressed: bool
) -> None:
    annotations = []
    for each in ANNOTATIONS:
        height, width = SIZES[each["image_id"] - 1]
        codes = each["segmentation"]
        if isinstance(codes, list):
            codes = rle.merge(rle.frPyObjects(codes, height, width))
            if compressed:
                codes = {**codes, "counts": codes["counts"].decode()}
            else:
                flat = rle.decode(codes).ravel(order="F")
                edges = np.flatnonzero(np.diff(np.concatenate(([0], flat))))
                codes = {
                    "size": [height, width],
                    "counts": np.diff([0, *edges, flat.size]).tolist(),
                }
        annotations.append({**each, "segmentation": codes})
    model = small_detector("mask-rcnn")
    expected = train_step(model, batch)
    assert train_step(model, load_batch(tmp_path, annotations)) == expected
