"""Configs of MMDetection 2.x."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import Detector
from deploykit.cli import main
from deploykit.errors import ConfigError
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config, load_config
from deploykit.training.input_spec import input_spec_from_config
from deploykit.training.mmdetection2 import from_mmdetection2, is_mmdetection2
from deploykit.training.model_spec import spec_from_config
from deploykit.training.recipes import find_config

RUN = Path(__file__).parent / "mmengine_run"
OLD = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(1333, 800),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img'])])]
data = dict(
    samples_per_gpu=2,
    train=dict(type='CocoDataset', ann_file='train.json', pipeline=[]),
    test=dict(type='CocoDataset', ann_file='val.json', img_prefix='val/', pipeline=test_pipeline))
optimizer = dict(type='SGD', lr=0.01)
"""


def old_config(name: str, nested: bool = True, **replaced: str) -> Config:
    """The model of a recipe in a config of MMDetection 2.x."""
    model = dict(load_config(find_config(name))["model"])
    del model["data_preprocessor"]
    model["pretrained"] = "torchvision://resnet50"
    settings = {} if nested else {key: model.pop(key) for key in ("train_cfg", "test_cfg")}
    text = OLD
    for old, new in replaced.items():
        text = text.replace(old, new)
    return Config({**Config.from_text(text), "model": model, **settings})


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["retinanet_r50_fpn_1x_coco", "faster-rcnn_r50_fpn_1x_coco"])
def test_the_model_and_its_input_are_those_of_3(name: str, nested: bool):
    old, new = old_config(name, nested), load_config(find_config(name))
    assert is_mmdetection2(old) and not is_mmdetection2(new)
    translated = from_mmdetection2(old)
    assert translated["model"] == {
        **new["model"],
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
    }
    assert input_spec_from_config(translated) == input_spec_from_config(new)
    dataset = translated["test_dataloader"]["dataset"]
    assert (dataset["ann_file"], dataset["data_prefix"]) == ("val.json", {"img": "val/"})
    assert len(spec_from_config(translated, [str(i) for i in range(80)]).classes) == 80


def test_options_of_before_2_5():
    old = old_config("faster-rcnn_r50_fpn_1x_coco")
    old["model"]["test_cfg"]["rpn"] = {
        "nms_across_levels": False,
        "nms_pre": 1000,
        "nms_post": 1000,
        "max_num": 1000,
        "nms_thr": 0.7,
        "min_bbox_size": 0,
    }
    new = load_config(find_config("faster-rcnn_r50_fpn_1x_coco"))
    assert from_mmdetection2(old)["model"]["test_cfg"] == new["model"]["test_cfg"]


def test_yolox_pads_a_square_that_is_not_normalised():
    old = Config.from_text(
        """
model = dict(type='YOLOX', input_size=(640, 640), random_size_range=(15, 25))
data = dict(test=dict(type='CocoDataset', classes=('a', 'b'), pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(640, 640), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
        dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])])]))
"""
    )
    new = from_mmdetection2(old)
    assert new["model"] == {
        "type": "YOLOX",
        "data_preprocessor": {"type": "DetDataPreprocessor"},
    }
    spec = input_spec_from_config(new)
    assert spec.pad_size == (640, 640) and spec.pad_value == (114, 114, 114)
    assert new["test_dataloader"]["dataset"]["metainfo"] == {"classes": ("a", "b")}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"flip=False": "flip=True"}, r"tests several views of an image \(flip=True"),
        ({"(1333, 800)": "[(1333, 800), (800, 600)]"}, "tests several views"),
        ({"'RandomFlip'": "'Posterize'"}, "has a Posterize, which has no counterpart"),
        ({"pipeline=test_pipeline": "pipeline=3"}, "has no test pipeline"),
    ],
)
def test_what_cannot_be_translated_is_named(replaced: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        config = old_config("retinanet_r50_fpn_1x_coco", **replaced)
        del config["test_pipeline"]
        from_mmdetection2(config)


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_a_checkpoint_of_mmdetection_2_detects_the_same(tmp_path: Path, key: str):
    """What MMDetection 2.x would have written of the weights in ``mmengine_run``."""
    content = read_checkpoint(RUN / "tiny_retinanet.pth")
    model = dict(Config.from_text(content["meta"]["cfg"])["model"])
    del model["data_preprocessor"]
    old = {**Config.from_text(OLD.replace("(1333, 800)", "(128, 128)")), "model": model}
    meta = {key: Config(old).dumps(), "CLASSES": ("c0", "c1", "c2"), "mmdet_version": "2.28.0"}
    path = tmp_path / "old.pth"
    torch.save(
        {"meta": meta, "state_dict": content["state_dict"]},
        path,
        _use_new_zipfile_serialization=False,
    )
    with np.load(RUN / "tiny_retinanet.npz") as file:
        expected = dict(file)
    found = Detector(path, device="cpu", score_threshold=0)(expected["image_bgr"])
    assert found.class_names == ("c0", "c1", "c2")
    assert found.labels.tolist() == expected["labels"].tolist()
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=0.05, rtol=0)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-4, rtol=0)


def test_training_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "old.py"
    file.write_text(f"{OLD}\nmodel = dict(type='RetinaNet')\n")
    assert main(["train", str(file), "--work-dir", str(tmp_path / "run")]) == 2
    assert "is a config of MMDetection 2.x; training takes those of 3.x" in capsys.readouterr().err
