"""The recipes shipped with deploykit: training configs in MMDetection's dialect."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from deploykit.errors import ConfigError

FOLDER = Path(__file__).parent


def recipe_paths() -> dict[str, Path]:
    """Return the shipped recipes by name, without the bases they are made of."""
    return {
        path.stem: path
        for path in sorted(FOLDER.rglob("*.py"))
        if not any(part.startswith("_") for part in path.relative_to(FOLDER).parts)
    }


def find_config(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the config file that a path or the name of a shipped recipe stands for.

    Args:
        name_or_path: A file, or a bare name like ``"rtmdet_tiny"``.

    Raises:
        ConfigError: There is neither; the message lists close names.
    """
    text = os.fspath(name_or_path)
    path = Path(os.path.expanduser(text))
    if path.is_file():
        return path
    recipes = recipe_paths()
    if text.removesuffix(".py") in recipes:
        return recipes[text.removesuffix(".py")]
    if path.is_dir():
        raise ConfigError(f"'{text}' is a folder; give a config file in it")
    close = difflib.get_close_matches(path.stem, recipes, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
        f"there is no config file '{text}' and no shipped recipe of that name.{hint} "
        f"Shipped recipes: {', '.join(recipes) or 'none'}"
    )
