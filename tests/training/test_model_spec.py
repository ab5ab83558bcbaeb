"""Specs of configs, and checkpoints as models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploykit.errors import CheckpointError, ConfigError
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.config import Config
from deploykit.training.model_spec import load_model, spec_from_config

CLASSES = ("circle", "square", "star")
Write = Callable[..., Path]


def change(path: Path, target: Path, **changes: Any) -> Path:
    torch.save(read_checkpoint(path) | changes, target)
    return target


def meta_of(path: Path) -> dict[str, Any]:
    return dict(read_checkpoint(path)["meta"])


def test_a_checkpoint_becomes_the_model_it_was(small_checkpoint: Path):
    loaded = load_model(small_checkpoint)
    spec = loaded.spec
    assert (spec.architecture, spec.classes, spec.lowering) == ("RTMDet", CLASSES, "eager")
    assert spec.palette == ((220, 20, 60), (119, 11, 32), (0, 0, 142))
    assert spec.output.max_per_img == 40
    assert spec.input.pad_size == (128, 128) and spec.input.pad_value == (116, 115, 114)
    assert len(spec.config_sha256) == 64 and "torch" in spec.versions
    assert not loaded.model.training
    weights = read_checkpoint(small_checkpoint)["state_dict"]
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    boxes, scores, labels, count = loaded.model.predict(
        torch.from_numpy(np.zeros((1, 128, 128, 3), np.uint8))
    )
    assert boxes.shape == (1, 40, 4) and scores.shape == labels.shape == (1, 40)
    assert count.shape == (1,)


def test_a_given_config_replaces_the_stored_one(small_checkpoint: Path, tmp_path: Path):
    text = meta_of(small_checkpoint)["cfg"].replace("max_per_img=40", "max_per_img=7")
    file = tmp_path / "config.py"
    file.write_text(text)
    for config in (file, str(file), Config.from_text(text)):
        assert load_model(small_checkpoint, config).spec.output.max_per_img == 7
    bare = change(small_checkpoint, tmp_path / "bare.pth", meta={})
    loaded = load_model(bare, file)
    assert loaded.spec.classes == CLASSES  # of the config's data set


def test_test_options_replace_those_of_the_config(toy_checkpoint: Path):
    loaded = load_model(toy_checkpoint, test_options={"max_per_img": 5, "score_thr": 0.6})
    assert loaded.spec.output.max_per_img == 5
    assert loaded.spec.score_threshold == 0.6
    assert loaded.config["model"]["test_cfg"]["nms_pre"] == 100
    assert load_model(toy_checkpoint).spec.score_threshold == 0.3
    with pytest.raises(ConfigError, match="unknown test option 'nms'"):
        load_model(toy_checkpoint, test_options={"nms": 1})


def test_checkpoints_of_mmdetection_2(toy_checkpoint: Path, tmp_path: Path):
    meta = meta_of(toy_checkpoint)
    old = {"config": meta["cfg"], "CLASSES": list(CLASSES), "PALETTE": [[1, 2, 3]] * 3}
    weights = read_checkpoint(toy_checkpoint)["state_dict"]
    averages = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in weights.items()}
    path = change(
        toy_checkpoint, tmp_path / "old.pth", meta=old, state_dict={**weights, **averages}
    )
    loaded = load_model(path)
    assert loaded.spec.classes == CLASSES
    assert loaded.spec.palette == ((1, 2, 3),) * 3
    assert torch.equal(loaded.model.state_dict()["backbone.0.bias"], weights["backbone.0.bias"])


def test_class_names_in_capitals_and_of_a_single_class(toy_checkpoint: Path, tmp_path: Path):
    meta = meta_of(toy_checkpoint)
    capitals = meta | {"dataset_meta": {"CLASSES": ["a", "b", "c"], "PALETTE": "random"}}
    spec = load_model(change(toy_checkpoint, tmp_path / "a.pth", meta=capitals)).spec
    assert (spec.classes, spec.palette) == (("a", "b", "c"), ())
    single = meta | {"dataset_meta": {"classes": "nucleus"}}
    spec_of_one = change(toy_checkpoint, tmp_path / "b.pth", meta=single)
    assert load_model(spec_of_one).spec.classes == ("nucleus",)


def test_coco_names_for_a_coco_model_without_names(
    write_toy_checkpoint: Write, toy_checkpoint: Path, tmp_path: Path
):
    text = meta_of(toy_checkpoint)["cfg"].replace("num_classes=3", "num_classes=80")
    text = text.replace("model = dict(", "model = dict(bbox_head=dict(num_classes=80),")
    config = Config.from_text(text)
    from deploykit.training.model_spec import class_names

    names, palette = class_names(config, {})
    assert len(names) == len(palette) == 80
    assert (names[0], names[-1]) == ("person", "toothbrush")


def test_no_names_at_all(toy_checkpoint: Path, tmp_path: Path):
    meta = {"cfg": meta_of(toy_checkpoint)["cfg"]}
    with pytest.raises(ConfigError, match="names the classes; add metainfo"):
        load_model(change(toy_checkpoint, tmp_path / "nameless.pth", meta=meta))


def test_no_config(toy_checkpoint: Path, tmp_path: Path):
    path = change(toy_checkpoint, tmp_path / "bare.pth", meta={})
    with pytest.raises(ConfigError, match=r"bare\.pth holds no config; give one with --config"):
        load_model(path)


def test_weights_must_fit_exactly(toy_checkpoint: Path, tmp_path: Path):
    weights = dict(read_checkpoint(toy_checkpoint)["state_dict"])
    bias = weights.pop("backbone.0.bias")
    weights["backbone.0.weight"] = weights["backbone.0.weight"][:2]
    weights["neck.bias"] = bias
    path = change(toy_checkpoint, tmp_path / "odd.pth", state_dict=weights)
    with pytest.raises(CheckpointError) as raised:
        load_model(path)
    message = str(raised.value)
    assert "\n" not in message
    assert "1 missing (backbone.0.bias)" in message
    assert "1 unexpected (neck.bias)" in message
    assert "backbone.0.weight [2, 3, 8, 8] instead of [7, 3, 8, 8]" in message


def test_number_of_classes_must_fit(small_checkpoint: Path):
    config = Config.from_text(meta_of(small_checkpoint)["cfg"])
    with pytest.raises(ConfigError, match="predicts 3 classes .* but there are 2 class names"):
        spec_from_config(config, ("a", "b"))


def test_max_per_img_must_make_sense(small_checkpoint: Path):
    text = meta_of(small_checkpoint)["cfg"].replace("max_per_img=40", "max_per_img=0")
    with pytest.raises(ConfigError, match="max_per_img must be a positive integer, got 0"):
        spec_from_config(Config.from_text(text), CLASSES)


def test_two_stage_options():
    from deploykit.training.model_spec import max_per_img, num_classes

    heads = [{"num_classes": 4}, {"num_classes": 5}]
    test_cfg = {"rpn": {"nms_pre": 1000, "max_per_img": 1000}, "rcnn": {"max_per_img": 17}}
    model = {"type": "CascadeRCNN", "roi_head": {"bbox_head": heads}, "test_cfg": test_cfg}
    assert num_classes({"model": model}) == 5
    assert max_per_img({"model": model}) == 17
