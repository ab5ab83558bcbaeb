"""Kernels that TensorRT-RTX compiled for this GPU, shared by contexts and kept between runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from deploykit.atomic_file import write_atomic
from deploykit.runtimes.backend import one_line


class KernelCache:
    """The runtime cache of an engine.

    TensorRT-RTX compiles kernels when an engine first runs. With one cache for all its execution
    contexts it does that once, and with a file not even in the next process.

    Args:
        file: Where the cache is kept, or ``None`` to keep it in memory only. What TensorRT-RTX
            does not accept (another GPU, version or driver) is compiled anew and replaced.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._cache: Any = None
        self._loaded = b""

    def attach(self, config: Any) -> None:
        """Let contexts that are made with ``config`` (``IRuntimeConfig``) use the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._file is not None and self._file.is_file():
                blob = self._file.read_bytes()
                # It checks all that has to agree, and says no otherwise.
                if blob and self._cache.deserialize(blob):
                    self._loaded = blob
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if there is anything new, and drop the cache; a failure is a warning."""
        cache, self._cache = self._cache, None
        if cache is None or self._file is None:
            return
        memory = cache.serialize()
        blob = b"" if memory is None else bytes(memory)
        if blob in (b"", self._loaded):
            return
        try:
            write_atomic(self._file, blob)
        except OSError as error:
            warnings.warn(
                f"the kernels that TensorRT-RTX compiled are not kept: {one_line(error)}",
                RuntimeWarning,
                stacklevel=2,
            )
