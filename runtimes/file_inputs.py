"""From what a user names on the command line to images and videos, and to names for the results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deploykit.errors import MediaError, UsageError
from deploykit.image_io import is_image_path, natural_key
from deploykit.runtimes.sources import (
    expand_pattern,
    is_live,
    is_pattern,
    is_stream_url,
    is_video_path,
)

# Annotated pictures keep these formats; every other input (TIFF, PGM, ...) becomes a PNG.
_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class FileInput:
    """One image or video to detect in.

    Args:
        source: A path, the URL of a stream, or the index of a camera.
        is_video: Whether it is a video, stream or camera, and not an image.
    """

    source: Path | str | int
    is_video: bool

    @property
    def name(self) -> str:
        """What to call it in messages and results."""
        return f"camera {self.source}" if isinstance(self.source, int) else str(self.source)

    @property
    def is_live(self) -> bool:
        """Whether it ends only when the user stops it."""
        return is_live(self.source)


@dataclass(frozen=True)
class Failure:
    """An input that could not be read, or not to its end.

    Args:
        name: The input.
        reason: One line.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


def expand_inputs(names: Iterable[str]) -> tuple[list[FileInput], list[Failure]]:
    """Return the images and videos that the given names stand for.

    Args:
        names: Files, directories (their images and videos, not those of subfolders), glob patterns,
            URLs of streams, and camera indices.

    Returns:
        The inputs, images first, each file once; and the names that stand for nothing.
    """
    found: dict[str, FileInput] = {}
    failures = []
    for name in names:
        try:
            for item in _expand(name):
                key = item.name if item.is_live else os.path.abspath(str(item.source))
                found.setdefault(key, item)
        except MediaError as error:
            failures.append(Failure(name, str(error)))
    return sorted(found.values(), key=lambda item: item.is_video), failures


def _expand(name: str) -> list[FileInput]:
    path = Path(name)
    if name.isdecimal() and not path.exists():
        return [FileInput(int(name), is_video=True)]
    if is_stream_url(name):
        return [FileInput(name, is_video=True)]
    if is_pattern(name):
        paths = [
            path for path in expand_pattern(name) if is_video_path(path) or is_image_path(path)
        ]
        if not paths:
            raise MediaError(f"no image or video matches the pattern '{name}'")
    elif path.is_dir():
        paths = sorted(
            (
                entry
                for entry in path.iterdir()
                if (is_image_path(entry) or is_video_path(entry))
                and entry.is_file()
                and not entry.name.startswith(".")
            ),
            key=natural_key,
        )
        if not paths:
            raise MediaError(f"no images or videos in {path}")
    else:
        paths = [path]
    return [FileInput(path, is_video_path(path)) for path in paths]


def plan_outputs(inputs: Sequence[FileInput], folder: Path) -> list[Path]:
    """Return the path of the annotated picture or video of each input.

    The name is that of the input; where several inputs share it, the later ones get ``-2``, ``-3``.

    Args:
        inputs: All inputs.
        folder: Where the results go.
    """
    # Compared in lower case: some file systems do not tell A.png from a.png.
    taken: set[str] = set()
    planned = []
    for item in inputs:
        stem, suffix = _output_name(item)
        candidate, number = stem + suffix, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{stem}-{number}{suffix}"
        taken.add(candidate.lower())
        planned.append(folder / candidate)
    return planned


def _output_name(item: FileInput) -> tuple[str, str]:
    if isinstance(item.source, int):
        return f"camera{item.source}", ".mp4"
    if isinstance(item.source, str):
        return Path(urlsplit(item.source).path).stem or "stream", ".mp4"
    if item.is_video:
        return item.source.stem, ".mp4"
    suffix = item.source.suffix
    return item.source.stem, suffix if suffix.lower() in _KEPT_SUFFIXES else ".png"


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that no output is one of the inputs, under whatever name.

    Raises:
        UsageError: One is.
    """
    by_name = {path.resolve(): path for path in inputs}
    by_file = {_identity(path): path for path in by_name.values() if path.exists()}
    for output in outputs:
        clash = by_name.get(output.resolve())
        if clash is None and output.exists():
            clash = by_file.get(_identity(output))
        if clash is not None:
            raise UsageError(
                f"writing {output} would overwrite the input {clash}; choose another place"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
