"""From a config to a ``Trainer``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from deploykit.atomic_file import write_atomic
from deploykit.errors import ConfigError, UsageError
from deploykit.spec import METADATA_KEY, ModelSpec
from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.data.build import build_dataloader
from deploykit.training.data.loader import DetectionLoader
from deploykit.training.data.samplers import InfiniteSampler
from deploykit.training.engine import distributed
from deploykit.training.engine.checkpoint_hook import latest_checkpoint
from deploykit.training.engine.config_keys import BUILT_IN_HOOKS, changed_settings, hook_type
from deploykit.training.engine.hook import Hook, build_hook
from deploykit.training.engine.optim_wrapper import OptimWrapper, build_optim_wrapper
from deploykit.training.engine.phase_clock import PhaseClock
from deploykit.training.engine.randomness import choose_seed, seed_everything
from deploykit.training.engine.run_description import describe_run, versions
from deploykit.training.engine.run_log import RunLog
from deploykit.training.engine.schedule import TrainSchedule
from deploykit.training.engine.schedulers import ParamScheduler, build_schedulers
from deploykit.training.engine.trainer import Trainer
from deploykit.training.engine.validation import Validator
from deploykit.training.evaluation import build_metrics
from deploykit.training.model_spec import spec_from_config
from deploykit.training.models import BaseDetector, build_detector

if TYPE_CHECKING:
    from deploykit.training.config import Config

logger = logging.getLogger(__name__)

_DEFAULT_HOOKS: dict[str, dict[str, Any]] = {
    "logger": {"type": "LoggerHook"},
    "param_scheduler": {"type": "ParamSchedulerHook"},
    "checkpoint": {"type": "CheckpointHook"},
}


@dataclass(frozen=True)
class RunOptions:
    """What is decided for one run, beside the config.

    Args:
        work_dir: Folder of the run.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        resume: ``"auto"`` goes on from ``last.pth`` of ``work_dir`` if it is there; a path goes on
            from that checkpoint; ``None`` does as the config says.
        load_from: Checkpoint whose weights are the start; by default as the config says.
        seed: Seed instead of the config's.
        channels_last: Whether weights keep channels last in memory; by default as the config says,
            else on the CPU, where it is faster (several times in bfloat16).
        compile: Whether to compile backbone and neck with ``torch.compile``.
        validate: Whether to validate on the config's schedule.
        exact_clock: Whether to wait for the GPU between the phases of an iteration, to time them.
    """

    work_dir: Path
    device: str = "auto"
    resume: str | Path | None = None
    load_from: str | Path | None = None
    seed: int | None = None
    channels_last: bool | None = None
    compile: bool = False
    validate: bool = True
    exact_clock: bool = False


def build_trainer(config: Config, options: RunOptions, log: RunLog) -> Trainer:
    """Build everything that a config describes.

    Args:
        config: The config.
        options: Decisions for this run.
        log: Where the run reports to.

    Raises:
        ConfigError: The config cannot be built.
        DatasetError: A data set cannot be used.
        CheckpointError: The checkpoint to begin with cannot be read.
        UsageError: The device is not available.
    """
    device = choose_device(options.device)
    checkpoint, resuming = _initial_checkpoint(config, options)
    if checkpoint is not None and resuming:
        _report_changes(config, checkpoint)
    seed = _choose_seed(config, options, checkpoint if resuming else None)
    _prepare_environment(config, seed)
    schedule = TrainSchedule.from_config(config.get("train_cfg"))
    train_loader = build_dataloader(_section(config, "train_dataloader"), seed=seed)
    endless = isinstance(train_loader.batch_sampler.sampler, InfiniteSampler)
    _check_training_data(train_loader, endless, schedule)
    spec = spec_from_config(config, train_loader.dataset.classes, train_loader.dataset.palette)
    validator = _build_validator(config, spec, seed) if options.validate else None
    model = _build_model(config, device, options, initialise=not resuming)
    optim_wrapper = build_optim_wrapper(model, _section(config, "optim_wrapper"), device)
    _scale_learning_rate(config, optim_wrapper, train_loader.batch_size)
    trainer = Trainer(
        model=model,
        network=_network(model, config, device),
        device=device,
        train_dataloader=train_loader,
        optim_wrapper=optim_wrapper,
        param_schedulers=_build_schedulers(config, optim_wrapper, schedule, len(train_loader)),
        schedule=schedule,
        hooks=build_hooks(config),
        work_dir=options.work_dir,
        log=log,
        validator=validator,
        meta=_meta(config, train_loader, spec, seed),
        checkpoint=checkpoint,
        resuming=resuming,
        clock=PhaseClock(device if options.exact_clock else None),
        endless_data=endless,
    )
    _announce(trainer, config, seed)
    return trainer


def _announce(trainer: Trainer, config: Config, seed: int) -> None:
    """Say at the start of the log what is about to happen, and keep the resolved config."""
    for line in describe_run(trainer, config, seed):
        logger.info("%s", line)
    if trainer.log.folder is not None:
        logger.info("everything is written to %s", trainer.work_dir)
        for folder in (trainer.work_dir, trainer.log.folder):
            write_atomic(folder / "config.py", config.dumps())


def choose_device(name: str) -> torch.device:
    """Return the device to train on.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        UsageError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"training runs on cpu or cuda, not on '{name}'")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = distributed.local_rank() if device.index is None else device.index
        if index >= count:
            raise UsageError(f"device '{name}' is not available: PyTorch sees {count} CUDA devices")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def build_hooks(config: Mapping[str, Any]) -> list[Hook]:
    """Build ``default_hooks`` and ``custom_hooks`` of a config, in this order.

    Raises:
        ConfigError: A hook is unknown or its arguments do not fit.
    """
    defaults: dict[str, Any] = dict(_DEFAULT_HOOKS)
    for name, entry in (config.get("default_hooks") or {}).items():
        defaults[name] = {**_DEFAULT_HOOKS.get(name, {}), **entry} if entry is not None else None
    entries = [entry for entry in defaults.values() if entry is not None]
    entries += list(config.get("custom_hooks") or ())
    return [build_hook(entry) for entry in entries if hook_type(entry) not in BUILT_IN_HOOKS]


