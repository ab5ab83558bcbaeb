"""``deploykit convert --to tensorrt``: a checkpoint or an ONNX file to an engine."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.optional_imports import import_optional

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.engine_spec import BuildFlags
    from deploykit.exporters.onnx_exporter import ExportedModel
    from deploykit.exporters.tensorrt.builder import BuildOptions
    from deploykit.exporters.tensorrt.engine_exporter import ExportedEngine

EXAMPLES = (
    "deploykit convert model.pth --to tensorrt --flavour rtx",
    "deploykit convert model.pth --to tensorrt --dynamic 320x320:640x640:1280x1280 --batch 1:4:16",
    "deploykit convert primitive.onnx --to tensorrt --flavour rtx --compute-capability 8.6",
)
_HEAVY_PACKAGES = "Building an engine"

# Writes the ONNX file of the checkpoint to a path, in a lowering unless another is asked for, on
# the way to a file that the user waits for; ``None`` when a check failed.
ExportGraph = Callable[[Path, str, Path], "ExportedModel | None"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that are for TensorRT alone."""
    group = parser.add_argument_group("TensorRT engines (--to tensorrt)")
    group.add_argument(
        "--flavour",
        choices=("tensorrt", "rtx"),
        help="tensorrt: an engine for the GPU of this machine, with our plugins; rtx: an engine of "
        "TensorRT-RTX for any GeForce or RTX GPU, built without one (what is installed)",
    )
    group.add_argument(
        "--workspace", metavar="SIZE", help="limit of the scratch memory, such as 4GiB"
    )
    group.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="keeps timings from build to build"
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="later versions of TensorRT load the engine, too (tensorrt)",
    )
    group.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="GPUs of compute capability 8.0 and newer load the engine, too (tensorrt)",
    )
    group.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="of a GPU to build for, such as 8.6; again for each further one (rtx; all)",
    )
    group.add_argument(
        "--tf32", action="store_true", help="let fp32 convolutions round their inputs to TF32"
    )
    group.add_argument(
        "--keep-onnx", action="store_true", help="keep the graph of a checkpoint as .onnx"
    )
    group.add_argument(
        "--no-cache", action="store_true", help="neither use nor keep engines in the cache"
    )


