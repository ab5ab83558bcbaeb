from __future__ import annotations

import hashlib

import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.models import build_detector

# sha256[:16] of the sorted lines "key shape" of the state dict that MMDetection 3.3.0 builds from
# the config of that name, the number of keys, and the number of parameters.
RECIPES = {
    "fast-rcnn_r50_fpn_1x_coco": ("3f1d059bedcd3c27", 342, 41_159_121),
    "rpn_r50_fpn_1x_coco": ("b54472d2819d07ab", 340, 27_446_351),
    "faster-rcnn_r50_fpn_1x_coco": ("4ed1625f53e08317", 348, 41_753_056),
    "mask-rcnn_r50_fpn_1x_coco": ("93d7a1e804511c1b", 360, 44_396_336),
    "cascade-rcnn_r50_fpn_1x_coco": ("8f1320803cec4a98", 364, 69_394_766),
    "cascade-mask-rcnn_r50_fpn_1x_coco": ("5aa47fd9c3d46e1e", 400, 77_324_606),
}


def layout(model_config) -> tuple[str, int, int]:
    with torch.device("meta"):
        model = build_detector(model_config)
    state = model.state_dict()
    lines = [f"{key} {tuple(value.shape)}" for key, value in sorted(state.items())]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return digest, len(state), sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(recipe, name):
    assert layout(recipe(name)["model"]) == RECIPES[name]


def test_resnext_backbone(recipe):
    model = recipe("cascade-mask-rcnn_r50_fpn_1x_coco")["model"]
    model["backbone"] |= {"type": "ResNeXt", "depth": 101, "groups": 64, "base_width": 4}
    assert layout(model) == ("1f2a1c265af72abf", 706, 135_222_846)


def test_group_norm_in_all_parts(recipe):
    model = recipe("mask-rcnn_r50_fpn_1x_coco")["model"]
    norm = {"norm_cfg": {"type": "GN", "num_groups": 32}}
    head = model["roi_head"]
    head["bbox_head"] |= {"type": "Shared4Conv1FCBBoxHead", "conv_out_channels": 256}
    for part in (model["backbone"], model["neck"], head["bbox_head"], head["mask_head"]):
        part |= norm
    assert layout(model) == ("17c5b83d898d7874", 223, 45_711_152)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("roi_head.bbox_roi_extractor.roi_layer.type", "RoIPool"),
        ("roi_head.bbox_roi_extractor.roi_layer.pool_mode", "max"),
        ("roi_head.bbox_roi_extractor.featmap_strides", []),
        ("roi_head.bbox_head.with_reg", False),
        ("roi_head.bbox_head.predict_box_type", "rbox"),
        ("roi_head.bbox_head.cls_predictor_cfg", {"type": "NormedLinear"}),
        ("roi_head.bbox_head.loss_cls.use_sigmoid", True),
        ("roi_head.bbox_head.num_cls_convs", 1),
        ("roi_head.mask_head.predictor_cfg", {"type": "NormedConv2d"}),
        ("roi_head.mask_head.upsample_cfg", {"type": "carafe", "scale_factor": 2}),
        ("roi_head.shared_head", {"type": "ResLayer"}),
        ("roi_head", None),
        ("test_cfg.rcnn.mask_thr_binary", 0.4),
        ("test_cfg.rcnn.nms.type", "soft_nms"),
        ("train_cfg.rcnn.sampler", None),
        ("train_cfg.rcnn", {"sampler": {"type": "PseudoSampler"}}),
    ],
)
def test_what_is_not_supported_is_refused(small_two_stage, path, value):
    with pytest.raises(ConfigError):
        small_two_stage("mask-rcnn", {path: value})


def test_cascades_need_one_part_per_stage(small_two_stage):
    with pytest.raises(ConfigError, match="stage_loss_weights must have one entry for each"):
        small_two_stage("cascade-rcnn", {"roi_head.stage_loss_weights": [1, 0.5]})