def default_work_dir(config: Config) -> Path:
    """Return the folder of a run: ``work_dir`` of the config, else ``work_dirs/<config name>``."""
    if config.get("work_dir"):
        return Path(str(config["work_dir"]))
    return Path("work_dirs") / Path(config.filename or "run").stem


def _initial_checkpoint(config: Config, options: RunOptions) -> tuple[dict[str, Any] | None, bool]:
    """Return the checkpoint to begin with, if any, and whether to resume it."""
    load_from = options.load_from or config.get("load_from")
    resume: Any = options.resume
    if resume is None and config.get("resume"):
        resume = config["load_from"] if config.get("load_from") else "auto"
    if resume is not None and str(resume) != "auto":
        logger.info("resuming from %s", resume)
        return read_checkpoint(resume), True
    if resume is not None:
        latest = latest_checkpoint(options.work_dir)
        if latest is not None:
            logger.info("resuming from %s", latest)
            return read_checkpoint(latest), True
        logger.warning("nothing to resume in %s: training starts anew", options.work_dir)
    if load_from:
        logger.info("starting with the weights of %s", load_from)
        return read_checkpoint(load_from), False
    return None, False


def _report_changes(config: Config, checkpoint: Mapping[str, Any]) -> None:
    text = checkpoint.get("meta", {}).get("cfg")
    if not isinstance(text, str):
        return
    from deploykit.training.config import Config

    changed = changed_settings(Config.from_text(text, "the checkpoint's config"), config)
    if changed:
        shown = ", ".join(changed[:8]) + ", ..." * (len(changed) > 8)
        logger.warning(
            "the config is not that of the run to be resumed, so the result will be another: %s",
            shown,
        )


def _choose_seed(config: Config, options: RunOptions, resumed: Mapping[str, Any] | None) -> int:
    randomness = config.get("randomness") or {}
    wanted = options.seed if options.seed is not None else randomness.get("seed")
    if resumed is not None and isinstance(resumed.get("meta", {}).get("seed"), int):
        seed = int(resumed["meta"]["seed"])
        if wanted not in (None, seed):
            logger.warning("the run to be resumed has seed %d, so %s is not used", seed, wanted)
        return seed
    return int(distributed.broadcast(choose_seed(wanted)))


