"""``deploykit coverage``: which configs of a folder can be used, and what the rest lacks."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploykit.optional_imports import import_optional

SUMMARY = """\
Try every config of a folder: read it, build its model (without memory for the weights), count its
parameters, and compare the layout of its weights with what is known of it.

--record keeps the results as JSON. What was exported is kept there, too, while the model stays the
same."""
EXAMPLES = (
    "deploykit coverage configs/",
    "deploykit coverage configs/ --record coverage.json --table coverage.md",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of configs (*.py)")
    parser.add_argument(
        "--layouts",
        type=Path,
        metavar="JSON",
        help="digests of the weights' names and shapes by config, to compare with",
    )
    parser.add_argument(
        "--record", type=Path, metavar="JSON", help="merge the results into this file"
    )
    parser.add_argument("--table", type=Path, metavar="MD", help="write them as a page of Markdown")


def run(args: argparse.Namespace) -> int:
    """Run the command; see the module's ``SUMMARY``."""
    import_optional("torch", "train", "Building models")
    from rich.console import Console
    from rich.progress import Progress

    from deploykit.atomic_file import check_writable, write_atomic
    from deploykit.training import model_coverage
    from deploykit.training.model_coverage_table import coverage_page, totals

    for output in (args.record, args.table):
        if output is not None:
            check_writable(output)
    expected = model_coverage.read_layouts(args.layouts) if args.layouts else {}
    earlier = model_coverage.read_record(args.record) if args.record else {}
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("configs")
        results = model_coverage.sweep(
            args.folder,
            expected,
            earlier,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    for name in sorted(results):
        found = results[name]
        state = f"{found.parameters / 1e6:.1f} M" if found.built else found.reason
        console.print(f"{name}: {found.detector or '-'}: {state} {found.layout_verdict}".rstrip())
    console.print(", ".join(f"{count} {name}" for name, count in totals(results).items()))
    if args.record is not None:
        write_atomic(args.record, model_coverage.record_text(results))
    if args.table is not None:
        write_atomic(args.table, coverage_page(results))
    return 0
