"""Detectors learn a few images by heart: from config to checkpoint to COCO metrics, and to ONNX.

The recipes are those of the demo with fewer channels; the images hold shapes that do not overlap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deploykit.cli import main
from deploykit.demo.coco_writer import CocoWriter
from deploykit.training.config import load_config
from deploykit.training.recipes import find_config

CLASSES = ("rectangle", "ellipse", "triangle")
COLOURS = ((60, 60, 220), (60, 200, 60), (220, 120, 40))
CASCADE = "cascade-mask-rcnn_r50_fpn_1x_coco"
SIZE = 128  # pixels, of each image
CELL = 64  # each cell of an image holds one object
IMAGES = 4

COMMON = """
_base_ = {base!r}
classes = {classes!r}
data = dict(
    data_root={root!r},
    metainfo=dict(classes=classes),
    ann_file="annotations.json",
    data_prefix=dict(img="images/"),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=({size}, {size}), keep_ratio=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask={masks}),
    dict(type="Resize", scale=({size}, {size}), keep_ratio=True),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    batch_size={images},
    num_workers=0,
    persistent_workers=False,
    dataset=dict(times={times}, dataset=dict(pipeline=train_pipeline, **data)),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={root!r} + "annotations.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type="CosineAnnealingLR",
        eta_min=0,
        begin=1,
        end=2,
        T_max=1,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr={rate}, weight_decay=0.0))
