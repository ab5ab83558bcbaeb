"""Model specs of configs, and checkpoints as models that are ready to predict."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deploykit import __version__
from deploykit.errors import ConfigError
from deploykit.spec import ModelSpec, OutputSpec
from deploykit.training.checkpoint import read_checkpoint, weights_of
from deploykit.training.input_spec import (
    config_filename,
    dataset_config,
    input_spec_from_config,
    model_config,
)
from deploykit.training.weight_fit import load_weights

if TYPE_CHECKING:
    from deploykit.training.config import Config
    from deploykit.training.models.detectors.base import BaseDetector

DEFAULT_MAX_PER_IMG = 100
DEFAULT_SCORE_THRESHOLD = 0.3  # of ``Detector``; a model's own threshold is made for evaluation
PROPOSAL_CLASSES = ("object",)
_DATALOADERS = ("test_dataloader", "val_dataloader", "train_dataloader")
_TEST_OPTIONS = ("nms_pre", "score_thr", "max_per_img")

Palette = Sequence[Sequence[int]]


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that was made a model again.

    Args:
        model: The detector in eval mode, with the weights of the checkpoint.
        spec: What it takes and gives (``lowering="eager"``).
        config: The config it was built from, with the test options that were asked for.
    """

    model: BaseDetector
    spec: ModelSpec
    config: Config


def spec_from_config(config: Config, classes: Sequence[str], palette: Palette = ()) -> ModelSpec:
    """Describe the model and the test pipeline of a config.

    Args:
        config: The config.
        classes: Class names in label order; those of a proposal network are ``("object",)``.
        palette: One RGB colour (0..255) per class, or nothing.

    Returns:
        The spec of the eager model: batch 1 to 64, height and width any multiple of the divisor,
        with the size that the test pipeline produces as the optimum.

    Raises:
        ConfigError: The config lacks a model or a test pipeline, the pipeline prepares images in a
            way that a spec cannot express, or the number of classes is not the model's.
    """
    expected = num_classes(config)
    if _is_proposal_network(config):
        classes, palette = PROPOSAL_CLASSES, ()
    if expected is not None and expected != len(classes):
        raise ConfigError(
            f"the model predicts {expected} classes (num_classes), but there are {len(classes)} "
            f"class names ({', '.join(map(str, classes[:5]))}{', ...' * (len(classes) > 5)})",
            config_filename(config),
        )
    return ModelSpec(
        architecture=str(model_config(config)["type"]).split(".")[-1],
        classes=tuple(str(name) for name in classes),
        palette=_palette(palette, len(classes)),
        input=input_spec_from_config(config),
        output=OutputSpec(_output_names(config), max_per_img(config)),
        score_threshold=max(DEFAULT_SCORE_THRESHOLD, score_threshold(config)),
        config_sha256=hashlib.sha256(config.dumps().encode()).hexdigest(),
        versions={"deploykit": __version__, "torch": str(torch.__version__)},
    )


def load_model(
    checkpoint_path: str | os.PathLike[str],
    config: Config | str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    test_options: Mapping[str, float] | None = None,
    allow_mismatch: bool = False,
) -> LoadedModel:
    """Build the model of a checkpoint and load its weights, all of them.

    Checkpoints of deploykit, MMDetection 3.x (``meta.cfg``, ``meta.dataset_meta``) and 2.x
    (``meta.config``, ``meta.CLASSES``) are understood, and bare state dicts when ``config`` is
    given.

    Args:
        checkpoint_path: A ``.pth`` file.
        config: A config, the path of one, or the name of a shipped recipe. By default the config
            text in the checkpoint.
        device: Where the model goes.
        test_options: Replacements for ``nms_pre``, ``score_thr`` and ``max_per_img`` of the
            config's ``model.test_cfg``.
        allow_mismatch: Accept weights that are not those of the model: what fits by name and shape
            is loaded, the rest is logged as a warning and stays random.

    Raises:
        CheckpointError: The file cannot be read, or its weights are not those of the model: the
            message names what is missing, unexpected or of another shape.
        ConfigError: There is no config, or it cannot be built.
    """
    from deploykit.training.models import build_detector

    path = Path(checkpoint_path)
    checkpoint = read_checkpoint(path)
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    resolved = config_for(config, meta, path)
    if test_options:
        resolved = _with_test_options(resolved, test_options)
    classes, palette = class_names(resolved, meta)
    spec = spec_from_config(resolved, classes, palette)
    model = build_detector(resolved["model"])
    load_weights(model, weights_of(checkpoint, str(path)), str(path), allow_mismatch)
    return LoadedModel(model.to(device).eval(), spec, resolved)


def _is_proposal_network(config: Mapping[str, Any]) -> bool:
    """Return whether a model finds objects without telling their classes."""
    model = model_config(config)
    return model.get("rpn_head") is not None and model.get("roi_head") is None


