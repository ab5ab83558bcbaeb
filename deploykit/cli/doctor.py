"""``deploykit doctor``: what is installed, what works, what to do about the rest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.doctor import Finding

SUMMARY = (
    "Try everything that deploykit can use on this machine, each in its own process: libraries "
    "are loaded and do a small piece of work, execution providers run a model, TensorRT builds an "
    "engine and, where there is a GPU, runs it. Says what is missing and how to get it. Exit code "
    "1 when something is installed but does not work."
)
EXAMPLES = ("deploykit doctor", "deploykit doctor --json doctor.json")

_MARKS = {"works": ("ok", "green"), "absent": ("-", "dim"), "failed": ("FAILED", "bold red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings to a file")


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0, or 1 when something that is installed does not work.
    """
    from dataclasses import asdict

    from rich.console import Console

    from deploykit.atomic_file import check_writable, write_atomic
    from deploykit.benchmark.machine import describe_machine
    from deploykit.doctor import examine
    from deploykit.doctor.probes import all_probes

    if args.json is not None:
        check_writable(args.json)
    console = Console(highlight=False, soft_wrap=True)
    machine = describe_machine()
    console.print(f"{machine.cpu}, {machine.usable_cores:g} cores, {machine.system}", markup=False)
    console.print(
        f"{machine.python}; " + ", ".join(f"{k} {v}" for k, v in machine.packages.items()),
        markup=False,
    )
    findings = examine(all_probes(), lambda finding: _print(console, finding))
    if args.json is not None:
        report = {"machine": asdict(machine), "findings": [each.to_dict() for each in findings]}
        write_atomic(args.json, json.dumps(report, indent=2))
        console.print(f"wrote {args.json}", markup=False)
    return _verdict(console, findings)


def _print(console: Console, finding: Finding) -> None:
    from rich.text import Text

    word, style = _MARKS[finding.status]
    console.print(Text.assemble((f"{word:>6}", style), f"  {finding.name}: {finding.detail}"))
    if finding.advice:
        console.print(Text(f"          {finding.advice}", "cyan"))


def _verdict(console: Console, findings: list[Finding]) -> int:
    failed = [finding.name for finding in findings if finding.status == "failed"]
    lacking = [each.name for each in findings if each.needed and each.status != "works"]
    if lacking:
        console.print(
            f"deploykit cannot detect anything without: {', '.join(lacking)}", style="red"
        )
    elif failed:
        console.print(f"does not work: {', '.join(failed)}", style="red")
    else:
        console.print("everything that is installed works", style="green")
    return 1 if failed or lacking else 0
