"""Where deploykit keeps files that it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of cached files, which need not exist yet.

    ``$DEPLOYKIT_CACHE/kind``, else ``$XDG_CACHE_HOME/deploykit/kind``, else
    ``~/.cache/deploykit/kind``.
    """
    if root := os.environ.get("DEPLOYKIT_CACHE"):
        return Path(root) / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deploykit" / kind
