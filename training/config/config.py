"""``Config``: a resolved config, and where each of its values was set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config.dump import dump, top_level_problem
from deploykit.training.config.limits import STEPS_PER_RESULT, Budget, EvaluationError, check_depth
from deploykit.training.config.options import apply_options
from deploykit.training.config.placeholders import fill_placeholders
from deploykit.training.config.reader import Reader
from deploykit.training.config.source import Source, read_source
from deploykit.training.config.tracked import (
    DELETE_KEY,
    Origin,
    Produced,
    TrackedDict,
    TrackedList,
    TrackedTuple,
)

Options = Mapping[str, Any] | Sequence[str]
TEXT_LABEL = "<text>"


class Config(dict[str, Any]):
    """A resolved config: plain dicts, lists, tuples, sets and scalars.

    Args:
        values: The config's keys and values.
        filename: The file it was read from.
        origins: From the dotted key of each value that is not a container, or is an empty one
            (``"model.backbone.depth"``, ``"train_pipeline.0.type"``), to where it was set last.

    Attributes:
        filename: The file it was read from, or None.
        origins: As the argument; a snapshot of the time of reading.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        filename: str | None = None,
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        super().__init__(values or {})
        self.filename = filename
        self.origins: dict[str, Origin] = dict(origins or {})

    @classmethod
    def from_text(
        cls, text: str, filename: str | None = None, options: Options | None = None
    ) -> Config:
        """Read a config from text of the Python dialect.

        Args:
            text: The config.
            filename: The file it came from: bases are relative to it, and messages name it.
            options: As for :func:`load_config`.

        Raises:
            ConfigError: The text is not a config of the dialect.
        """
        path = None if filename is None else Path(os.path.abspath(filename))
        return _load(Source(text, filename or TEXT_LABEL, path), filename, options)

    def dumps(self) -> str:
        """Return text of the dialect that reads back to an equal config.

        Raises:
            ConfigError: A key or value that was put in since has no form in the dialect.
        """
        return dump(self)

    @property
    def custom_imports(self) -> tuple[str, ...]:
        """Modules that ``custom_imports`` asks for. Reading a config never imports them."""
        request = self.get("custom_imports")
        modules = request.get("imports", ()) if isinstance(request, dict) else ()
        return (modules,) if isinstance(modules, str) else tuple(modules)


def load_config(path: str | os.PathLike[str], options: Options | None = None) -> Config:
    """Read a config file of MMDetection's dialect, executing nothing.

    Args:
        path: A ``.py`` or ``.json`` config.
        options: What to override: ``KEY=VALUE`` strings as :func:`parse_options` takes them, or a
            mapping from dotted keys to values.

    Returns:
        The config with its bases and the options merged in.

    Raises:
        ConfigError: The file or one of its bases cannot be read; the message gives file, line and
            column.
    """
    file = Path(os.path.expanduser(path))
    return _load(read_source(file), str(file), options)


def _load(source: Source, filename: str | None, options: Options | None) -> Config:
    budget = Budget()
    values = Reader(budget).read(source)
    if options:
        values = apply_options(values, options, budget)
    for key in values:
        problem = top_level_problem(key)
        if problem:
            raise ConfigError(problem, *values.marks[key])
    origins: dict[str, Origin] = {}
    result: dict[str, Any] = {}
    for key, value in values.items():
        mark = values.marks[key]
        try:
            value = fill_placeholders(value, values, budget)
            result[key] = _plain(value, key, mark, origins, budget, 0)
        except EvaluationError as error:
            raise ConfigError(f"the value of '{key}': {error}", *mark) from None
    return Config(result, filename, origins)


def _plain(
    value: Any, path: str, mark: Origin, origins: dict[str, Origin], budget: Budget, depth: int
) -> Any:
    """Return a value with builtin containers, noting the origin of each leaf."""
    check_depth(depth)
    budget.spend(STEPS_PER_RESULT)
    if isinstance(value, Produced | range):
        raise EvaluationError("an iterator or range is no value of a config; wrap it in list()")
    if isinstance(value, TrackedDict):
        items = [(key, value[key], value.marks[key]) for key in value if key != DELETE_KEY]
    elif isinstance(value, TrackedList | TrackedTuple):
        items = [
            (number, item, origin)
            for number, (item, origin) in enumerate(zip(value, value.marks, strict=True))
        ]
    else:
        items = []
    if not items:
        origins[path] = mark
    plain = [
        _plain(item, f"{path}.{key}", origin, origins, budget, depth + 1)
        for key, item, origin in items
    ]
    if isinstance(value, TrackedDict):
        return dict(zip((key for key, _, _ in items), plain, strict=True))
    if isinstance(value, list):
        return plain
    if isinstance(value, tuple):
        return tuple(plain)
    return value
