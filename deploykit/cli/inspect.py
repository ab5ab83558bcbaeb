"""``deploykit inspect``: what an artefact says about itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from deploykit.inspection import Inspection
    from deploykit.spec import ModelSpec

SUMMARY = (
    "Show what is in a model file: its spec, classes, inputs and outputs, the parity record of its "
    "conversion, operators and weights. Nothing in the file is run."
)
EXAMPLES = (
    "deploykit inspect model.onnx",
    "deploykit inspect model.pth",
    "deploykit inspect model.pth --fit",
    "deploykit inspect model.engine",
    "deploykit inspect model.onnx --json",
)
_SHOWN_CLASSES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a .pth, .onnx or .engine file")
    parser.add_argument(
        "--fit",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="list the weights of a .pth that a model lacks, or has not, or has in another shape: "
        "that of a config or recipe, by default of the config in the file",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from rich.console import Console
    from rich.text import Text

    from deploykit.inspection import inspect_model

    found = inspect_model(args.file, args.fit)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    console = Console()
    console.print(_rows(found.path, _file_rows(found)))
    if found.spec is None:
        console.print(Text(f"no model spec: {found.missing_spec}", style="yellow"))
    else:
        console.print(_rows("Model spec", _spec_rows(found.spec)))
        if found.spec.lowering != "eager":
            console.print(_rows("Parity with the checkpoint", _parity_rows(found.spec.parity)))
    if found.inputs:
        tensors = [("input", value) for value in found.inputs]
        tensors += [("output", value) for value in found.outputs]
        rows = {
            f"{kind} {value.name}": f"{value.dtype} [{', '.join(map(str, value.shape))}]"
            for kind, value in tensors
        }
        console.print(_rows("Graph", rows))
    if found.operators:
        total = sum(found.operators.values())
        histogram = ", ".join(f"{count} {name}" for name, count in found.operators.items())
        console.print(_rows("Operators", {str(total): histogram}))
    return 0


def _rows(title: str, rows: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False, box=None)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(str(value)))
    return table


def _file_rows(found: Inspection) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "kind": found.kind,
        "size": f"{found.size / 2**20:.2f} MiB",
        "sha256": found.sha256,
    }
    if found.parameters is not None:
        rows["parameters"] = f"{found.parameters:,}"
    for name, value in found.facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value != "":
            rows[name] = value
    return rows


def _spec_rows(spec: ModelSpec) -> dict[str, Any]:
    inputs = spec.input
    shown = ", ".join(spec.classes[:_SHOWN_CLASSES])
    more = len(spec.classes) - _SHOWN_CLASSES
    padding = f"multiples of {inputs.divisor}"
    if inputs.pad_size is not None:
        padding = f"{inputs.pad_size[0]}x{inputs.pad_size[1]} (height x width)"
    return {
        "architecture": spec.architecture,
        "classes": f"{len(spec.classes)}: {shown}" + (f", and {more} more" if more > 0 else ""),
        "precision": spec.precision,
        "lowering": spec.lowering,
        "lowering limits": _limits_text(spec.lowering_limits),
        "batch": inputs.batch,
        "height": f"{inputs.height} (multiples of {inputs.divisor})",
        "width": f"{inputs.width} (multiples of {inputs.divisor})",
        "resize": f"{inputs.resize} to {inputs.scale[0]}x{inputs.scale[1]} (width x height), "
        f"{inputs.interpolation}",
        "padding": f"to {padding}, RGB {inputs.pad_value}",
        "detections": f"up to {spec.output.max_per_img} an image, scores from "
        f"{spec.score_threshold} by default",
        "checkpoint sha256": spec.checkpoint_sha256 or "not recorded",
        "config sha256": spec.config_sha256 or "not recorded",
        "written by": ", ".join(f"{name} {value}" for name, value in spec.versions.items()),
    }


def _limits_text(limits: dict[str, int]) -> str:
    return ", ".join(f"{name} {limit}" for name, limit in limits.items()) or "none"


def _parity_rows(parity: dict[str, Any] | None) -> dict[str, Any]:
    if parity is None:
        return {"measured": "no"}
    rows = {
        "verdict": "pass" if parity.get("passed") else "FAIL",
        "images": parity.get("image_source", parity.get("images", "?")),
        "max box error": f"{parity.get('max_box_error_px', float('nan')):.2e} px",
        "max score error": f"{parity.get('max_score_error', float('nan')):.2e}",
    }
    for run in parity.get("runs", ()):
        size = run.get("input_size")
        name = f"{size[0]}x{size[1]}" if size else "pipeline"
        rows[f"input {name}, batch {run.get('batch_size')}"] = (
            f"{run.get('matched')} matched, {run.get('unmatched')} unmatched in "
            f"{run.get('images')} images"
        )
    return rows
