"""The timing cache of TensorRT: a file that makes later builds on the same GPU quicker."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from deploykit.atomic_file import write_atomic
from deploykit.errors import UsageError


def load_timing_cache(config: Any, path: Path, module: ModuleType) -> str:
    """Give a builder the timings of earlier builds.

    A file that is missing starts an empty one, and so does one that is damaged or comes from
    another TensorRT or GPU: it only saves time, so that is no reason to fail.

    Args:
        config: The ``IBuilderConfig``.
        path: The file.
        module: The flavour of TensorRT.

    Returns:
        A warning, or nothing.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"--timing-cache {path} cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return ""
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, False)
    return (
        f"the timing cache {path} is damaged, or of another GPU or TensorRT than this "
        f"{module.__version__}; it is replaced"
    )


def save_timing_cache(config: Any, path: Path) -> None:
    """Write the timings of a build to a file, whole or not at all.

    Args:
        config: The ``IBuilderConfig`` that an engine was built with.
        path: The file.

    Raises:
        UsageError: The file cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_atomic(path, bytes(cache.serialize()))
    except OSError as error:
        raise UsageError(f"--timing-cache {path} cannot be written: {error.strerror}") from error
