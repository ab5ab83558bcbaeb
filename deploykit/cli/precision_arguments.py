"""The options of ``deploykit convert`` about precision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.exporters.precision.cost import PrecisionCost
    from deploykit.exporters.precision.options import PrecisionOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    group = parser.add_argument_group(
        "precision",
        "fp16 and int8 are written into the graph; inputs, decoding and NMS stay float32. What it "
        "costs is measured: the drift of detections, and mAP where the config's validation set is "
        "on disk",
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        help="what the network computes in; int8: backbone and neck, heads stay float32 (fp32)",
    )
    group.add_argument(
        "--keep-fp32",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="modules, nodes or operators that stay float32, such as 'bbox_head.*' or 'Resize'; "
        "values near the end of float16 keep their nodes without being asked",
    )
    group.add_argument(
        "--fp32-grouped-convolutions",
        action="store_true",
        help="keep depthwise and grouped convolutions in float32: some TensorRT 11 releases have "
        "no float16 kernel for them",
    )
    group.add_argument(
        "--calibration",
        default="percentile",
        choices=("entropy", "percentile", "minmax"),
        help="how int8 ranges follow from the values seen (percentile)",
    )
    group.add_argument(
        "--calibration-images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, folders or patterns to measure ranges on (default: images of the config's "
        "training set, else of its validation set, if they are on disk)",
    )
    group.add_argument(
        "--max-calibration-images", type=int, default=64, metavar="N", help="at most so many (64)"
    )
    group.add_argument(
        "--max-map-drop",
        type=float,
        metavar="X",
        help="largest loss of mAP on the validation set; more fails and writes nothing (0.002 for "
        "fp16, 0.01 for int8)",
    )


def precision_options(args: argparse.Namespace) -> PrecisionOptions:
    """Return what the arguments ask for.

    Raises:
        UsageError: A value is out of range.
    """
    from deploykit.exporters.precision.options import PrecisionOptions
    from deploykit.exporters.precision.selection import KeepFloat32

    if args.max_map_drop is not None and not 0 <= args.max_map_drop <= 1:
        raise UsageError(f"--max-map-drop must be within 0..1, got {args.max_map_drop}")
    # Operators have CamelCase names without dots; everything else is a pattern of names.
    operators = [name for name in args.keep_fp32 if name.isalnum() and name[:1].isupper()]
    patterns = [name for name in args.keep_fp32 if name not in operators]
    return PrecisionOptions(
        args.precision or "fp32",
        KeepFloat32(operators, patterns, args.fp32_grouped_convolutions),
        args.calibration,
        args.calibration_images,
        args.max_calibration_images,
        args.max_map_drop,
    )


def print_cost(console: Console, cost: PrecisionCost) -> None:
    """Print what a lower precision did and costs."""
    record = cost.record
    kept = record.summary()["kept_in_fp32"]
    reasons = "".join(f"; {count} kept: {why}" for why, count in sorted(kept.items()))
    console.print(
        f"{record.precision}: {sum(record.converted.values())} nodes converted{reasons}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    drift = cost.drift.summary()
    console.print(
        f"drift on {drift['images']} images: {drift['matched']} detections matched, "
        f"{drift['unmatched']} not; box up to {drift['max_box_error_px']:.2g} px, score up to "
        f"{drift['max_score_error']:.2g}",
        highlight=False,
        soft_wrap=True,
    )
    if cost.accuracy is None:
        console.print(
            "mAP was not measured: the config's validation set is not on disk",
            style="yellow",
            soft_wrap=True,
        )
        return
    for name, drop in cost.accuracy.drops.items():
        before, after = cost.accuracy.reference[name], cost.accuracy.candidate[name]
        console.print(
            f"{name}: {before:.4f} in fp32, {after:.4f} in {record.precision} "
            f"({-drop:+.4f}, allowed -{cost.accuracy.limit:g}) on {cost.accuracy.images} images",
            highlight=False,
            soft_wrap=True,
        )
