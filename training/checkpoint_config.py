"""The config in a checkpoint, in whichever form the program that wrote it left it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.config import Config
from deploykit.training.mmdetection2 import from_mmdetection2, is_mmdetection2

KEYS = ("cfg", "config")  # MMEngine's name, and MMDetection 2.x's


def stored_config(
    meta: Mapping[str, Any], source: str, options: Sequence[str] = ()
) -> Config | None:
    """Return the config in the ``meta`` of a checkpoint, if there is one.

    The config is text, or (in older files) a pickled dict or ``Config`` of MMEngine. Nothing in it
    is executed.

    Args:
        meta: The ``meta`` of the checkpoint.
        source: The path of the checkpoint, for messages.
        options: ``KEY=VALUE`` overrides.

    Raises:
        ConfigError: It cannot be read.
    """
    for key in KEYS:
        value = meta.get(key)
        name = f"{source} (meta.{key})"
        if isinstance(value, Mapping):
            value = _text(value, name)
        if isinstance(value, str) and value.strip():
            return migrated(Config.from_text(value, name, list(options)))
    return None


def migrated(config: Config) -> Config:
    """Return a config in the form of MMDetection 3.x.

    Raises:
        ConfigError: It is one of 2.x with a test pipeline that has no counterpart.
    """
    return from_mmdetection2(config) if is_mmdetection2(config) else config


def _text(value: Mapping[str, Any], name: str) -> str:
    """Return the text of a pickled config: a dict of its keys, or the state of a ``Config``."""
    state = value.get("state")
    if isinstance(state, tuple) and state and isinstance(state[0], Mapping):
        value = state[0]
    try:
        return Config(value).dumps()
    except ConfigError as error:
        raise ConfigError(f"the config is an object that cannot be read: {error}", name) from None
