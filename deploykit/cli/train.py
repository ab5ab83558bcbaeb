"""``deploykit train``: from a config to a checkpoint."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ConfigError, UsageError
from deploykit.optional_imports import import_optional

if TYPE_CHECKING:
    from deploykit.training.config import Config

SUMMARY = """\
Train a detector from a config of MMDetection's dialect, or a shipped recipe by its name.

The work directory receives best.pth, last.pth, checkpoints at the config's interval, the resolved
config, and a folder per run with a text log, scalars.jsonl and TensorBoard events. A run that was
killed goes on exactly where its last checkpoint was with --resume. Several GPUs: start it as
'torchrun --nproc-per-node N -m deploykit train CONFIG'."""

EXAMPLES = (
    "deploykit train rtmdet_demo --synthetic-data --epochs 1 --image-size 64x64 --device cpu",
    "deploykit train config.py --work-dir runs/first --amp bf16",
    "deploykit train config.py --work-dir runs/first --resume",
    "deploykit train config.py --data-root data/ --cfg-options optim_wrapper.optimizer.lr=0.001",
    "deploykit train rtmdet_tiny --synthetic-data --image-size 320x320 --batch-size 2 "
    "--device cpu --profile-iterations 20",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", help="a config file or the name of a recipe")
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="default: work_dirs/<name of the config>"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="go on with an interrupted run: from last.pth of the work directory if it is there, "
        "or from a checkpoint",
    )
    parser.add_argument(
        "--load-from", type=Path, metavar="PATH", help="start with the weights of a checkpoint"
    )
    _add_changes(parser.add_argument_group("changes to the config"))
    _add_running(parser.add_argument_group("running"))


def _add_changes(changes: argparse._ArgumentGroup) -> None:
    changes.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="a.b.0.c=VALUE"
    )
    changes.add_argument(
        "--amp",
        nargs="?",
        const="auto",
        choices=("auto", "bf16", "fp16"),
        help="mixed precision (without a type: bf16 on the CPU, fp16 on a GPU)",
    )
    changes.add_argument("--seed", type=int, metavar="N")
    changes.add_argument(
        "--epochs", type=int, metavar="N", help="what the schedule counts in epochs moves along"
    )
    changes.add_argument("--batch-size", type=int, metavar="N", help="training images per step")
    changes.add_argument("--workers", type=int, metavar="N", help="processes that load data")
    changes.add_argument("--data-root", metavar="DIR", help="folder of all data sets")
    changes.add_argument(
        "--image-size", type=_parse_size, metavar="HxW", help="scales every size in the pipelines"
    )
    changes.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size"
    )
    changes.add_argument(
        "--synthetic-data", action="store_true", help="train on a few images drawn for the purpose"
    )
    changes.add_argument(
        "--allow-custom-imports",
        action="store_true",
        help="import (and so execute) the modules that the config's custom_imports names",
    )


def _add_running(running: argparse._ArgumentGroup) -> None:
    running.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    running.add_argument("--threads", type=int, metavar="N", help="CPU threads of PyTorch")
    running.add_argument(
        "--channels-last", action="store_true", help="memory layout of the network"
    )
    running.add_argument("--compile", action="store_true", help="torch.compile backbone and neck")
    running.add_argument(
        "--profile-iterations",
        type=int,
        metavar="N",
        help="train N iterations, print what they spend their time on, and write nothing",
    )
    running.add_argument(
        "--profile-out", type=Path, metavar="FILE", help="write the profile as JSON as well"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; see the module's ``SUMMARY``."""
    # Threads that spin while they wait starve the loader's processes and one another when there are
    # more of them than cores: an iteration then takes ten times as long. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch = import_optional("torch", "train", "Training")
    from deploykit.training.engine import distributed

    if args.threads is not None:
        if args.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        if distributed.join(args.device):
            stack.callback(distributed.leave)
        config = _config(args, stack)
        if args.profile_iterations is not None:
            return _profile(args, config)
        return _train(args, config)


def _train(args: argparse.Namespace, config: Config) -> int:
    import time

    from rich.console import Console

    from deploykit.training.engine import RunLog, build_trainer, distributed
    from deploykit.training.engine.logger_hook import metrics_text

    options = _options(args, config)
    is_main = distributed.rank() == 0
    folder = options.work_dir / time.strftime("%Y%m%d_%H%M%S") if is_main else None
    console = Console(soft_wrap=True, highlight=False, markup=False) if is_main else None
    trainer = None
    try:
        with RunLog(folder, str(config.get("log_level", "INFO")), console) as log:
            trainer = build_trainer(config, options, log)
            metrics = trainer.train()
    except BaseException:
        if trainer is None and folder is not None:
            _remove_run_folder(folder)  # a run that never began leaves nothing behind
        raise
    if console is not None:
        console.print(f"trained: {options.work_dir / 'last.pth'}  {metrics_text(metrics)}")
    return 0


