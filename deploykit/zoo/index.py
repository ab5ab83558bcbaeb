"""The list of published models."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from deploykit.errors import UsageError

INDEX_FILE = Path(__file__).with_name("index.json")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.pth")
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


@dataclass(frozen=True)
class ZooEntry:
    """A published model.

    Args:
        name: Its name in MMDetection.
        config: Its config, relative to MMDetection's folder of configs.
        url: Address of its weights (http or https, ending in ``.pth``).
        results: From ``"box AP"``, ``"mask AP"``, ... to what it reaches on its data set, in
            percent.
        dataset: What those were measured on.

    Raises:
        UsageError: The address is none that weights can be fetched from.
    """

    name: str
    config: str
    url: str
    results: Mapping[str, float]
    dataset: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{self.name}: expected an http(s) address, got {self.url!r:.200}")
        if not _FILE_NAME.fullmatch(self.file_name):
            raise UsageError(f"{self.name}: {self.url!r:.200} names no .pth file")

    @property
    def file_name(self) -> str:
        """Name of the file of weights."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def hash_prefix(self) -> str:
        """The first digits of the file's SHA-256, which are part of its name; empty if not."""
        found = _HASH.search(self.file_name)
        return found[1] if found else ""

    @property
    def box_ap(self) -> float | None:
        """Average precision of its boxes in percent, if it was published."""
        return self.results.get("box AP")

    @property
    def mask_ap(self) -> float | None:
        """Average precision of its masks in percent, if it was published."""
        return self.results.get("mask AP")


def read_index(file: Path) -> dict[str, ZooEntry]:
    """Read a list of models: an object ``{name: {config, url, results, dataset}}``.

    Raises:
        UsageError: The file is damaged, or holds something else.
    """
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): ZooEntry(
                name=str(name),
                config=str(values["config"]),
                url=str(values["url"]),
                results={str(key): float(value) for key, value in values["results"].items()},
                dataset=str(values["dataset"]),
            )
            for name, values in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{file} is no list of models ({type(error).__name__}: {error})") from None


@lru_cache(maxsize=1)
def zoo_entries() -> Mapping[str, ZooEntry]:
    """Return the published models by name."""
    return read_index(INDEX_FILE)


def has_entry(name: str) -> bool:
    """Return whether a name is that of a published model, or of the config of one."""
    return _lookup(name) is not None


def find_entry(name: str) -> ZooEntry:
    """Return a published model by its name, or by that of its config.

    Raises:
        UsageError: There is none; the message lists close names.
    """
    found = _lookup(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(name, zoo_entries(), n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UsageError(f"there is no model '{name}' in the zoo.{hint} See: deploykit zoo list")


def _lookup(name: str) -> ZooEntry | None:
    entries = zoo_entries()
    name = name.removesuffix(".py")
    if name in entries:
        return entries[name]
    return next((e for e in entries.values() if PurePosixPath(e.config).stem == name), None)
