from __future__ import annotations

import hashlib

import pytest
import torch

from deploykit.training.input_spec import input_spec_from_config
from deploykit.training.model_spec import spec_from_config
from deploykit.training.models import build_detector

RETINANET, RPN = "retinanet_r50_fpn_1x_coco", "rpn_r50_fpn_1x_coco"
R18 = {"depth": 18}
R101 = {"depth": 101}
X101_32 = {"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 4}
X101_64 = {"type": "ResNeXt", "depth": 101, "groups": 64, "base_width": 4}
C4 = {
    "num_stages": 3,
    "strides": (1, 2, 2),
    "dilations": (1, 1, 1),
    "out_indices": (2,),
    "style": "caffe",
    "norm_cfg": {"type": "BN", "requires_grad": False},
}
# sha256[:16] of the lines "key shape" of the state dict, sorted by key, that MMDetection 3.3.0
# builds; the number of keys, and the number of parameters.
LAYOUTS = [
    (RETINANET, R18, ("2db32cf1c186dc21", 156, 21_410_100)),
    (RETINANET, {}, ("31183db19335a243", 354, 37_968_692)),
    (RETINANET, {"style": "caffe"}, ("31183db19335a243", 354, 37_968_692)),
    (RETINANET, R101, ("76b02f0b0350cfb7", 660, 56_960_820)),
    (RETINANET, X101_32, ("88fff2c34950bc77", 660, 56_589_364)),
    (RETINANET, X101_64, ("0cdbb53e06c53d4d", 660, 95_866_932)),
    (RPN, C4, ("6b563a9b381c696a", 264, 18_058_379)),
    (RPN, {}, ("b54472d2819d07ab", 340, 27_446_351)),
    (RPN, R101, ("8270b340b96db959", 646, 46_438_479)),
    (RPN, X101_32, ("a3327cc4730c5f3e", 646, 46_067_023)),
    (RPN, X101_64, ("0702da53b4269e8e", 646, 85_344_591)),
]


def variant(config, backbone):
    """The model of a recipe with another backbone, and what has to change with it."""
    model = config["model"]
    model["backbone"] |= backbone
    if backbone == R18:
        model["neck"]["in_channels"] = [64, 128, 256, 512]
    if backbone == C4:
        model["neck"] = None
        model["rpn_head"] |= {"in_channels": 1024, "feat_channels": 1024}
        model["rpn_head"]["anchor_generator"] |= {"scales": [2, 4, 8, 16, 32], "strides": [16]}
    return model


@pytest.mark.parametrize(("name", "backbone", "expected"), LAYOUTS)
def test_state_dict_layout_is_that_of_mmdetection(recipe, name, backbone, expected):
    with torch.device("meta"):
        model = build_detector(variant(recipe(name), backbone))
    state = model.state_dict()
    lines = [f"{key} {tuple(state[key].shape)}" for key in sorted(state)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (digest, len(state), sum(p.numel() for p in model.parameters())) == expected


@pytest.mark.parametrize(("name", "rate"), [(RETINANET, 0.01), (RPN, 0.02)])
def test_published_schedule(recipe, name, rate):
    config = recipe(name)
    assert config["train_cfg"]["max_epochs"] == 12
    assert config["train_dataloader"]["batch_size"] == 2
    assert config["auto_scale_lr"] == {"enable": False, "base_batch_size": 16}
    assert config["optim_wrapper"]["optimizer"] == {
        "type": "SGD",
        "lr": rate,
        "momentum": 0.9,
        "weight_decay": 0.0001,
    }
    warmup, steps = config["param_scheduler"]
    assert (warmup["type"], warmup["start_factor"], warmup["end"]) == ("LinearLR", 0.001, 500)
    assert (steps["type"], steps["milestones"], steps["gamma"]) == ("MultiStepLR", [8, 11], 0.1)
    pipeline = config["train_dataloader"]["dataset"]["pipeline"]
    types = [step["type"] for step in pipeline]
    assert types == [
        "LoadImageFromFile",
        "LoadAnnotations",
        "Resize",
        "RandomFlip",
        "PackDetInputs",
    ]
    assert pipeline[2] == {"type": "Resize", "scale": (1333, 800), "keep_ratio": True}


def test_network_input_of_the_recipes(recipe):
    spec = input_spec_from_config(recipe(RETINANET))
    assert (spec.resize, spec.scale, spec.divisor) == ("keep_ratio", (1333, 800), 32)
    assert spec.image_sizes_input
    assert (spec.height.opt, spec.width.opt) == (800, 1344)
    assert build_detector(recipe(RETINANET)["model"]).size_divisor == 32


def test_proposals_are_described_as_objects_of_one_class(recipe):
    coco = tuple(f"class {i}" for i in range(80))
    spec = spec_from_config(recipe(RPN), coco)
    assert spec.classes == ("object",)
    assert spec.output.max_per_img == 1000
    assert spec_from_config(recipe(RETINANET), coco).classes == coco