def _remove_run_folder(folder: Path) -> None:
    """Remove the folder of a run, and its work directory if nothing else is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def _profile(args: argparse.Namespace, config: Config) -> int:
    import dataclasses
    import json

    from rich.console import Console

    from deploykit.atomic_file import write_atomic
    from deploykit.training.engine import RunLog, build_trainer
    from deploykit.training.engine.profiling import profile_training
    from deploykit.training.engine.run_description import describe_run

    config["default_hooks"] = {"logger": None, "checkpoint": None}
    options = dataclasses.replace(_options(args, config), validate=False, exact_clock=True)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with RunLog(None) as log:
        trainer = build_trainer(config, options, log)
        for line in describe_run(trainer, config, trainer.meta["seed"])[:4]:
            console.print(line)
        profile = profile_training(trainer, args.profile_iterations)
    console.print(profile.render())
    total = profile.phases["total"]
    console.print(
        f"{total.median:.3f} s per iteration (median of {profile.iterations}; 80 % lie between "
        f"{total.p10:.3f} and {total.p90:.3f} s)"
    )
    if args.profile_out is not None:
        write_atomic(args.profile_out, json.dumps(profile.to_dict(), indent=2))
    return 0


def _options(args: argparse.Namespace, config: Config) -> Any:
    from deploykit.training.engine import RunOptions, default_work_dir

    return RunOptions(
        work_dir=args.work_dir or default_work_dir(config),
        device=args.device,
        resume=args.resume,
        load_from=args.load_from,
        seed=args.seed,
        channels_last=args.channels_last,
        compile=args.compile,
    )


def _config(args: argparse.Namespace, stack: ExitStack) -> Config:
    """Read the config and apply what the command line changes."""
    from deploykit.training.config import load_config
    from deploykit.training.engine import overrides
    from deploykit.training.mmdetection2 import is_mmdetection2
    from deploykit.training.recipes import find_config

    config = load_config(find_config(args.config), args.cfg_options)
    if is_mmdetection2(config):
        raise ConfigError(
            f"{args.config} is a config of MMDetection 2.x; training takes those of 3.x, see "
            "MMDetection's guide of migration"
        )
    if args.allow_custom_imports:
        _import_modules(config)
    if args.synthetic_data:
        config = overrides.with_drawn_data(config, _draw_data(config, stack))
    if args.data_root is not None:
        config = overrides.with_data_root(config, args.data_root)
    elif not args.synthetic_data:
        config = overrides.with_environment_data_root(config)
    if args.image_size is not None:
        config = overrides.with_image_size(config, args.image_size)
    if args.epochs is not None:
        config = overrides.with_epochs(config, args.epochs)
    if args.batch_size is not None:
        config = overrides.with_batch_size(config, args.batch_size)
    if args.workers is not None:
        config = overrides.with_workers(config, args.workers)
    if args.amp is not None:
        config = overrides.with_amp(config, args.amp)
    if args.auto_scale_lr:
        config["auto_scale_lr"] = {**(config.get("auto_scale_lr") or {}), "enable": True}
    return config


def _draw_data(config: Config, stack: ExitStack) -> Path:
    from deploykit.training.data.drawn_dataset import write_drawn_dataset
    from deploykit.training.engine import distributed

    folder = None
    if distributed.rank() == 0:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploykit-")))
        write_drawn_dataset(folder, _class_names(config))
    return Path(distributed.broadcast(folder))


def _class_names(config: Config) -> tuple[str, ...]:
    """Return the classes that the config trains, or names for as many as its model has."""
    from deploykit.training.model_spec import class_names, num_classes

    try:
        return class_names(config, {})[0]
    except ConfigError:
        return tuple(f"class {index}" for index in range(num_classes(config) or 1))


def _import_modules(config: Config) -> None:
    from importlib import import_module

    for name in config.custom_imports:
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"custom_imports: module '{name}' cannot be imported: {error}", config.filename
            ) from error


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 640x640, got '{text}'")
    return int(match[1]), int(match[2])
