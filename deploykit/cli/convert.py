"""``deploykit convert``: export a model and prove that the result detects the same."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli import convert_tensorrt, precision_arguments
from deploykit.errors import UsageError
from deploykit.optional_imports import import_optional

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.exporters.conversion_parity import ConversionParity
    from deploykit.exporters.onnx_exporter import ExportedModel

SUMMARY = (
    "Export a checkpoint to ONNX, or build a TensorRT engine of a checkpoint or of an ONNX file. "
    "What is written takes uint8 RGB images [B, H, W, 3], normalises them itself and gives final "
    "detections; everything a runtime needs is in its metadata. PyTorch and ONNX Runtime are "
    "compared as part of the conversion: when they differ by more than the tolerances, nothing is "
    "written and the exit code is 1."
)
EXAMPLES = (
    "deploykit convert model.pth --to onnx",
    "deploykit convert model.pth --to onnx --out small.onnx --shape 320x320 --nms-pre 1000",
    "deploykit convert model.pth --to onnx --dynamic 320x320:640x640:1280x1280 --batch 1:4:16",
    "deploykit convert model.pth --to onnx --parity-images photos/",
    "deploykit convert model.pth --to onnx --precision int8 --calibration-images photos/",
    *convert_tensorrt.EXAMPLES,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="MODEL",
        help="a .pth file, or with --to tensorrt an .onnx file of ours",
    )
    parser.add_argument(
        "--to", choices=("onnx", "tensorrt"), required=True, help="the format to write"
    )
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="a config or a shipped recipe to use in place of the config in the checkpoint",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file to write (MODEL with .onnx or .engine)"
    )
    shapes = parser.add_argument_group(
        "input shapes", "by default what the config's test pipeline produces, one image at a time"
    )
    shapes.add_argument("--shape", metavar="HxW", help="one size in pixels, such as 640x640")
    shapes.add_argument(
        "--dynamic", metavar="HxW:HxW:HxW", help="smallest, optimal and largest size"
    )
    shapes.add_argument("--batch", metavar="N|MIN:OPT:MAX", help="images at a time (1)")
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--lowering",
        metavar="NAME",
        help="how NMS and RoIAlign are written. standard: ONNX's own operators, for ONNX Runtime "
        "and OpenVINO; primitive: plain arithmetic, for engines without those operators, such as "
        "TensorRT-RTX; plugin: one node each, for TensorRT with deploykit's plugins, with the "
        "primitive form as its function body (standard for onnx, plugin for tensorrt, primitive "
        "for its flavour rtx)",
    )
    graph.add_argument(
        "--nms-pre",
        type=int,
        metavar="N",
        help="candidates per feature level before NMS, in place of the config's; fewer are faster "
        "and can change the detections of crowded images",
    )
    graph.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="candidates at or below this score are dropped in the graph, in place of the config's",
    )
    graph.add_argument(
        "--max-per-img",
        type=int,
        metavar="K",
        help="detections per image, in place of the config's",
    )
    precision_arguments.add_arguments(parser)
    convert_tensorrt.add_arguments(parser)
    parity = parser.add_argument_group("parity with PyTorch")
    parity.add_argument(
        "--parity-images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, folders or patterns, of which up to 16 are used (default: the config's "
        "validation images if they exist, else drawn ones)",
    )
    parity.add_argument(
        "--box-tolerance",
        type=float,
        default=0.1,
        metavar="PX",
        help="largest box difference in pixels of the network input (0.1)",
    )
    parity.add_argument(
        "--score-tolerance",
        type=float,
        default=1e-3,
        metavar="S",
        help="largest score difference (0.001)",
    )
    parity.add_argument(
        "--mask-tolerance",
        type=float,
        default=0.001,
        metavar="P",
        help="largest difference of mask probabilities (0.001)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 when the parity check failed.
    """
    from rich.console import Console
    from rich.markup import escape

    from deploykit.atomic_file import check_writable

    console = Console()
    if args.to == "tensorrt":
        return convert_tensorrt.run(args, console, partial(_export_and_print, args, console))
    convert_tensorrt.refuse_arguments(args)
    output = args.out or args.checkpoint.with_suffix(".onnx")
    check_writable(output)
    exported = _export_and_print(args, console, output, "standard", output)
    if exported is None:
        return 1
    spec = exported.spec
    size = exported.path.stat().st_size / 2**20
    console.print(
        f"[bold green]{escape(str(exported.path))}[/] ({size:.1f} MiB, {spec.architecture}, "
        f"{spec.precision}, batch {spec.input.batch}, height {spec.input.height}, width "
        f"{spec.input.width})",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _export_and_print(
    args: argparse.Namespace, console: Console, output: Path, lowering: str, wanted: Path
) -> ExportedModel | None:
    """Export the checkpoint to ONNX and print what was measured.

    Args:
        args: The arguments of the command.
        console: Where to print.
        output: The ONNX file to write.
        lowering: What to use where the arguments name none.
        wanted: The file that the user waits for, to name when it is not written.

    Returns:
        The model, or ``None`` when a check failed.
    """
    import_optional("torch", "export", "Exporting a checkpoint")
    import_optional("onnxscript", "export", "Exporting a checkpoint")
    from deploykit.exporters.onnx_exporter import ConversionParityError
    from deploykit.exporters.precision.cost import PrecisionError

    try:
        exported = _export(args, output, args.lowering or lowering, _Steps(console))
    except ConversionParityError as error:
        _print_parity(console, error.parity)
        _print_line(console, f"not written: {wanted}", "bold red")
        if error.parity.nothing_found:
            console.print("Name images with objects in them with --parity-images.")
        return None
    except PrecisionError as error:
        precision_arguments.print_cost(console, error.cost)
        _print_line(console, f"not written: {wanted}", "bold red")
        _print_line(console, str(error), "red")
        return None
    _print_parity(console, exported.parity)
    if exported.cost is not None:
        precision_arguments.print_cost(console, exported.cost)
    return exported


def _export(args: argparse.Namespace, output: Path, lowering: str, steps: _Steps) -> ExportedModel:
    from deploykit.exporters.onnx_exporter import ParityOptions, export_onnx
    from deploykit.exporters.shape_request import ShapeRequest
    from deploykit.parity import ParityTolerances

    tolerances = ParityTolerances(
        box=args.box_tolerance, score=args.score_tolerance, mask_probability=args.mask_tolerance
    )
    return export_onnx(
        args.checkpoint,
        output,
        config=args.config,
        shape=ShapeRequest.parse(args.shape, args.dynamic, args.batch or "1"),
        lowering=lowering,
        test_options=_test_options(args),
        precision=precision_arguments.precision_options(args),
        parity=ParityOptions(args.parity_images, tolerances),
        step=steps,
    )


def _print_line(console: Console, text: str, style: str) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


class _Steps:
    """Shows the step under way and how long each one took."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.console.status(name):
            yield
        seconds = time.perf_counter() - start
        self.console.print(f"{name:<48} {seconds:6.1f} s", highlight=False)


def _test_options(args: argparse.Namespace) -> dict[str, float]:
    options = {
        "nms_pre": args.nms_pre,
        "score_thr": args.score_threshold,
        "max_per_img": args.max_per_img,
    }
    for name in ("nms_pre", "max_per_img"):
        if options[name] is not None and options[name] < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {options[name]}")
    if args.score_threshold is not None and not 0 <= args.score_threshold < 1:
        raise UsageError(f"--score-threshold must be within 0..1, got {args.score_threshold}")
    return {name: value for name, value in options.items() if value is not None}


def _print_parity(console: Console, parity: ConversionParity) -> None:
    """Print one line per run, and the whole report of those that failed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"Parity with PyTorch on {parity.images}"
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("input", no_wrap=True)
    for column in ("batch", "images", "matched", "lone", "tied", "box px", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for run, report in parity.runs:
        numbers = report.summary()
        table.add_row(
            run.size_text,
            str(run.batch),
            str(run.images),
            *(str(numbers[key]) for key in ("matched", "unmatched", "explained")),
            f"{numbers['max_box_error_px']:.1e}",
            f"{numbers['max_score_error']:.1e}",
            Text("pass", "green") if report.passed else Text("FAIL", "bold red"),
        )
    console.print(table)
    summary = parity.summary()
    if summary["min_pasted_mask_iou"] is not None:
        console.print(
            f"masks: largest probability error {summary['max_mask_probability_error']:.1e}, "
            f"smallest IoU when pasted {summary['min_pasted_mask_iou']:.4f}",
            highlight=False,
        )
    if summary["explained"]:
        console.print("tied: detections that differ where rounding decides (docs/parity.md)")
    for run, report in parity.runs:
        if not report.passed:
            console.print(f"{run}:", style="bold")
            console.print(report.render())
