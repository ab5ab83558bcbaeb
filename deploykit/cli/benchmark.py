"""``deploykit benchmark``: what each artefact costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploykit.errors import UsageError

SUMMARY = (
    "Measure the latency of models side by side: percentiles, images per second, the split into "
    "preprocess, inference and postprocess, load time and memory. The models take turns, so that "
    "noise hits all of them alike. Images are decoded beforehand."
)
EXAMPLES = (
    "deploykit benchmark model.onnx",
    "deploykit benchmark model.pth model.onnx --images photos/ --plot latency.png",
    "deploykit benchmark a.onnx b.onnx --batch 1,8 --threads 2 --json latency.json",
    "deploykit benchmark model.onnx model.engine --batch 1,32 --json latency.json",
    "deploykit benchmark dynamic.onnx --shape 320x320,640x640 --min-time 10",
)
_IMAGE_LIMIT = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="a checkpoint (.pth) or an exported model; the first is what others are compared with",
    )
    parser.add_argument("--batch", default="1", metavar="N,...", help="batch sizes (1)")
    parser.add_argument(
        "--shape",
        metavar="HxW,...",
        help="network inputs, for models that take several sizes (default: each model's own)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="image files, folders or glob patterns (default: artificial images)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=_IMAGE_LIMIT,
        metavar="N",
        help=f"hold at most N images in memory, evenly spread ({_IMAGE_LIMIT})",
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds, at least (20)")
    parser.add_argument(
        "--warmup", type=int, default=5, metavar="N", help="warm-up calls per model, at least (5)"
    )
    parser.add_argument(
        "--min-time",
        type=float,
        default=3.0,
        metavar="S",
        help="timed seconds per model, at least (3)",
    )
    parser.add_argument(
        "--max-time",
        type=float,
        default=60.0,
        metavar="S",
        help="end a workload after this many seconds, even before that (60)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of each network and of OpenCV (default: theirs)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="skip load time and memory, which are measured in a process of its own per model",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from deploykit.atomic_file import check_writable
    from deploykit.benchmark import BenchmarkRequest, MeasurementPlan, run_benchmark
    from deploykit.benchmark.workload_images import load_images
    from deploykit.image_selection import select_images
    from deploykit.input_size import parse_input_size

    if args.threads is not None:
        _limit_opencv_threads(args.threads)
    if args.plot is not None:
        from deploykit.benchmark.plot import check_plot_path

        check_plot_path(args.plot)
    for path in (args.json, args.plot):
        if path is not None:
            check_writable(path)
    request = BenchmarkRequest(
        models=tuple(args.models),
        batch_sizes=_batch_sizes(args.batch),
        input_sizes=(
            (None,) if args.shape is None else tuple(map(parse_input_size, args.shape.split(",")))
        ),
        device=args.device,
        num_threads=args.threads,
        plan=MeasurementPlan(
            rounds=args.rounds,
            min_seconds=args.min_time,
            max_seconds=args.max_time,
            warmup_calls=args.warmup,
        ),
        fresh_processes=not args.no_memory,
    )
    images = None if args.images is None else load_images(select_images(args.images, args.limit))
    console = Console()
    with Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("opening the models", total=1)
        report = run_benchmark(
            request,
            images,
            progress=lambda text, done: progress.update(task, description=text, completed=done),
        )
    console.print(report.render())
    if args.json is not None:
        report.write_json(args.json)
        console.print(f"numbers: {args.json}", highlight=False, markup=False, soft_wrap=True)
    if args.plot is not None:
        report.write_plot(args.plot)
        console.print(f"plot: {args.plot}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _batch_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--batch needs numbers such as 1 or 1,8, got '{text}'")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _limit_opencv_threads(threads: int) -> None:
    import cv2

    if threads < 1:
        raise UsageError(f"--threads must be at least 1, got {threads}")
    cv2.setNumThreads(threads)