def _output_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outputs of a model; one with a mask head gives masks too."""
    roi_head = model_config(config).get("roi_head") or {}
    masks = ("masks",) if roi_head.get("mask_head") else ()
    return OutputSpec().names + masks


def num_classes(config: Mapping[str, Any]) -> int | None:
    """Return the number of classes that the model of a config predicts, if it says so."""
    for path in (("bbox_head",), ("roi_head", "bbox_head")):
        head: Any = model_config(config)
        for key in path:
            head = head.get(key) if isinstance(head, Mapping) else None
        if isinstance(head, (list, tuple)) and head:
            head = head[-1]  # a cascade: the last stage decides
        if isinstance(head, Mapping) and isinstance(head.get("num_classes"), int):
            return int(head["num_classes"])
    return None


def max_per_img(config: Mapping[str, Any]) -> int:
    """Return K, the number of detections per image that a config asks for."""
    value = _last_stage(model_config(config).get("test_cfg") or {}).get(
        "max_per_img", DEFAULT_MAX_PER_IMG
    )
    if not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"model.test_cfg.max_per_img must be a positive integer, got {value!r}",
            config_filename(config),
        )
    return value


def score_threshold(config: Mapping[str, Any]) -> float:
    """Return the score below which the model itself drops candidates."""
    return float(_last_stage(model_config(config).get("test_cfg") or {}).get("score_thr", 0.0))


def class_names(
    config: Mapping[str, Any], meta: Mapping[str, Any]
) -> tuple[tuple[str, ...], Palette]:
    """Return the class names and colours of a model.

    They are those of the checkpoint, else of the ``metainfo`` of the config's data sets, else of
    the ``METAINFO`` of their kind if it has as many as the model (COCO's 80 of a ``CocoDataset``).

    Args:
        config: The config of the model.
        meta: The ``meta`` of the checkpoint, or an empty dict.

    Returns:
        The names in label order, and the RGB colours or nothing.

    Raises:
        ConfigError: None of them names the classes.
    """
    from deploykit.training.data.dataset import class_names as metainfo_classes
    from deploykit.training.registry import DATASETS

    dataset_meta = meta.get("dataset_meta")
    for known in (dataset_meta if isinstance(dataset_meta, Mapping) else {}, meta):
        # MMDetection 2.x wrote the keys in capitals.
        lowered = {str(key).lower(): value for key, value in known.items()}
        classes = lowered.get("classes")
        if classes:
            names = (classes,) if isinstance(classes, str) else tuple(map(str, classes))
            return names, lowered.get("palette") or ()
    datasets = [dataset_config(config, loader) for loader in _DATALOADERS]
    for dataset in datasets:
        metainfo = dataset.get("metainfo")
        configured = metainfo_classes(metainfo)
        if configured:
            return configured, (metainfo or {}).get("palette") or ()
    for kind in (str(dataset.get("type")) for dataset in datasets):
        metainfo = getattr(DATASETS.get(kind), "METAINFO", {}) if kind in DATASETS else {}
        if metainfo and len(metainfo["classes"]) == num_classes(config):
            return metainfo["classes"], metainfo.get("palette") or ()
    raise ConfigError(
        "neither the checkpoint nor the config names the classes; add metainfo=dict(classes=(...)) "
        "to the data set of the config and give it with --config",
        config_filename(config),
    )


def config_for(
    config: Config | str | os.PathLike[str] | None, meta: Mapping[str, Any], path: Path
) -> Config:
    """Return the config that a checkpoint is built from.

    Args:
        config: The one that was asked for, if any: a config, its path, or the name of a recipe.
        meta: The ``meta`` of the checkpoint.
        path: The checkpoint, for messages.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    from deploykit.training.checkpoint_config import migrated, stored_config
    from deploykit.training.config import Config, load_config
    from deploykit.training.recipes import find_config

    if isinstance(config, Config):
        return migrated(config)
    if config is not None:
        return migrated(load_config(find_config(config)))
    stored = stored_config(meta, str(path))
    if stored is not None:
        return stored
    raise ConfigError(
        f"{path} holds no config; give one with --config (a file or the name of a shipped recipe) "
        "to 'deploykit convert': what it writes needs none"
    )


def _with_test_options(config: Config, options: Mapping[str, float]) -> Config:
    """Return a copy of the config with other numbers in ``model.test_cfg``."""
    unknown = [name for name in options if name not in _TEST_OPTIONS]
    if unknown:
        raise ConfigError(
            f"unknown test option '{unknown[0]}', expected one of {', '.join(_TEST_OPTIONS)}"
        )
    changed = copy.deepcopy(config)
    test_cfg = changed["model"].setdefault("test_cfg", {})
    for name, value in options.items():
        stage = test_cfg.get("rpn", test_cfg) if name == "nms_pre" else _last_stage(test_cfg)
        stage[name] = value
    return changed


def _last_stage(test_cfg: Mapping[str, Any]) -> Any:
    """Return the part of a test config that decides on the final detections."""
    return test_cfg.get("rcnn") or test_cfg.get("rpn") or test_cfg


def _palette(palette: object, count: int) -> tuple[tuple[int, int, int], ...]:
    """Return one RGB colour per class, or nothing when the palette does not cover them."""
    if isinstance(palette, str) or not isinstance(palette, Iterable):
        return ()
    colours = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    return colours[:count] if len(colours) >= count else ()
