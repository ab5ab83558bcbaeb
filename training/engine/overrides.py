"""Changes to a config that a command line asks for in one word."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.training.config import Config

logger = logging.getLogger(__name__)
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_SIZE_KEYS = ("img_scale", "scale", "crop_size", "size")
_AMP = {"bf16": "bfloat16", "fp16": "float16"}


def with_epochs(config: Config, epochs: int) -> Config:
    """Return a config that trains for another number of epochs.

    What the schedule counts in epochs moves in proportion: schedulers, dynamic validation
    intervals, the switch of the pipeline. Warm-ups that count iterations stay.

    Raises:
        UsageError: The config trains by iterations.
    """
    changed = copy.deepcopy(config)
    loop = changed.get("train_cfg") or {}
    old = loop.get("max_epochs")
    if not isinstance(old, int) or epochs < 1:
        raise UsageError("--epochs needs a number of at least 1 and a config with max_epochs")

    def moved(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(moved(entry) for entry in value)
        return round(value * epochs / old) if isinstance(value, (int, float)) else value

    loop["max_epochs"] = epochs
    loop["val_interval"] = min(loop.get("val_interval", 1), epochs)
    if loop.get("dynamic_intervals"):
        loop["dynamic_intervals"] = [
            (moved(start), interval) for start, interval in loop["dynamic_intervals"]
        ]
    for scheduler in changed.get("param_scheduler") or ():
        if scheduler.get("by_epoch", True):
            for key in ("begin", "end", "T_max", "milestones", "step_size"):
                if key in scheduler:
                    scheduler[key] = moved(scheduler[key])
            for key in ("T_max", "step_size"):
                if key in scheduler:
                    scheduler[key] = max(1, scheduler[key])
    # A phase that is shorter than half an epoch now has no length left.
    changed["param_scheduler"] = [
        scheduler
        for scheduler in changed.get("param_scheduler") or ()
        if scheduler.get("end") is None or scheduler["end"] > scheduler.get("begin", 0)
    ]
    for hook in changed.get("custom_hooks") or ():
        for key in ("switch_epoch", "begin_epoch"):
            if key in hook:
                hook[key] = moved(hook[key])
    return changed


def with_batch_size(config: Config, batch_size: int) -> Config:
    """Return a config with another training batch size; the learning rate stays.

    Raises:
        UsageError: It is not positive.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    changed = copy.deepcopy(config)
    changed["train_dataloader"]["batch_size"] = batch_size
    return changed


def with_workers(config: Config, workers: int) -> Config:
    """Return a config whose loaders have another number of worker processes.

    Raises:
        UsageError: It is negative.
    """
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, got {workers}")
    changed = copy.deepcopy(config)
    for name in _LOADERS:
        loader = changed.get(name)
        if isinstance(loader, dict):
            loader["num_workers"] = workers
            if workers == 0:
                loader.pop("prefetch_factor", None)
    return changed


def with_amp(config: Config, precision: str) -> Config:
    """Return a config that trains in mixed precision.

    Args:
        config: The config.
        precision: ``"bf16"``, ``"fp16"`` or ``"auto"`` (bf16 on the CPU, fp16 on a GPU).
    """
    changed = copy.deepcopy(config)
    wrapper = changed["optim_wrapper"]
    wrapper["type"] = "AmpOptimWrapper"
    wrapper.pop("dtype", None)
    if precision in _AMP:
        wrapper["dtype"] = _AMP[precision]
    return changed


def with_data_root(config: Config, root: str | Path) -> Config:
    """Return a config whose data sets lie in another folder.

    Annotation files of evaluators that lay under the old folder move with it.

    Raises:
        UsageError: No data set of the config has a ``data_root``.
    """
    changed = copy.deepcopy(config)
    new = f"{str(root).rstrip('/')}/"
    old_roots = set()
    for loader in _LOADERS:
        for dataset in leaf_datasets((changed.get(loader) or {}).get("dataset")):
            if dataset.get("data_root") is not None:
                old_roots.add(str(dataset["data_root"]))
                dataset["data_root"] = new
    if not old_roots:
        raise UsageError("--data-root: no data set of the config has a data_root")
    for evaluator in _evaluators(changed):
        for old in sorted(old_roots, key=len, reverse=True):
            path = evaluator.get("ann_file")
            if isinstance(path, str) and old and path.startswith(old):
                evaluator["ann_file"] = new + path[len(old) :].lstrip("/")
                break
    if "data_root" in changed:
        changed["data_root"] = new
    return changed


