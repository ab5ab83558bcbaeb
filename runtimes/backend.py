"""The seam between ``Detector`` and the engines that run artefacts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError, UsageError
from deploykit.optional_imports import import_optional
from deploykit.spec import ModelSpec

if TYPE_CHECKING:
    from deploykit.zoo import ZooEntry


@runtime_checkable
class Backend(Protocol):
    """What runs an artefact. Implementations are safe to call from several threads.

    Args:
        spec: What the artefact says about itself.
        name: The engine, e.g. ``"onnxruntime"``.
        device: Where it runs, e.g. ``"cpu"`` or ``"cuda:0"``.
    """

    spec: ModelSpec
    name: str
    device: str

    def infer(
        self,
        images: npt.NDArray[np.uint8],
        image_sizes: npt.NDArray[np.int32],
        proposals: npt.NDArray[np.float32] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the network on one batch.

        Args:
            images: uint8 [B, H, W, 3], RGB, C-contiguous.
            image_sizes: int32 [B, 2], (height, width) of the unpadded images; used by artefacts
                whose spec says ``image_sizes_input``.
            proposals: float32 [B, P, 4], xyxy in pixels of the network input, rows without area
                empty; given to artefacts whose spec has ``proposals`` and to no others.

        Returns:
            Arrays under the names of ``spec.output.names``: ``boxes`` f32 [B, K, 4] (xyxy, pixels
            of the network input), ``scores`` f32 [B, K], ``labels`` int32 [B, K] and ``num_dets``
            int32 [B].

        Raises:
            BackendError: The engine failed or is closed.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds; calling it again does nothing."""
        ...


@dataclass(frozen=True)
class _Engine:
    module: str
    factory: str
    suffixes: tuple[str, ...]


_ENGINES = {
    "onnxruntime": _Engine(
        "deploykit.runtimes.onnxruntime_backend", "OnnxRuntimeBackend", (".onnx",)
    ),
    "pytorch": _Engine("deploykit.runtimes.pytorch_backend", "PyTorchBackend", (".pth", ".pt")),
    "tensorrt": _Engine("deploykit.runtimes.tensorrt.backend", "TensorRTBackend", (".engine",)),
}


def open_backend(
    path: str | os.PathLike[str],
    backend: str | None = None,
    device: str = "auto",
    num_threads: int | None = None,
) -> Backend:
    """Load an artefact into the engine that runs it.

    Args:
        path: The artefact, whose suffix chooses the engine; or the name of a published model, as
            ``deploykit zoo list`` shows them, whose weights are downloaded when they are not here.
        backend: Name of the engine, if the suffix does not tell.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        num_threads: Threads that one inference uses on the CPU; the engine's default if ``None``.

    Raises:
        UsageError: An unknown engine or suffix, or a bad number of threads.
        BackendError: The file is missing or damaged, or the engine refuses it or the device.
        SpecError: The artefact carries no model spec.
    """
    if num_threads is not None and num_threads < 1:
        raise UsageError(f"num_threads must be at least 1, got {num_threads}")
    name, path = os.fspath(path), Path(path)
    if backend in (None, "pytorch") and not path.exists() and _may_be_published(path):
        from deploykit.zoo import find_entry, has_entry

        if has_entry(name):
            return _published(find_entry(name), device, num_threads)
    if backend is None:
        suffix = path.suffix.lower()
        backend = next((name for name, e in _ENGINES.items() if suffix in e.suffixes), None)
        if backend is None:
            known = ", ".join(s for engine in _ENGINES.values() for s in engine.suffixes)
            raise UsageError(
                f"cannot tell which backend runs '{path}'; expected a file in {known}, or "
                "a name of 'deploykit zoo list'"
            )
    if backend not in _ENGINES:
        raise UsageError(f"unknown backend '{backend}'; known: {', '.join(_ENGINES)}")
    if not path.is_file():
        what = "a directory" if path.is_dir() else "missing"
        raise BackendError(f"expected a model file, but this is {what}: {path}")
    engine = _ENGINES[backend]
    factory = getattr(import_module(engine.module), engine.factory)
    return cast(Backend, factory(path, device=device, num_threads=num_threads))


def _may_be_published(path: Path) -> bool:
    suffixes = {suffix for engine in _ENGINES.values() for suffix in engine.suffixes}
    return path.name == str(path) and path.suffix.lower() not in suffixes


def _published(entry: ZooEntry, device: str, num_threads: int | None) -> Backend:
    import_optional("torch", "train", "Running a published model")
    from deploykit.runtimes.pytorch_backend import PyTorchBackend
    from deploykit.training.zoo_model import load_zoo_model
    from deploykit.zoo import zoo_file

    loaded = load_zoo_model(entry)
    return PyTorchBackend(zoo_file(entry), device=device, num_threads=num_threads, loaded=loaded)


def one_line(error: BaseException) -> str:
    """Return the message of an engine's exception on one line, without its repeated prefix."""
    text = " ".join(str(error).split())
    return text[:500] or type(error).__name__