def refuse_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that are for TensorRT alone.

    Raises:
        UsageError: One was given.
    """
    for name in (
        *("flavour", "workspace", "timing_cache", "version_compatible", "hardware_compatible"),
        *("compute_capability", "tf32", "keep_onnx", "no_cache"),
    ):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for --to tensorrt")


def run(args: argparse.Namespace, console: Console, export_graph: ExportGraph) -> int:
    """Run the command.

    Args:
        args: Its arguments.
        console: Where to print.
        export_graph: Makes the ONNX file of the checkpoint.

    Returns:
        0, or 1 when the parity check failed.
    """
    import_optional("onnx", "export", _HEAVY_PACKAGES)
    from deploykit.atomic_file import check_writable
    from deploykit.engine_spec import engine_spec_path
    from deploykit.exporters.tensorrt.engine_exporter import LOWERINGS, export_engine
    from deploykit.exporters.tensorrt.shape_choice import ShapeChoice

    source = args.checkpoint
    options = _build_options(args)
    output = args.out or source.with_suffix(".engine")
    if output.suffix != ".engine":
        raise UsageError(f"the output must be an .engine file, got '{output}'")
    check_writable(output)
    check_writable(engine_spec_path(output))
    if source.suffix.lower() == ".onnx":
        _refuse_graph_arguments(args)
        shapes = ShapeChoice.parse(args.shape, args.dynamic, args.batch)
        with _progress(options, console) as reporting:
            exported = export_engine(
                source, output, reporting, shapes=shapes, precision=args.precision
            )
    else:
        if args.lowering == "standard":
            raise UsageError(
                f"--lowering standard is for ONNX Runtime; leave it out, or take "
                f"{LOWERINGS[options.flavour]}"
            )
        with _graph_path(args, output) as graph:
            if export_graph(graph, LOWERINGS[options.flavour], output) is None:
                return 1
            with _progress(options, console) as reporting:
                exported = export_engine(graph, output, reporting)
    _print_engine(console, exported, source)
    return 0


def _build_options(args: argparse.Namespace) -> BuildOptions:
    """Return how to build, checked before anything that takes time."""
    from deploykit.engine_spec import BuildFlags
    from deploykit.exporters.tensorrt.build_flags import check_flags, parse_bytes
    from deploykit.exporters.tensorrt.builder import BuildOptions
    from deploykit.exporters.tensorrt.engine_cache import EngineCache, cache_folder
    from deploykit.tensorrt_flavour import default_flavour, load_flavour

    flavour = args.flavour or default_flavour()
    module = load_flavour(flavour)
    flags: BuildFlags = BuildFlags(
        workspace=parse_bytes("--workspace", args.workspace) if args.workspace else None,
        version_compatible=args.version_compatible,
        hardware_compatible=args.hardware_compatible,
        compute_capabilities=tuple(dict.fromkeys(args.compute_capability)),
        tf32=args.tf32,
    )
    check_flags(flags, flavour, module, args.timing_cache is not None)
    cache = None if args.no_cache else EngineCache(cache_folder())
    return BuildOptions(flavour, flags, args.timing_cache, cache)


def _refuse_graph_arguments(args: argparse.Namespace) -> None:
    """Refuse what changes the graph when there is no checkpoint to make another one from."""
    for name in (
        *("config", "lowering", "nms_pre", "score_threshold", "max_per_img", "parity_images"),
        *("keep_onnx", "keep_fp32", "fp32_grouped_convolutions", "calibration_images"),
        "max_map_drop",
    ):
        if getattr(args, name) not in (None, [], False):
            raise UsageError(
                f"--{name.replace('_', '-')} is for checkpoints; {args.checkpoint} is a graph that "
                "was exported already. Give the checkpoint in its place"
            )


@contextmanager
def _graph_path(args: argparse.Namespace, output: Path) -> Iterator[Path]:
    """Yield where to write the ONNX file on the way from a checkpoint to an engine."""
    if args.keep_onnx:
        yield output.with_suffix(".onnx")
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        yield Path(folder) / f"{output.stem}.onnx"


@contextmanager
def _progress(options: BuildOptions, console: Console) -> Iterator[BuildOptions]:
    """Yield options that report to a progress bar."""
    from dataclasses import replace

    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<48}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        bars: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total)
            progress.update(bars[phase], completed=done, total=max(total, 1))

        yield replace(options, report=report)


def _print_engine(console: Console, exported: ExportedEngine, source: Path) -> None:
    from rich.markup import escape

    from deploykit.tensorrt_flavour import TITLES

    spec = exported.spec
    for warning in exported.warnings:
        console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if exported.cached is not None:
        console.print(
            f"built before, taken from {exported.cached}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(f"{'build engine':<48} {spec.build_log.seconds:6.1f} s", highlight=False)
    shapes = spec.model.input
    counts = sorted(spec.precision_used.types.items(), key=lambda item: -item[1])
    types = ", ".join(f"{count} {name}" for name, count in counts)
    whence = {"engine": "layers of the engine", "graph": "results in the graph"}
    console.print(
        f"[bold green]{escape(str(exported.path))}[/] ({spec.engine_bytes / 2**20:.1f} MiB, "
        f"{TITLES[spec.flavour]} {spec.tensorrt_version}, {spec.model.architecture}, "
        f"batch {shapes.batch}, height {shapes.height}, width {shapes.width})\n"
        f"{whence[spec.precision_used.source]}: {types}\n"
        "The engine itself has not been run: what was compared is the graph it was built from. "
        f"Where it will run, compare with: deploykit parity {escape(str(source))} "
        f"{escape(str(exported.path))}",
        highlight=False,
        soft_wrap=True,
    )