model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
)
"""
TWO_STAGE = """
model |= dict(
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[8])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=128, num_classes=3),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=20)),
)
"""
MASKS = """
model["roi_head"] |= dict(
    mask_roi_extractor=dict(out_channels=32),
    mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=3),
)
"""
RETINANET = """
model |= dict(
    bbox_head=dict(
        in_channels=32, feat_channels=32, num_classes=3, anchor_generator=dict(octave_base_scale=8)
    ),
    test_cfg=dict(max_per_img=20),
)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shape_of(label: int, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Return the corners of an object, int [N, 2]."""
    right, bottom = left + width - 1, top + height - 1
    if label == 0:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if label == 1:
        centre, axes = (left + width // 2, top + height // 2), (width // 2 - 1, height // 2 - 1)
        return cv2.ellipse2Poly(centre, axes, 0, 0, 360, 10)
    return np.array([(left, bottom), (right, bottom), (left + width // 2, top)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, and COCO annotations with polygons, RLE and a crowd."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    writer = CocoWriter(CLASSES)
    for number in range(IMAGES):
        image = rng.integers(90, 130, (SIZE, SIZE, 3)).astype(np.uint8)
        writer.add_image(f"{number}.png", SIZE, SIZE)
        for cell, label in enumerate(rng.permutation(4)):
            if label == 3:
                continue  # one cell is empty
            width, height = (int(side) for side in rng.integers(32, CELL - 7, 2))
            left = CELL * (cell % 2) + int(rng.integers(2, CELL - width - 1))
            top = CELL * (cell // 2) + int(rng.integers(2, CELL - height - 1))
            corners = shape_of(int(label), left, top, width, height)
            cv2.fillPoly(image, [corners.astype(np.int32)], COLOURS[label])
            mask = np.zeros((SIZE, SIZE), np.uint8)
            cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
            writer.add_mask(number + 1, mask.astype(bool), int(label))
            if label != 1:  # a polygon passes through the outer edges of its pixels
                writer.annotations[-1]["segmentation"] = polygon_of(mask)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    writer.write(folder / "annotations.json")
    return folder


def polygon_of(mask: np.ndarray) -> list[list[float]]:
    """Return the outline of a mask that is convex, at the outer edges of its pixels."""
    y, x = np.nonzero(mask)
    corners = np.concatenate([np.stack((x + i, y + j), axis=1) for i in (0, 1) for j in (0, 1)])
    return [cv2.convexHull(corners.astype(np.int32)).reshape(-1).astype(float).tolist()]


def narrow(recipe: str, changes: str, data: Path, folder: Path, **options: Any) -> Path:
    """Write the config of a recipe with fewer channels for the data, and return its path.

    ``times`` is the number of iterations of each of two epochs, ``rate`` the learning rate.
    """
    text = COMMON.format(
        base=str(find_config(recipe)),
        classes=CLASSES,
        root=f"{data}/",
        size=SIZE,
        images=IMAGES,
        masks="mask" in recipe,
        **{"times": 120, "rate": 0.002} | options,
    )
    config = folder / "config.py"
    config.write_text(text + changes)
    return config


def train(config: Path) -> Path:
    """Train and return the work directory."""
    work_dir = config.parent / "run"
    assert main(["train", str(config), "--work-dir", str(work_dir), "--device", "cpu"]) == 0
    return work_dir


def measure(*model: Path) -> dict[str, float]:
    """Return what ``deploykit test`` measures."""
    out = model[-1].with_suffix(".json")
    assert main(["test", *map(str, model), "--device", "cpu", "--json", str(out)]) == 0
    metrics: dict[str, float] = json.loads(out.read_text())["metrics"]
    return metrics


def rows_of(work_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of a kind that a run logged."""
    (log,) = work_dir.glob("*/scalars.jsonl")
    return [row for row in map(json.loads, log.open()) if row["kind"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("faster-rcnn_demo", TWO_STAGE), ("retinanet_demo", RETINANET)],
)
def test_boxes_of_a_few_images_are_learned(
    data: Path, tmp_path: Path, recipe: str, changes: str
) -> None:
    metrics = measure(train(narrow(recipe, changes, data, tmp_path)) / "last.pth")
    assert metrics["coco/bbox_mAP"] > 0.9


@pytest.fixture(scope="module")
def mask_rcnn(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work directory of a Mask R-CNN that was trained."""
    folder = tmp_path_factory.mktemp("mask_rcnn")
    return train(narrow("mask-rcnn_demo", TWO_STAGE + MASKS, data, folder))


@pytest.mark.slow
def test_masks_of_a_few_images_are_learned(mask_rcnn: Path) -> None:
    metrics = measure(mask_rcnn / "last.pth")
    assert metrics["coco/bbox_mAP"] > 0.9
    assert metrics["coco/segm_mAP"] > 0.9
    validated = rows_of(mask_rcnn, "val")[-1]
    assert metrics == pytest.approx({name: validated[name] for name in metrics}, abs=1e-6)


@pytest.mark.slow
def test_the_exported_model_finds_the_same_boxes_and_masks(mask_rcnn: Path) -> None:
    onnx = mask_rcnn / "model.onnx"
    checkpoint = mask_rcnn / "last.pth"
    assert main(["convert", str(checkpoint), "--to", "onnx", "--out", str(onnx)]) == 0
    metrics = measure(mask_rcnn / "config.py", onnx)
    assert metrics == pytest.approx(measure(checkpoint), abs=1e-3)
    assert metrics["coco/segm_mAP"] > 0.9


@pytest.mark.slow
def test_a_cascade_learns(data: Path, tmp_path: Path) -> None:
    path = narrow("mask-rcnn_demo", TWO_STAGE + MASKS, data, tmp_path, times=40)
    config, recipe = load_config(path), load_config(find_config(CASCADE))
    head, stages = config["model"]["roi_head"], recipe["model"]["roi_head"]
    for stage in stages["bbox_head"]:
        stage |= {"in_channels": 32, "fc_out_channels": 128, "num_classes": 3}
    for key in ("type", "num_stages", "stage_loss_weights", "bbox_head"):
        head[key] = stages[key]
    config["model"]["type"] = recipe["model"]["type"]
    for key in ("train_cfg", "test_cfg"):
        config["model"][key]["rcnn"] = recipe["model"][key]["rcnn"]
    for stage in config["model"]["train_cfg"]["rcnn"]:
        stage["sampler"]["num"] = 32
    path.write_text(config.dumps())
    work_dir = train(path)
    losses = [row["loss"] for row in rows_of(work_dir, "train")]
    assert losses[-1] < 0.5 * losses[0]
    metrics = measure(work_dir / "last.pth")
    assert metrics["coco/bbox_mAP_50"] > 0.5
    assert metrics["coco/segm_mAP_50"] > 0.5
