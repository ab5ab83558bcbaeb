"""``deploykit zoo``: published models by name."""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from deploykit.zoo import ZooEntry

SUMMARY = """\
List, show and download the models that MMDetection published. A downloaded model is used by its
name, Detector("rtmdet_tiny_8xb32-300e_coco"), or by its file.

Files are kept in $DEPLOYKIT_CACHE/zoo, else $XDG_CACHE_HOME/deploykit/zoo, else
~/.cache/deploykit/zoo."""
EXAMPLES = (
    "deploykit zoo list 'rtmdet*'",
    "deploykit zoo list --min-ap 45 --masks --sort ap",
    "deploykit zoo show rtmdet_tiny_8xb32-300e_coco",
    "deploykit zoo download rtmdet_tiny_8xb32-300e_coco",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list models and their results")
    listing.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="part of a name, or 'ret*_1x_*'"
    )
    listing.add_argument(
        "--min-ap", type=float, metavar="AP", help="only those with this box AP (percent) or more"
    )
    listing.add_argument("--masks", action="store_true", help="only those that find masks")
    listing.add_argument("--dataset", metavar="NAME", help="only those of a data set, e.g. coco")
    listing.add_argument("--downloaded", action="store_true", help="only those that are here")
    listing.add_argument("--sort", choices=("name", "ap"), default="name", help="(name)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    show = actions.add_parser("show", help="show what is known of a model")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="print JSON")
    fetch = actions.add_parser("download", help="fetch the weights of models; print their files")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    fetch.add_argument("--out", type=Path, metavar="DIR", help="where to put them (the cache)")


def run(args: argparse.Namespace) -> int:
    """Run the command; see the module's ``SUMMARY``."""
    if args.action == "list":
        return _list(args)
    return _show(args) if args.action == "show" else _download(args)


def _list(args: argparse.Namespace) -> int:
    from deploykit.zoo import zoo_entries, zoo_file

    pattern = args.pattern.lower()
    if not set(pattern) & set("*?["):
        pattern = f"*{pattern}*"
    chosen = [
        entry
        for entry in zoo_entries().values()
        if fnmatch.fnmatchcase(entry.name.lower(), pattern)
        and (args.min_ap is None or (entry.box_ap or 0.0) >= args.min_ap)
        and (not args.masks or entry.mask_ap is not None)
        and (args.dataset is None or args.dataset.lower() in entry.dataset.lower())
        and (not args.downloaded or zoo_file(entry).is_file())
    ]
    chosen.sort(key=lambda entry: (-(entry.box_ap or 0.0) if args.sort == "ap" else 0, entry.name))
    if args.json:
        print(json.dumps([_facts(entry) for entry in chosen], indent=2))
        return 0
    if not chosen:
        raise UsageError(f"no model of the zoo is like '{args.pattern}' and fits the other options")
    # Plain text: a table of this length takes rich a third of a second.
    width = max(len(entry.name) for entry in chosen)
    print(f"{'name':<{width}}  box AP  mask AP  data set")
    for entry in chosen:
        row = f"{entry.name:<{width}}  {_ap(entry.box_ap):>6}  {_ap(entry.mask_ap):>7}"
        print(f"{row}  {entry.dataset}")
    return 0


def _ap(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _facts(entry: ZooEntry) -> dict[str, object]:
    return asdict(entry) | {"file": entry.file_name, "hash_prefix": entry.hash_prefix}


def _show(args: argparse.Namespace) -> int:
    from deploykit.zoo import find_entry, zoo_file

    entry = find_entry(args.name)
    if args.json:
        print(json.dumps(_facts(entry), indent=2))
        return 0
    file = zoo_file(entry)
    rows = {
        "name": entry.name,
        "config": entry.config,
        "weights": entry.url,
        "SHA-256": f"{entry.hash_prefix}..." if entry.hash_prefix else "not published",
        "data set": entry.dataset or "unknown",
        **{name: f"{value:g}" for name, value in entry.results.items()},
        "file": f"{file} ({'downloaded' if file.is_file() else 'not downloaded'})",
    }
    for name, value in rows.items():
        print(f"{name:<10} {value}")
    return 0


def _download(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from deploykit.zoo import download, find_entry

    console = Console(stderr=True)
    for entry in [find_entry(name) for name in args.names]:
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            file = download(entry, args.out, _shown_in(bar, entry.file_name))
        print(file)
    return 0


def _shown_in(bar: RichProgress, name: str) -> Callable[[int, int | None], None]:
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
