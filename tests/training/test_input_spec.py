"""Test pipelines as input specs."""

from __future__ import annotations

from typing import Any

import pytest

from deploykit.errors import ConfigError
from deploykit.spec import DimRange
from deploykit.training.input_spec import input_spec_from_config

LOAD = {"type": "LoadImageFromFile"}
PACK = {"type": "PackDetInputs"}


def config(*transforms: dict[str, Any], divisor: int = 32, **model: Any) -> dict[str, Any]:
    preprocessor = {"type": "DetDataPreprocessor", "pad_size_divisor": divisor}
    pipeline = [LOAD, *transforms, {"type": "LoadAnnotations"}, PACK]
    return {
        "model": {"type": "RetinaNet", "data_preprocessor": preprocessor} | model,
        "test_dataloader": {"dataset": {"pipeline": pipeline}},
    }


def resize(scale: Any = (640, 480), **options: Any) -> dict[str, Any]:
    return {"type": "Resize", "scale": scale, "keep_ratio": True} | options


def test_rtmdet():
    head = {"anchor_generator": {"type": "MlvlPointGenerator", "strides": [8, 16, 32]}}
    pad = {"type": "Pad", "size": (640, 480), "pad_val": {"img": (10, 20, 30)}}
    spec = input_spec_from_config(config(resize(), pad, divisor=1, bbox_head=head))
    assert spec.resize == "keep_ratio" and spec.scale == (640, 480)
    assert spec.pad_size == (480, 640)  # (height, width), while configs say (width, height)
    assert spec.pad_value == (30, 20, 10)  # RGB, while configs count in BGR
    assert spec.divisor == 32
    assert spec.batch == DimRange(1, 1, 64)
    assert (spec.height, spec.width) == (DimRange(32, 480, 4096), DimRange(32, 640, 4096))
    assert not spec.image_sizes_input


def test_padding_after_normalisation_needs_the_image_sizes():
    spec = input_spec_from_config(config(resize((1333, 800))))
    assert spec.pad_size is None and spec.image_sizes_input
    assert (spec.height.opt, spec.width.opt) == (800, 1344)
    assert spec.scale == (1333, 800)
    assert spec.pad_value == (0, 0, 0)


def test_padding_to_a_multiple_in_the_pipeline():
    pad = {"type": "Pad", "size_divisor": 48, "pad_val": 114}
    spec = input_spec_from_config(config(resize((1120, 640)), pad))
    assert spec.pad_size is None and not spec.image_sizes_input
    assert spec.divisor == 96  # of the pipeline's 48 and the preprocessor's 32
    assert (spec.height.opt, spec.width.opt) == (672, 1152)
    assert spec.pad_value == (114, 114, 114)


def test_padding_to_a_square():
    pad = {"type": "Pad", "pad_to_square": True, "pad_val": {"img": (114.0, 114.0, 114.0)}}
    spec = input_spec_from_config(config(resize((640, 640)), pad))
    assert spec.pad_size == (640, 640) and spec.pad_value == (114, 114, 114)


def test_stretching():
    spec = input_spec_from_config(config(resize((320, 256), keep_ratio=False)))
    assert spec.resize == "stretch" and spec.scale == (320, 256)
    assert not spec.image_sizes_input  # nothing is padded
    spec = input_spec_from_config(config(resize((300, 300), keep_ratio=False)))
    assert spec.image_sizes_input and (spec.height.opt, spec.width.opt) == (320, 320)
    del (stretched := resize(512))["keep_ratio"]  # MMDetection's default
    assert input_spec_from_config(config(stretched)).scale == (512, 512)


def test_interpolation():
    spec = input_spec_from_config(config(resize(interpolation="area")))
    assert spec.interpolation == "area"


@pytest.mark.parametrize(
    ("strides", "divisor"), [([8, 16, 32], 32), ([(8, 8), (64, 64)], 64), (None, 32)]
)
def test_divisor_of_a_model_that_pads_nothing(strides: Any, divisor: int):
    head = {} if strides is None else {"prior_generator": {"strides": strides}}
    assert input_spec_from_config(config(resize(), divisor=1, bbox_head=head)).divisor == divisor


