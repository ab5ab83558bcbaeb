"""Small versions of the detectors of the recipes, as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detector_checkpoints import load_recipe, write_detector_checkpoint, write_photographs

from deploykit.training.config import Config

SIDE = 160  # of the network input, in pixels
# Names of detectors whose recipe is called otherwise than NAME_r50_fpn_1x_coco.
RECIPES = {"fcos": "fcos_r50-caffe_fpn_gn-head_1x_coco"}
# Names of detectors without a recipe: what they have instead of RetinaNet's head.
HEADS: dict[str, dict[str, Any]] = {
    "fovea": {
        "type": "FoveaHead",
        "base_edge_list": [1, 2, 4, 8, 16],  # for the distances of calibrated detectors
        "strides": [8, 16, 32, 64, 128],
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11},
    },
    "fsaf": {
        "type": "FSAFHead",
        "reg_decoded_bbox": True,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [1],
            "ratios": [1.0],
            "strides": [8, 16, 32, 64, 128],
        },
        "bbox_coder": {"type": "TBLRBBoxCoder", "normalizer": 16.0},
        "loss_bbox": {"type": "IoULoss"},
    },
}
WITH_GROUP_NORM = ("fcos", "atss", "gfl")


def small_recipe(name: str) -> Config:
    """Return a recipe by the name of its detector, with ResNet-18 and few channels."""
    recipe = "retinanet" if name in HEADS else name
    config = load_recipe(RECIPES.get(name, f"{recipe}_r50_fpn_1x_coco"), SIDE)
    model = config["model"]
    if name in HEADS:
        model["type"] = "SingleStageDetector"
        model["bbox_head"] = dict(HEADS[name])
    model["backbone"] |= {"depth": 18, "base_channels": 8}
    model["neck"] |= {"in_channels": [8, 16, 32, 64], "out_channels": 16}
    if "rpn_head" in model:
        model["rpn_head"] |= {"in_channels": 16, "feat_channels": 16}
        model["test_cfg"]["rpn"] |= {"nms_pre": 200, "max_per_img": 60}
    elif "bbox_head" in model:
        model["bbox_head"] |= {"in_channels": 16, "feat_channels": 16, "num_classes": 3}
        model["test_cfg"] |= {"nms_pre": 200, "max_per_img": 30}
        if name in WITH_GROUP_NORM:
            model["bbox_head"]["norm_cfg"] = {"type": "GN", "num_groups": 4}
    if "roi_head" in model:
        head = model["roi_head"]
        heads = head["bbox_head"] if isinstance(head["bbox_head"], list) else [head["bbox_head"]]
        for stage in heads:
            stage |= {"in_channels": 16, "fc_out_channels": 32, "num_classes": 3}
        for extractor in ("bbox_roi_extractor", "mask_roi_extractor"):
            if extractor in head:
                head[extractor] |= {"out_channels": 16, "finest_scale": 14}
        if "mask_head" in head:
            head["mask_head"] |= {"in_channels": 16, "conv_out_channels": 16, "num_classes": 3}
        model["test_cfg"]["rcnn"] |= {"max_per_img": 20}
        for step in config["test_dataloader"]["dataset"]["pipeline"]:
            if step["type"] == "LoadProposals":
                step["num_max_proposals"] = 60
    return config


@pytest.fixture(scope="session")
def detector_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the checkpoint of a small detector by name, for 160x160 images. Do not change it."""
    written: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in written:
            path = tmp_path_factory.mktemp(name) / "model.pth"
            written[name] = write_detector_checkpoint(path, small_recipe(name), SIDE)
        return written[name]

    return checkpoint


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 crops of photographs, as files."""
    return sorted(write_photographs(tmp_path_factory.mktemp("photographs")).iterdir())
