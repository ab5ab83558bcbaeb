"""Engines that were built before, found again by everything that they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from deploykit import cache_folder as cache
from deploykit.engine_spec import (
    BuildFlags,
    EngineSpec,
    PluginKernel,
    engine_spec_path,
    read_engine,
    write_engine,
)
from deploykit.errors import BackendError, SpecError
from deploykit.exporters.tensorrt.build_device import BuildDevice
from deploykit.exporters.tensorrt.profiles import input_shapes
from deploykit.spec import InputSpec

# The least recently used engines beyond so many bytes are deleted.
LARGEST_CACHE = 10 * 2**30


def cache_folder() -> Path:
    """Return the folder of cached engines."""
    return cache.cache_folder("engines")


def cache_key(
    graph: bytes,
    shapes: InputSpec,
    flags: BuildFlags,
    flavour: str,
    version: str,
    device: BuildDevice | None,
    kernels: tuple[PluginKernel, ...],
) -> str:
    """Return the name of an engine in the cache: a hash of all that makes it what it is.

    Args:
        graph: The bytes that the parser is given.
        shapes: The input shapes that it is built for.
        flags: How it is built.
        flavour: Of TensorRT.
        version: Of TensorRT.
        device: The GPU that it is tied to, if it is.
        kernels: Our kernels in it.
    """
    facts = {
        "graph": hashlib.sha256(graph).hexdigest(),
        "shapes": input_shapes(shapes),
        "flags": dataclasses.asdict(flags),
        "flavour": flavour,
        "version": version,
        "device": dataclasses.asdict(device) if device else None,
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A folder of engines with their specs.

    Args:
        folder: Where they are; made when the first is stored.
        largest: How many bytes of engines to keep.
    """

    def __init__(self, folder: Path, largest: int = LARGEST_CACHE) -> None:
        self.folder = folder
        self.largest = largest

    def path(self, key: str) -> Path:
        """Return where the engine of this key is, or would be."""
        return self.folder / f"{key}.engine"

    def find(self, key: str) -> tuple[EngineSpec, bytes] | None:
        """Return an engine with its spec, or ``None`` if it is not there, or damaged."""
        try:
            found = read_engine(self.path(key))
            os.utime(self.path(key))
        except (BackendError, SpecError, OSError):
            return None
        return found

    def store(self, key: str, plan: bytes, spec: EngineSpec) -> None:
        """Keep an engine, and delete the least recently used ones when there are too many.

        A cache that cannot be written, on a read-only or full disk, is no reason to fail.
        """
        try:
            write_engine(self.path(key), plan, spec)
            self._prune(keep=self.path(key))
        except OSError:
            return

    def _prune(self, keep: Path) -> None:
        entries = sorted(
            ((file.stat().st_mtime, file.stat().st_size, file) for file in self._engines()),
            reverse=True,
        )
        total = keep.stat().st_size
        for _, size, file in entries:
            if file == keep:
                continue
            total += size
            if total > self.largest:
                file.unlink(missing_ok=True)
                engine_spec_path(file).unlink(missing_ok=True)

    def _engines(self) -> list[Path]:
        return [file for file in self.folder.glob("*.engine") if not file.name.startswith(".")]