def test_pipeline_is_found_through_wrappers_and_under_other_names():
    pipeline = [LOAD, resize((64, 64)), PACK]
    dataset = {"type": "CocoDataset", "pipeline": pipeline}
    model = {"model": {"type": "RetinaNet"}}
    concatenated = {"type": "ConcatDataset", "datasets": [dataset, {"pipeline": []}]}
    for rest in (
        {"test_dataloader": {"dataset": {"type": "RepeatDataset", "dataset": dataset}}},
        {"val_dataloader": {"dataset": concatenated}, "test_dataloader": None},
        {"test_pipeline": pipeline},
    ):
        assert input_spec_from_config(model | rest).scale == (64, 64)


PAD = {"type": "Pad", "size": (640, 480)}


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([], "no Resize"),
        ([resize(), {"type": "RandomFlip", "prob": 0.5}], "RandomFlip cannot be reproduced"),
        ([PAD, resize()], "Resize cannot be reproduced"),
        ([resize(), resize()], "Resize cannot be reproduced"),
        ([resize(None, scale_factor=2.0)], "scale of \\(width, height\\), got None"),
        ([resize((640, 0))], "got \\(640, 0\\)"),
        ([resize(backend="pillow")], "backend 'pillow'"),
        ([resize(interpolation="magic")], "interpolation 'magic'"),
        ([resize(), PAD | {"size": (640, 470)}], "pads to 640x470|only \\(640, 470\\)"),
        ([resize(), PAD | {"size": (650, 480)}], "divisor 32 does not divide"),
        ([resize((700, 480)), PAD], "pads to only \\(640, 480\\)"),
        ([resize(), {"type": "Pad", "pad_to_square": True}], "needs a square Resize scale"),
        ([resize(), PAD | {"padding_mode": "reflect"}], "padding_mode 'reflect'"),
        ([resize(), PAD | {"pad_val": (0, 300, 0)}], "numbers in 0..255"),
    ],
)
def test_what_a_spec_cannot_express_is_refused(transforms: list[dict[str, Any]], message: str):
    with pytest.raises(ConfigError, match=message):
        input_spec_from_config(config(*transforms))


def test_missing_parts_are_named():
    with pytest.raises(ConfigError, match="no test pipeline"):
        input_spec_from_config({"model": {"type": "RTMDet"}})
    with pytest.raises(ConfigError, match="no model"):
        input_spec_from_config({"test_pipeline": [resize()]})


def fast_rcnn(limit: int | None = None, wrapped: bool = True) -> dict[str, Any]:
    moved = [resize((1333, 800))]
    moved = [{"type": "ProposalBroadcaster", "transforms": moved}] if wrapped else moved
    load = {"type": "mmdet.LoadProposals", "num_max_proposals": limit}
    return config(load, *moved, roi_head={"type": "StandardRoIHead"})


def test_models_without_a_stage_of_their_own_to_propose_take_proposals():
    spec = input_spec_from_config(fast_rcnn(300))
    assert spec.proposals == 300 and spec.scale == (1333, 800)
    assert spec.names == ("images", "image_sizes", "proposals")
    assert input_spec_from_config(fast_rcnn(300, wrapped=False)) == spec
    assert input_spec_from_config(fast_rcnn()).proposals == 1000
    for limit in (0, "many"):
        with pytest.raises(ConfigError, match="num_max_proposals must be a positive integer"):
            input_spec_from_config(fast_rcnn(limit))


def test_models_that_propose_take_no_proposals():
    two_stage = fast_rcnn(300)
    two_stage["model"]["rpn_head"] = {"anchor_generator": {"strides": [8]}}
    assert input_spec_from_config(two_stage).proposals == 0
    spec = input_spec_from_config(config(resize((1333, 800))))
    assert spec.proposals == 0 and spec.names == ("images", "image_sizes")
