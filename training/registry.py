"""Registries: from a ``dict(type="Name", ...)`` of a config to an object.

Type names are those of MMDetection 3.x; a scope prefix (``mmdet.RTMDet``) is accepted and dropped.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from deploykit.errors import ConfigError
from deploykit.training.argument_types import misfit

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """A table of names to classes or functions that build objects from config dicts.

    Args:
        kind: What the entries are, for messages, e.g. ``"model"``.
        modules: Modules whose import registers the entries; imported on first use.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._modules = modules
        self._loaded = False
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under its own or a given name."""

        def decorate(entry: T) -> T:
            key = name or entry.__name__
            if self._entries.get(key, entry) is not entry:
                raise ValueError(f"{self.kind} '{key}' is registered twice")
            self._entries[key] = entry
            return entry

        return decorate

    def __contains__(self, name: str) -> bool:
        self._load()
        return name.split(".")[-1] in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def get(self, name: str) -> Callable[..., Any]:
        """Return the entry registered under ``name``.

        Raises:
            ConfigError: There is none; the message lists the closest names.
        """
        self._load()
        key = name.split(".")[-1]
        if key in self._entries:
            return self._entries[key]
        close = difflib.get_close_matches(key, self._entries, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(
            f"unknown {self.kind} type '{name}'.{hint} Known: {', '.join(sorted(self._entries))}"
        )

    def build(self, config: Mapping[str, Any], **defaults: Any) -> Any:
        """Build the object that a config dict describes.

        Args:
            config: A dict with a ``type`` key; the other keys are the arguments.
            **defaults: Arguments for keys that the config does not set.

        Raises:
            ConfigError: No ``type``, an unknown type, or arguments that do not fit.
        """
        if not isinstance(config, Mapping) or "type" not in config:
            raise ConfigError(
                f"a {self.kind} must be a dict with a 'type' key, got {config!r:.200}"
            )
        arguments = {**defaults, **config}
        name = arguments.pop("type")
        if not isinstance(name, str):
            raise ConfigError(f"the 'type' of a {self.kind} must be a string, got {name!r:.200}")
        entry = self.get(name)
        try:
            inspect.signature(entry).bind(**arguments)
        except TypeError as error:
            raise ConfigError(
                f"{self.kind} '{name}': {error}{_close_parameters(entry, arguments)}"
            ) from None
        if problem := misfit(entry, config):
            raise ConfigError(f"{self.kind} '{name}': {problem}")
        return entry(**arguments)

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                import_module(module)


def _close_parameters(entry: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return a hint at the parameters whose names are like those that do not exist."""
    known = inspect.signature(entry).parameters
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            return f". Did you mean {', '.join(close)}?" if close else ""
    return ""


MODELS = Registry("model", ("deploykit.training.models",))
TASK_UTILS = Registry("task component", ("deploykit.training.models",))
TRANSFORMS = Registry("transform", ("deploykit.training.data",))
DATASETS = Registry("dataset", ("deploykit.training.data",))
SAMPLERS = Registry("data sampler", ("deploykit.training.data",))
METRICS = Registry("metric", ("deploykit.training.evaluation",))
OPTIMIZERS = Registry("optimizer", ("deploykit.training.engine",))
SCHEDULERS = Registry("parameter scheduler", ("deploykit.training.engine",))
HOOKS = Registry("hook", ("deploykit.training.engine",))