def _prepare_environment(config: Config, seed: int) -> None:
    randomness = config.get("randomness") or {}
    unknown = set(randomness) - {"seed", "deterministic", "diff_rank_seed"}
    if unknown:
        raise ConfigError(f"randomness has no option '{sorted(unknown)[0]}'")
    offset = distributed.rank() if randomness.get("diff_rank_seed") else 0
    seed_everything(seed + offset, bool(randomness.get("deterministic", False)))
    if (config.get("env_cfg") or {}).get("cudnn_benchmark"):
        torch.backends.cudnn.benchmark = True


def _section(config: Config, key: str) -> Mapping[str, Any]:
    section = config.get(key)
    if not isinstance(section, Mapping):
        raise ConfigError(f"the config has no {key}, which training needs", config.filename)
    return section


def _check_training_data(loader: DetectionLoader, endless: bool, schedule: TrainSchedule) -> None:
    if len(loader) == 0:
        raise ConfigError(
            f"the training set gives no batch: {len(loader.dataset)} images in batches of "
            f"{loader.batch_size}; lower the batch size, set drop_last=False or check filter_cfg"
        )
    if endless and schedule.by_epoch:
        raise ConfigError(
            "InfiniteSampler has no epochs; use DefaultSampler, or train_cfg.type "
            "IterBasedTrainLoop"
        )


def _build_validator(config: Config, spec: ModelSpec, seed: int) -> Validator | None:
    loader_config, evaluator = config.get("val_dataloader"), config.get("val_evaluator")
    if loader_config is None and evaluator is None:
        return None
    if loader_config is None or evaluator is None:
        given, missing = "val_dataloader", "val_evaluator"
        if loader_config is None:
            given, missing = missing, given
        raise ConfigError(f"the config has {given} but no {missing}; validation needs both")
    loader = build_dataloader(loader_config, seed=seed)
    return Validator(loader, build_metrics(evaluator, loader.dataset), spec)


def _build_model(
    config: Config, device: torch.device, options: RunOptions, initialise: bool
) -> BaseDetector:
    model = build_detector(_section(config, "model"))
    if initialise:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.init_weights()
        for warning in caught:
            logger.warning("%s", warning.message)
    model = model.to(device)
    channels_last = options.channels_last
    if channels_last is None:
        channels_last = config.get("channels_last", device.type == "cpu")
    if channels_last:
        model = cast(BaseDetector, model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    if options.compile or config.get("compile"):
        arguments = config.get("compile") if isinstance(config.get("compile"), Mapping) else {}
        for name in ("backbone", "neck"):
            part = getattr(model, name, None)
            if isinstance(part, nn.Module):
                part.compile(**(arguments or {}))
    return model


def _network(model: BaseDetector, config: Config, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=bool(config.get("find_unused_parameters", False)),
    )


def _build_schedulers(
    config: Config, wrapper: OptimWrapper, schedule: TrainSchedule, epoch_length: int
) -> list[ParamScheduler]:
    epochs, iterations = 1, schedule.length
    if schedule.by_epoch:
        epochs, iterations = schedule.length, schedule.length * epoch_length
    return build_schedulers(
        config.get("param_scheduler"), wrapper.optimizer, epoch_length, epochs, iterations
    )


def _scale_learning_rate(config: Config, wrapper: OptimWrapper, batch_size: int) -> None:
    """Scale learning rates with the batch size (linear rule, arXiv 1706.02677)."""
    rule = config.get("auto_scale_lr") or {}
    if not rule.get("enable", False):
        return
    if not rule.get("base_batch_size"):
        raise ConfigError("auto_scale_lr.enable needs auto_scale_lr.base_batch_size")
    real = batch_size * distributed.world_size()
    ratio = real / float(rule["base_batch_size"])
    for group in wrapper.optimizer.param_groups:
        group["lr"] = group["lr"] * ratio
    logger.info(
        "learning rate scaled by %g: %d images per step, %s in the recipe",
        ratio,
        real,
        rule["base_batch_size"],
    )


def _meta(config: Config, loader: DetectionLoader, spec: ModelSpec, seed: int) -> dict[str, Any]:
    return {
        "cfg": config.dumps(),
        "dataset_meta": {
            "classes": tuple(loader.dataset.classes),
            "palette": [tuple(colour) for colour in loader.dataset.palette],
        },
        "seed": seed,
        METADATA_KEY: spec.to_json(),
        "versions": versions(),
    }
