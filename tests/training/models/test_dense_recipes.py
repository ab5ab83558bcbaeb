"""Recipes of dense detectors, and their variants, against MMDetection's layouts."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from deploykit.training.models import build_detector
from deploykit.training.models.heads.anchor_free_head import FOCAL_LOSS

ATSS = "atss_r50_fpn_1x_coco"
GFL = "gfl_r50_fpn_1x_coco"
FCOS = "fcos_r50-caffe_fpn_gn-head_1x_coco"
R18 = {"backbone": {"depth": 18}, "neck": {"in_channels": [64, 128, 256, 512]}}
R101 = {"backbone": {"depth": 101}}
X101_32 = {"backbone": {"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 4}}
X101_64 = {"backbone": {"type": "ResNeXt", "depth": 101, "groups": 64, "base_width": 4}}
FCOS_CENTER = {
    "norm_on_bbox": True,
    "centerness_on_reg": True,
    "center_sampling": True,
    "conv_bias": True,
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
}
RETINANET = "retinanet_r50_fpn_1x_coco"
FREE_ANCHOR = {"bbox_head": {"type": "FreeAnchorRetinaHead", "loss_cls": FOCAL_LOSS}}
FOVEA = {
    "bbox_head": {
        "_delete_": True,
        "type": "FoveaHead",
        "num_classes": 80,
        "in_channels": 256,
        "strides": [8, 16, 32, 64, 128],
        "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11},
    }
}
FSAF = {
    "bbox_head": {
        "type": "FSAFHead",
        "reg_decoded_bbox": True,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [1],
            "ratios": [1.0],
            "strides": [8, 16, 32, 64, 128],
        },
        "bbox_coder": {"type": "TBLRBBoxCoder", "normalizer": 4.0},
        "loss_bbox": {"type": "IoULoss", "eps": 1e-6, "reduction": "none"},
    }
}
GHM = {
    "bbox_head": {
        "loss_cls": {"type": "GHMC", "bins": 30, "momentum": 0.75, "use_sigmoid": True},
        "loss_bbox": {"type": "GHMR", "mu": 0.02, "bins": 10, "momentum": 0.7},
    }
}
# sha256[:16] of the lines "key shape" of the state dict, sorted by key, that MMDetection 3.3.0
# builds; the number of keys, and the number of parameters.
LAYOUTS: list[tuple[str, dict[str, Any], tuple[str, int, int]]] = [
    (FCOS, {}, ("cd1fcf41131eda19", 369, 32_295_322)),
    (FCOS, R101, ("ba09daeee4606e3f", 675, 51_287_450)),
    (FCOS, X101_64, ("2c2d49275d680da5", 675, 90_193_562)),
    (FCOS, {"bbox_head": FCOS_CENTER}, ("beb76b37f07ca539", 377, 32_297_370)),
    (FCOS, {**R18, "bbox_head": FCOS_CENTER}, ("5988680447153746", 179, 19_277_722)),
    (FCOS, {**R101, "bbox_head": FCOS_CENTER}, ("59573cc2c64c6f44", 683, 51_289_498)),
    (ATSS, {}, ("0e8dedcdb8d06f16", 369, 32_295_322)),
    (ATSS, R18, ("a9b2f2468603868e", 171, 19_275_674)),
    (ATSS, R101, ("600baf1bc2e83d03", 675, 51_287_450)),
    (GFL, {}, ("3ab06099448b6fb4", 368, 32_440_537)),
    (GFL, R101, ("0700e6b3762683a3", 674, 51_432_665)),
    (GFL, X101_32, ("cb644338011d47f2", 674, 51_061_209)),
    (RETINANET, FOVEA, ("527aadbf2eeb2458", 354, 36_419_732)),
    (RETINANET, R101 | FOVEA, ("c94d396dcae46b3d", 660, 55_411_860)),
    (RETINANET, FSAF, ("d2fbf8e0110f4afa", 354, 36_419_732)),
    (RETINANET, R101 | FSAF, ("96ebe7866d39d0ad", 660, 55_411_860)),
    (RETINANET, X101_64 | FSAF, ("2d97979cb2af2075", 660, 94_317_972)),
    (RETINANET, GHM, ("05f1ccf3415a10a6", 358, 37_968_692)),
    (RETINANET, R101 | GHM, ("5100300658cbe360", 664, 56_960_820)),
    (RETINANET, X101_32 | GHM, ("581ad5fa9c5e1d55", 664, 56_589_364)),
    (RETINANET, X101_64 | GHM, ("6a0f3c0c642c44c4", 664, 95_866_932)),
    (RETINANET, FREE_ANCHOR, ("31183db19335a243", 354, 37_968_692)),
    (RETINANET, X101_32 | FREE_ANCHOR, ("88fff2c34950bc77", 660, 56_589_364)),
]


def layout(model: torch.nn.Module) -> tuple[str, int, int]:
    state = model.state_dict()
    lines = [f"{key} {tuple(state[key].shape)}" for key in sorted(state)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digest, len(state), sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "changes", "expected"), LAYOUTS)
def test_state_dict_layout_is_that_of_mmdetection(recipe, name, changes, expected):
    config = recipe(name)["model"]
    for part, change in changes.items():
        replaced = change.get("_delete_", False)
        new = {key: value for key, value in change.items() if key != "_delete_"}
        config[part] = new if replaced else config[part] | new
    with torch.device("meta"):
        assert layout(build_detector(config)) == expected


def test_published_schedule_of_fcos(recipe):
    config = recipe(FCOS)
    assert config["optim_wrapper"]["optimizer"]["lr"] == 0.01
    assert config["optim_wrapper"]["paramwise_cfg"] == {
        "bias_lr_mult": 2.0,
        "bias_decay_mult": 0.0,
    }
    assert config["optim_wrapper"]["clip_grad"] == {"max_norm": 35, "norm_type": 2}
    warmup, steps = config["param_scheduler"]
    assert (warmup["type"], warmup["factor"], warmup["end"]) == ("ConstantLR", 1 / 3, 500)
    assert (steps["type"], steps["milestones"], steps["gamma"]) == ("MultiStepLR", [8, 11], 0.1)


@pytest.mark.parametrize("name", [ATSS, GFL])
def test_published_schedule_of_recipes_with_adaptive_assignment(recipe, name):
    config = recipe(name)
    assert config["optim_wrapper"]["optimizer"]["lr"] == 0.01
    assert config["train_cfg"]["max_epochs"] == 12
    assert config["model"]["train_cfg"]["assigner"] == {"type": "ATSSAssigner", "topk": 9}
    assert config["model"]["test_cfg"]["nms"] == {"type": "nms", "iou_threshold": 0.6}