def with_environment_data_root(config: Config) -> Config:
    """Return a config whose data lies where ``MMDET_DATASETS`` says, if that is set.

    As in MMDetection, the config's own ``data_root`` is replaced in every string of the data
    loaders and evaluators.
    """
    old, new = config.get("data_root"), os.environ.get("MMDET_DATASETS")
    if not new or not isinstance(old, str) or not old:
        return config
    if old.endswith("/") and not new.endswith("/"):
        new += "/"

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(old, new)
        if isinstance(value, dict):
            return {key: moved(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(entry) for entry in value)
        return value

    changed = copy.deepcopy(config)
    for key in (*_LOADERS, *(name.replace("_dataloader", "_evaluator") for name in _LOADERS)):
        if key in changed:
            changed[key] = moved(changed[key])
    changed["data_root"] = new
    logger.info("MMDET_DATASETS is set: the data root is %s instead of %s", new, old)
    return changed


def with_drawn_data(config: Config, folder: Path) -> Config:
    """Return a config that reads a data set written by ``write_drawn_dataset``."""
    changed = copy.deepcopy(config)
    for loader in _LOADERS:
        split = "train" if loader == "train_dataloader" else "val"
        for dataset in leaf_datasets((changed.get(loader) or {}).get("dataset")):
            dataset["data_root"] = f"{folder}/"
            dataset["ann_file"] = f"annotations/{split}.json"
            dataset["data_prefix"] = {"img": f"{split}/"}
            if dataset.get("proposal_file") is not None:
                dataset["proposal_file"] = f"proposals/{split}.npz"
    for evaluator in _evaluators(changed):
        if "ann_file" in evaluator:
            evaluator["ann_file"] = str(folder / "annotations" / "val.json")
    return changed


def with_image_size(config: Config, size: tuple[int, int]) -> Config:
    """Return a config whose pipelines aim at another image size.

    Every size in a pipeline is scaled by the same factors as its ``Pad`` (or, without one, its
    crop, mosaic or resize): a recipe for 640 x 640 becomes one for the new size.

    Args:
        config: The config.
        size: (height, width) in pixels.

    Raises:
        UsageError: A pipeline names no size.
    """
    changed = copy.deepcopy(config)
    pipelines = [
        dataset["pipeline"]
        for loader in _LOADERS
        for dataset in all_datasets((changed.get(loader) or {}).get("dataset"))
        if dataset.get("pipeline")
    ]
    pipelines += [
        hook["switch_pipeline"]
        for hook in changed.get("custom_hooks") or ()
        if hook.get("switch_pipeline")
    ]
    for pipeline in pipelines:
        _resize_pipeline(pipeline, size)
    return changed


def leaf_datasets(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the data sets that read annotation files, within wrappers."""
    for entry in all_datasets(dataset):
        if "dataset" not in entry and "datasets" not in entry:
            yield entry


def all_datasets(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield a data set's config and those within it."""
    if isinstance(dataset, dict):
        yield dataset
        yield from all_datasets(dataset.get("dataset"))
        for inner in dataset.get("datasets") or ():
            yield from all_datasets(inner)


def _evaluators(config: Config) -> Iterator[dict[str, Any]]:
    for key in ("val_evaluator", "test_evaluator"):
        value = config.get(key) or ()
        yield from [value] if isinstance(value, dict) else value


def _all_transforms(pipeline: Any) -> Iterator[dict[str, Any]]:
    """Yield the transforms of a pipeline and those within them."""
    for entry in pipeline:
        if isinstance(entry, dict):
            yield entry
            inner = entry.get("transforms")
            if isinstance(inner, (list, tuple)):
                yield from _all_transforms(inner)
        elif isinstance(entry, (list, tuple)):
            yield from _all_transforms(entry)


def _resize_pipeline(pipeline: list[dict[str, Any]], size: tuple[int, int]) -> None:
    transforms = list(_all_transforms(pipeline))
    old = _aimed_size(transforms)
    if old is None:
        if any(key in transform for transform in transforms for key in _SIZE_KEYS):
            raise UsageError("--image-size: a pipeline of the config names no fixed size")
        return
    factors = (size[1] / old[0], size[0] / old[1])
    for transform in transforms:
        for key in _SIZE_KEYS:
            pair = transform.get(key)
            if isinstance(pair, (list, tuple)) and len(pair) == 2:
                transform[key] = tuple(
                    round(side * factor) for side, factor in zip(pair, factors, strict=True)
                )


def _aimed_size(pipeline: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the (width, height) of the images that a pipeline ends with."""
    for kind, key in (("Pad", "size"), ("RandomCrop", "crop_size"), ("Resize", "scale")):
        for transform in pipeline:
            pair = transform.get(key)
            if str(transform.get("type")).split(".")[-1] == kind and pair:
                return int(pair[0]), int(pair[1])
    return None
