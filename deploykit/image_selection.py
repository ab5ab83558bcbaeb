"""Which images a command measures with: files, folders and glob patterns, and how many of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploykit.errors import MediaError, UsageError
from deploykit.image_io import is_image_path, list_images
from deploykit.runtimes.sources import expand_pattern, is_pattern


def select_images(sources: Sequence[str | Path], limit: int | None = None) -> list[Path]:
    """Return the image files that the sources name, each once, in the order given.

    Args:
        sources: Image files, folders (without their subfolders) or glob patterns, of which ``**``
            matches any number of folders. A path that exists is never taken for a pattern.
        limit: How many images to keep at most; they are spread evenly over all that were found.

    Returns:
        The paths; those of a folder or pattern in natural order.

    Raises:
        MediaError: A source is missing or names no image.
        UsageError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the number of images must be at least 1, got {limit}")
    found: dict[Path, None] = {}
    for source in sources:
        found |= dict.fromkeys(_images_of(source))
    paths = list(found)
    if limit is None or limit >= len(paths):
        return paths
    return [paths[number * len(paths) // limit] for number in range(limit)]


def _images_of(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return list_images(path)
    if is_pattern(source):
        images = [match for match in expand_pattern(source) if is_image_path(match)]
        if not images:
            raise MediaError(f"no image matches the pattern '{source}'")
        return images
    if not path.is_file():
        raise MediaError(f"image file not found: {path}")
    return [path]
