"""``deploykit config``: print a resolved config and where each key was set."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from deploykit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.training.config import Config, Origin

SUMMARY = (
    "Print a config with its bases and options merged in, and with --origins the file and line "
    "that set each key. The config is read, not run."
)
EXAMPLES = (
    "deploykit config rtmdet_tiny",
    "deploykit config rtmdet_tiny --key model.backbone --origins",
    "deploykit config rtmdet_tiny --cfg-options model.bbox_head.num_classes=3 --format json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", metavar="FILE", help="a config, or the name of a shipped recipe")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override keys, e.g. model.backbone.deepen_factor=0.33 train_pipeline.0.prob=0.5",
    )
    parser.add_argument("--key", help="print only this part, e.g. model.backbone")
    parser.add_argument(
        "--origins", action="store_true", help="print the file and line that set each key"
    )
    parser.add_argument(
        "--format", choices=("py", "json"), default="py", help="print Python or JSON (default: py)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the config."""
    from deploykit.training.config import load_config
    from deploykit.training.recipes import find_config

    config = load_config(find_config(args.config), args.cfg_options)
    value = select(config, args.key) if args.key else dict(config)
    if args.origins and args.format == "json":
        _print_code(_json(_origins_by_key(config, value, args.key or "")), "json")
    elif args.origins:
        _print_rows(list(_rows(config, value, args.key or "")))
    elif args.format == "json":
        _print_code(_json(value), "json")
    elif args.key:
        from deploykit.training.config import render

        _print_code(render(value), "python")
    else:
        _print_code(config.dumps().rstrip("\n"), "python")
    return 0


def select(config: Config, key: str) -> Any:
    """Return the part of a config at a dotted key.

    Args:
        config: The config.
        key: Keys and indices joined by dots, e.g. ``"train_pipeline.0.type"``.

    Raises:
        ConfigError: There is no such part; the message says what there is instead.
    """
    value: Any = config
    done: list[str] = []
    for part in key.split("."):
        where = f"'{'.'.join(done)}'" if done else "the config"
        if isinstance(value, dict):
            names = {str(name): name for name in value}
            if part not in names:
                raise ConfigError(f"{where} has no key '{part}'; it has: {', '.join(names)}")
            value = value[names[part]]
        elif isinstance(value, list | tuple):
            if not value:
                raise ConfigError(f"{where} is empty")
            if not part.isdecimal() or int(part) >= len(value):
                raise ConfigError(f"{where} has the indices 0 to {len(value) - 1}, not '{part}'")
            value = value[int(part)]
        else:
            raise ConfigError(f"{where} is {value!r:.80} and has no key '{part}'")
        done.append(part)
    return value


class _Row(NamedTuple):
    key: str
    value: Any
    first: Origin
    last: Origin


def _items(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (f"{path}.{key}" if path else str(key)), item


def _is_leaf(value: Any) -> bool:
    return not (isinstance(value, dict | list | tuple) and value)


def _rows(config: Config, value: Any, path: str) -> Iterator[_Row]:
    """Yield the leaves; a list of scalars from one file is one row."""
    if _is_leaf(value):
        yield _Row(path, value, config.origins[path], config.origins[path])
        return
    items = list(_items(value, path))
    if not isinstance(value, dict) and all(_is_leaf(item) for _, item in items):
        places = sorted(config.origins[key] for key, _ in items)
        if places[0].file == places[-1].file:
            yield _Row(path, value, places[0], places[-1])
            return
    for key, item in items:
        yield from _rows(config, item, key)


def _origins_by_key(config: Config, value: Any, path: str) -> dict[str, Any]:
    if _is_leaf(value):
        return {path: {"value": value, **config.origins[path]._asdict()}}
    result: dict[str, Any] = {}
    for key, item in _items(value, path):
        result.update(_origins_by_key(config, item, key))
    return result


def _place(row: _Row) -> str:
    file = row.first.file
    if os.path.isabs(file):
        relative = os.path.relpath(file)
        file = file if relative.startswith("..") else relative
    lines = (
        f"{row.first.line}-{row.last.line}" if row.last.line > row.first.line else row.first.line
    )
    return f"{file}:{lines}"


def _print_rows(rows: list[_Row]) -> None:
    from deploykit.training.config import render

    lines = [(_place(row), row.key, render(row.value, width=sys.maxsize)) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold", style="dim", max_width=60)
        table.add_column(overflow="fold")
        for place, key, text in lines:
            table.add_row(place, Text.assemble((key, "bold cyan"), " = ", text))
        Console().print(table)
        return
    width = max((len(place) for place, _, _ in lines), default=0)
    for place, key, text in lines:
        print(f"{place:<{width}}  {key} = {text}")


def _print_code(text: str, language: str) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(
            Syntax(text, language, theme="ansi_dark", background_color="default", word_wrap=True)
        )
    else:
        print(text)


def _json(value: Any) -> str:
    return json.dumps(_jsonable(value, ""), indent=2, ensure_ascii=False)


def _jsonable(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item, f"{path}.{number}") for number, item in enumerate(value)]
    if isinstance(value, set):
        return sorted(value, key=lambda item: (type(item).__name__, item))
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"'{path.strip('.')}' is {value}, which JSON cannot hold; use --format py"
        )
    return value
