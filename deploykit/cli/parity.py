"""``deploykit parity``: do two artefacts find the same objects?"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from deploykit.errors import UsageError

SUMMARY = (
    "Run two models on the same images and compare their detections one by one: boxes, scores, "
    "classes, what only one of them found, and the raw outputs. Exit code 0 when they agree within "
    "the tolerances, 1 when they do not, 2 when the input was wrong."
)
EXAMPLES = (
    "deploykit parity model.pth model.onnx --images photos/",
    "deploykit parity model.pth model.onnx --images a.jpg b.jpg --json parity.json",
    "deploykit parity model.pth model.onnx --images 'photos/*.png' --batch-size 4 --limit 50",
    "deploykit parity model.onnx model.engine --images photos/ --score-tolerance 0.01",
    "deploykit parity a.onnx b.onnx --images photos/ --box-tolerance 1 --score-tolerance 0.01",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "reference", type=Path, metavar="REFERENCE", help="the model that is taken to be right"
    )
    parser.add_argument(
        "candidate", type=Path, metavar="CANDIDATE", help="the model that is judged"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        required=True,
        metavar="PATH",
        help="image files, folders or glob patterns",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, evenly spread")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="batch size of the candidate; above 1 its rows are also compared with its own results "
        "at batch size 1 (default: 1, or the smallest it takes)",
    )
    parser.add_argument(
        "--shape",
        metavar="HxW",
        help="give both models this network input, for models that take several sizes",
    )
    parser.add_argument(
        "--box-tolerance",
        type=float,
        default=0.1,
        metavar="PX",
        help="largest box difference in pixels of the network input (0.1)",
    )
    parser.add_argument(
        "--score-tolerance",
        type=float,
        default=1e-3,
        metavar="S",
        help="largest score difference (0.001)",
    )
    parser.add_argument(
        "--mask-tolerance",
        type=float,
        default=0.001,
        metavar="P",
        help="largest difference of mask probabilities (0.001)",
    )
    parser.add_argument(
        "--mask-iou",
        type=float,
        default=0.99,
        metavar="IOU",
        help="smallest IoU of two masks, as the network gives them and pasted (0.99)",
    )
    parser.add_argument(
        "--explained",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="largest share of detections that may differ where rounding decides, as runs of the "
        "reference with noise show; 0: none, and no such runs (0.01)",
    )
    parser.add_argument(
        "--score-margin",
        type=float,
        metavar="S",
        help="a detection this near to the threshold may be missing on the other side "
        "(default: the score tolerance)",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.05,
        metavar="S",
        help="score from which detections count (0.05)",
    )
    parser.add_argument(
        "--allow-empty", action="store_true", help="pass when neither model found anything"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of each model (default: all cores)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the full report")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from deploykit.atomic_file import check_writable
    from deploykit.image_selection import select_images
    from deploykit.input_size import parse_input_size
    from deploykit.parity import ParityTolerances, compare
    from deploykit.runtimes.detector import Detector

    if args.batch_size is not None and args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}")
    tolerances = ParityTolerances(
        box=args.box_tolerance,
        score=args.score_tolerance,
        count_threshold=args.score,
        score_margin=args.score_margin,
        mask_probability=args.mask_tolerance,
        mask_iou=args.mask_iou,
        explained=args.explained,
        allow_empty=args.allow_empty,
    )
    if args.json is not None:
        check_writable(args.json)
    input_size = None if args.shape is None else parse_input_size(args.shape)
    images = select_images(args.images, args.limit)
    console = Console()
    columns = TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ExitStack() as stack:
        reference, candidate = (
            stack.enter_context(
                Detector(path, device=args.device, input_size=input_size, num_threads=args.threads)
            )
            for path in (args.reference, args.candidate)
        )
        progress = stack.enter_context(
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        )
        task = progress.add_task("", total=len(images))
        report = compare(
            reference,
            candidate,
            images,
            tolerances,
            args.batch_size,
            names=(str(args.reference), str(args.candidate)),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(report.render())
    if args.json is not None:
        report.write_json(args.json)
        console.print(f"report: {args.json}", highlight=False, markup=False, soft_wrap=True)
    return 0 if report.passed else 1
