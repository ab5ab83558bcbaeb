"""``deploykit test``: COCO metrics of a checkpoint or an exported model."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ConfigError, UsageError
from deploykit.optional_imports import import_optional

if TYPE_CHECKING:
    from rich.table import Table

    from deploykit.runtimes.detector import Detector
    from deploykit.training.config import Config
    from deploykit.training.evaluation import Metric

SUMMARY = """\
Measure COCO metrics of a checkpoint (.pth) or exported model (.onnx, .engine) on the test set of a
config.

The images go through the same Detector that runs everywhere else; every detection counts, whatever
its score. CONFIG names the data set, its annotations and the metrics; a checkpoint carries its own
config, so that it may be left out."""

EXAMPLES = (
    "deploykit test work_dirs/config/best.pth",
    "deploykit test config.py work_dirs/config/best.pth --classwise",
    "deploykit test config.py model.onnx --json metrics.json --data-root data/",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="a config file or the name of a recipe"
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .pth, .onnx or .engine file")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images run at once (1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the network")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the metrics as JSON as well"
    )
    parser.add_argument(
        "--dump-proposals",
        type=Path,
        metavar="FILE",
        help="also write what is found as region proposals (.pkl, .npz) for Fast R-CNN",
    )
    parser.add_argument("--classwise", action="store_true", help="also measure every class")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="accept a .pth whose weights fit the model only in part; the rest stays random",
    )
    parser.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="a.b.0.c=VALUE"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; see the module's ``SUMMARY``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see deploykit.cli.train
    import_optional("torch", "train", "Evaluation")
    from rich.console import Console

    from deploykit.atomic_file import check_writable, write_atomic
    from deploykit.training.data.build import build_dataset
    from deploykit.training.engine import RunLog
    from deploykit.training.evaluation import build_metrics, evaluate_detector

    console = Console(soft_wrap=True, highlight=False, markup=False)
    if args.json is not None:
        check_writable(args.json)
    config = _config(args)
    loader, evaluator = _test_sections(config)
    if args.classwise:
        evaluator = _classwise(evaluator)
    if args.dump_proposals is not None:
        evaluator = _with_proposal_file(evaluator, args.dump_proposals)
    with RunLog(None):
        dataset = build_dataset(loader["dataset"])
        metrics = build_metrics(evaluator, dataset)
        with _detector(args, config) as detector:
            console.print(f"{detector!r} on {len(dataset)} images")
            start = time.perf_counter()
            numbers = evaluate_detector(
                detector, dataset, metrics, args.batch_size, progress=console.is_terminal
            )
            seconds = time.perf_counter() - start
    console.print(_table(numbers, [name for name in numbers if name.endswith("_precision")]))
    for table in _class_tables(metrics) if args.classwise else ():
        console.print(table)
    console.print(f"{len(dataset)} images in {seconds:.1f} s")
    if args.json is not None:
        report = {
            "model": str(args.model),
            "config": args.config or f"{args.model} (its own)",
            "images": len(dataset),
            "seconds": seconds,
            "metrics": numbers,
        }
        write_atomic(args.json, json.dumps(report, indent=2))
        console.print(f"wrote {args.json}")
    return 0


def _config(args: argparse.Namespace) -> Config:
    from deploykit.training.checkpoint import read_checkpoint
    from deploykit.training.checkpoint_config import migrated, stored_config
    from deploykit.training.config import load_config
    from deploykit.training.engine.overrides import with_data_root, with_environment_data_root
    from deploykit.training.recipes import find_config

    if args.config is not None:
        config = migrated(load_config(find_config(args.config), args.cfg_options))
    elif args.model.suffix.lower() != ".pth":
        raise UsageError(
            f"{args.model} carries no config; name the data set: deploykit test CONFIG {args.model}"
        )
    else:
        meta = read_checkpoint(args.model).get("meta")
        stored = stored_config(
            meta if isinstance(meta, dict) else {}, str(args.model), args.cfg_options
        )
        if stored is None:
            raise ConfigError(
                f"{args.model} carries no config; give one: deploykit test CONFIG {args.model}"
            )
        config = stored
    if args.data_root is None:
        return with_environment_data_root(config)
    return with_data_root(config, args.data_root)


def _test_sections(config: Config) -> tuple[dict[str, Any], Any]:
    for split in ("test", "val"):
        loader, evaluator = config.get(f"{split}_dataloader"), config.get(f"{split}_evaluator")
        if loader and evaluator:
            return loader, evaluator
    raise ConfigError("the config has no test_dataloader with a test_evaluator", config.filename)


def _classwise(evaluator: Any) -> list[dict[str, Any]]:
    entries = [evaluator] if isinstance(evaluator, dict) else list(evaluator)
    measured = "CocoMetric"
    return [
        {**entry, "classwise": True} if str(entry["type"]).endswith(measured) else entry
        for entry in entries
    ]


def _with_proposal_file(evaluator: Any, path: Path) -> list[dict[str, Any]]:
    entries = [evaluator] if isinstance(evaluator, dict) else list(evaluator)
    file = {"output_dir": str(path.parent), "proposals_file": path.name}
    return [*entries, {"type": "DumpProposals", **file}]


def _detector(args: argparse.Namespace, config: Config) -> Detector:
    from deploykit.runtimes.backend import Backend
    from deploykit.runtimes.detector import Detector
    from deploykit.runtimes.pytorch_backend import PyTorchBackend
    from deploykit.training.model_spec import load_model

    backend: Backend | None = None
    if args.model.suffix.lower() == ".pth":
        loaded = load_model(args.model, config, allow_mismatch=args.allow_mismatch)
        backend = PyTorchBackend(
            args.model, device=args.device, num_threads=args.threads, loaded=loaded
        )
    return Detector(
        args.model,
        backend=backend,
        device=args.device,
        score_threshold=0.0,
        num_threads=args.threads,
        batch_size=args.batch_size,
    )


def _table(numbers: dict[str, float], left_out: list[str]) -> Table:
    from rich.table import Table

    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        if name not in left_out:
            table.add_row(name, f"{value:.4f}")
    return table


def _class_tables(metrics: list[Metric]) -> list[Table]:
    from rich.table import Table

    from deploykit.training.evaluation import CocoMetric

    tables = []
    for metric in metrics:
        if not isinstance(metric, CocoMetric):
            continue
        for kind, scores in metric.class_scores.items():
            table = Table("class", title=kind)
            columns = ("objects", "mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
            for column in columns:
                table.add_column(column, justify="right")
            for each in scores:
                values = [f"{getattr(each, column):.4f}" for column in columns[1:]]
                table.add_row(each.name, str(each.objects), *values)
            tables.append(table)
    return tables
