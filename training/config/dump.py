"""Writes a config as text of the dialect that reads back to an equal config."""

from __future__ import annotations

import keyword
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config.dialect import RESERVED_KEYS, RESERVED_NAMES
from deploykit.training.config.limits import MAX_INTEGER_BITS, MAX_NESTING
from deploykit.training.config.templates import has_template

WIDTH = 88
_INDENT = "    "
_EMPTY = ((dict, "dict()"), (list, "[]"), (tuple, "()"))


def dump(config: Mapping[str, Any]) -> str:
    """Return a config as one assignment per top-level key.

    Raises:
        ConfigError: A key or value has no form in the dialect.
    """
    lines: list[str] = []
    for key, value in config.items():
        problem = top_level_problem(key)
        if problem:
            raise ConfigError(f"the config cannot be written: {problem}")
        prefix = f"{key} = "
        lines.append(prefix + render(value, used=len(prefix)))
    return "".join(f"{line}\n" for line in lines)


def top_level_problem(key: Any) -> str | None:
    """Return why ``key`` cannot be a top-level key, or None if it can."""
    if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
        return f"the top-level key {key!r:.80} is no Python name"
    if unicodedata.normalize("NFKC", key) != key:
        return f"the top-level key {key!r:.80} has characters that Python would replace"
    if key.startswith("__") or key in RESERVED_NAMES | RESERVED_KEYS or key == "_base_":
        return f"the top-level key '{key}' is reserved"
    return None


def render(value: Any, *, used: int = 0, width: int = WIDTH) -> str:
    """Return a value as an expression of the dialect.

    Args:
        value: Plain data.
        used: Columns of the first line that are taken already.
        width: Columns after which a container is broken over several lines.
    """
    return _render(value, 0, used, width)


def _render(value: Any, indent: int, used: int, width: int) -> str:
    if indent > MAX_NESTING * len(_INDENT):
        raise ConfigError(f"the config is nested deeper than {MAX_NESTING} levels")
    if not (isinstance(value, dict | list | tuple) and value):
        return _scalar(value)
    opening, closing, prefixes, items = _parts(value)
    inner = indent + len(_INDENT)
    parts = [
        prefix + _render(item, inner, inner + len(prefix) + 1, width)
        for prefix, item in zip(prefixes, items, strict=True)
    ]
    trailing = "," if isinstance(value, tuple) and len(parts) == 1 else ""
    line = opening + ", ".join(parts) + trailing + closing
    if "\n" not in line and used + len(line) <= width:
        return line
    margin = " " * inner
    lines = "".join(f"{margin}{part},\n" for part in parts)
    return f"{opening}\n{lines}{' ' * indent}{closing}"


def _parts(value: Any) -> tuple[str, str, list[str], Iterable[Any]]:
    if isinstance(value, dict):
        if all(_is_keyword_name(key) for key in value):
            return "dict(", ")", [f"{key}=" for key in value], value.values()
        return "{", "}", [f"{_scalar(key)}: " for key in value], value.values()
    brackets = "[]" if isinstance(value, list) else "()"
    return brackets[0], brackets[1], [""] * len(value), value


def _is_keyword_name(key: Any) -> bool:
    return (
        isinstance(key, str) and key.isascii() and key.isidentifier() and not keyword.iskeyword(key)
    )


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int and value.bit_length() <= MAX_INTEGER_BITS:
        return repr(value)
    if isinstance(value, set):
        if not value:
            return "set()"
        return "{" + ", ".join(sorted(_scalar(item) for item in value)) + "}"
    if isinstance(value, dict | list | tuple):
        return next(text for kind, text in _EMPTY if isinstance(value, kind))
    raise ConfigError(f"a config cannot hold {value!r:.80} ({type(value).__name__})")


def _string(value: str) -> str:
    if not has_template(value):
        return repr(value)
    # The reader would fill in "{{ ... }}"; cut between the braces it is no template.
    pieces = value.split("{{")
    texts = [
        ("{" if number else "") + piece + ("{" if number < len(pieces) - 1 else "")
        for number, piece in enumerate(pieces)
    ]
    return "(" + " + ".join(repr(text) for text in texts) + ")"
