"""Makes the list of published models from the metafiles of an MMDetection package.

    python -m deploykit.zoo.metafiles site-packages/mmdet/.mim deploykit/zoo/index.json

Only facts are taken: names, addresses and measured results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from deploykit.atomic_file import write_atomic
from deploykit.optional_imports import import_optional


def zoo_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the models that the ``model-index.yml`` of a folder leads to.

    Models without weights, and those that are made of several files, are left out.

    Args:
        folder: What holds ``model-index.yml`` and ``configs/``.
    """
    entries: dict[str, dict[str, Any]] = {}
    for metafile, model in _models(folder):
        url = model.get("Weights")
        if not isinstance(url, str):
            continue
        config = _config(folder, metafile, str(model.get("Config", "")))
        name = str(model["Name"])
        if name in entries:  # the same name twice: the file's tells them apart
            name = PurePosixPath(config).stem
        results = model.get("Results") or []
        entries[name] = {
            "config": config,
            "url": url,
            "results": {
                metric: value
                for result in results
                for metric, value in (result.get("Metrics") or {}).items()
            },
            "dataset": str(results[0]["Dataset"]) if results else "",
        }
    return entries


def index_text(entries: dict[str, dict[str, Any]]) -> str:
    """Return the list as JSON, one model per line."""
    lines = (f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _models(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    yaml: Any = import_optional("yaml", "dev", "Reading metafiles")
    index = yaml.safe_load((folder / "model-index.yml").read_text(encoding="utf-8"))
    for name in index["Import"]:
        content = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
        models = content.get("Models") if isinstance(content, dict) else content
        for model in models or ():
            yield folder / name, model


def _config(folder: Path, metafile: Path, written: str) -> str:
    """Return the path of a config under ``configs/``; some are written without their folder."""
    path = unquote(written)
    if not (folder / path).is_file():
        beside = metafile.parent / PurePosixPath(path).name
        path = beside.relative_to(folder).as_posix() if beside.is_file() else path
    return path.removeprefix("configs/")


if __name__ == "__main__":
    write_atomic(sys.argv[2], index_text(zoo_index(Path(sys.argv[1]))))
