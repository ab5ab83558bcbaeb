"""Configs of MMDetection 2.x, as the checkpoints of its model zoo carry them, in the form of 3.x.

What a model needs to be built and to predict is translated, by MMDetection's documented rules of
migration: where the test settings stand, how images are prepared, and renamed options. The training
part (optimizer, schedule, training pipeline) is not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config import Config

# Steps of a 2.x pipeline that do not change what the network is given.
_DROPPED = frozenset(
    {"RandomFlip", "ImageToTensor", "DefaultFormatBundle", "Collect", "LoadAnnotations"}
)


def is_mmdetection2(config: Mapping[str, Any]) -> bool:
    """Return whether a config has the form of MMDetection 2.x."""
    data = config.get("data")
    return isinstance(data, Mapping) and "test_dataloader" not in config and "model" in config


def from_mmdetection2(config: Config) -> Config:
    """Return a config of MMDetection 2.x in the form of 3.x, as far as predicting goes.

    Args:
        config: A config with ``model`` and ``data``.

    Returns:
        A config with ``model`` and ``test_dataloader``.

    Raises:
        ConfigError: Its test pipeline has no counterpart.
    """
    values = copy.deepcopy(dict(config))
    dataset = _innermost(values["data"].get("test") or values["data"].get("val") or {})
    model = _model(values)
    pipeline, preprocessor = _pipeline(
        dataset.get("pipeline") or values.get("test_pipeline"), config
    )
    model.setdefault("data_preprocessor", preprocessor)
    test_dataset: dict[str, Any] = {"type": dataset.get("type", "CocoDataset")}
    if isinstance(dataset.get("ann_file"), str):
        test_dataset["ann_file"] = dataset["ann_file"]
    if isinstance(dataset.get("img_prefix"), str):
        test_dataset["data_prefix"] = {"img": dataset["img_prefix"]}
    if classes := dataset.get("classes"):
        names = (classes,) if isinstance(classes, str) else tuple(classes)
        test_dataset["metainfo"] = {"classes": names}
    return Config(
        {
            "model": model,
            "test_dataloader": {
                "batch_size": 1,
                "dataset": {**test_dataset, "test_mode": True, "pipeline": pipeline},
            },
        },
        config.filename,
    )


def _innermost(dataset: Any) -> dict[str, Any]:
    while isinstance(dataset, dict) and not dataset.get("pipeline") and "dataset" in dataset:
        dataset = dataset["dataset"]
    return dataset if isinstance(dataset, dict) else {}


def _model(values: dict[str, Any]) -> dict[str, Any]:
    """Return the model with its settings inside, and without what only training used."""
    model: dict[str, Any] = values["model"]
    for key in ("pretrained", "input_size", "random_size_range", "random_size_interval"):
        model.pop(key, None)
    for key in ("train_cfg", "test_cfg"):
        if model.get(key) is None and values.get(key) is not None:
            model[key] = values[key]
    for settings in (model.get("train_cfg"), model.get("test_cfg")):
        for key in ("rpn", "rpn_proposal"):
            stage = settings.get(key) if isinstance(settings, dict) else None
            if isinstance(stage, dict):
                _rename_proposal_options(stage)
    return model


def _rename_proposal_options(stage: dict[str, Any]) -> None:
    """Rename the options of a proposal network from before MMDetection 2.5."""
    stage.pop("nms_across_levels", None)
    stage.pop("nms_post", None)
    if "max_num" in stage:
        stage.setdefault("max_per_img", stage.pop("max_num"))
    if "nms_thr" in stage:
        stage.setdefault("nms", {"type": "nms", "iou_threshold": stage.pop("nms_thr")})


def _pipeline(steps: Any, config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the test pipeline of 3.x and the data preprocessor that a 2.x pipeline amounts to."""
    if not isinstance(steps, list | tuple) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError("the config of MMDetection 2.x has no test pipeline", config.filename)
    pipeline: list[dict[str, Any]] = []
    preprocessor: dict[str, Any] = {"type": "DetDataPreprocessor"}
    for step in _unwrapped(steps, config):
        name = str(step.get("type"))
        if name == "Normalize":
            preprocessor |= {
                "mean": list(step["mean"]),
                "std": list(step["std"]),
                "bgr_to_rgb": step.get("to_rgb", True),
            }
        elif name == "Pad" and step.get("size_divisor"):
            preprocessor["pad_size_divisor"] = step["size_divisor"]
        elif name == "Pad":
            if isinstance(step.get("size"), list | tuple):  # 2.x: height first
                step["size"] = tuple(reversed(step["size"]))
            pipeline.append(step)
        elif name == "Resize":
            if "img_scale" in step:
                step["scale"] = step.pop("img_scale")
            pipeline.append(step)
        elif name == "LoadImageFromFile":
            pipeline.append({"type": name})
        elif name not in _DROPPED:
            raise ConfigError(
                f"the test pipeline of MMDetection 2.x has a {name}, which has no counterpart; "
                "give the config of MMDetection 3.x with --config",
                config.filename,
            )
    return [*pipeline, {"type": "PackDetInputs"}], preprocessor


def _unwrapped(steps: Any, config: Config) -> list[dict[str, Any]]:
    """Return the steps with those of the ``MultiScaleFlipAug`` around them in its place."""
    flat: list[dict[str, Any]] = []
    for step in steps:
        if step.get("type") != "MultiScaleFlipAug":
            flat.append(dict(step))
            continue
        scale = step.get("img_scale")
        if isinstance(scale, list) and len(scale) == 1:
            scale = scale[0]
        if step.get("flip") or not (isinstance(scale, tuple) and len(scale) == 2):
            raise ConfigError(
                f"the test pipeline of MMDetection 2.x tests several views of an image (flip="
                f"{step.get('flip')!r}, img_scale={scale!r}); give the config of MMDetection 3.x "
                "with --config",
                config.filename,
            )
        for inner in step.get("transforms") or ():
            keyed = {"scale": scale} if inner.get("type") == "Resize" else {}
            flat.append({**inner, **keyed})
    return flat
