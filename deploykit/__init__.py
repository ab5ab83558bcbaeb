"""deploykit: train object detectors, export them, and run any artefact behind one ``Detector``.

Importing this package loads neither torch nor onnx nor onnxruntime; each is imported by the part
that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deploykit.detections import Detections
    from deploykit.errors import DeploykitError
    from deploykit.runtimes.detector import Detector
    from deploykit.spec import ModelSpec

__all__ = ["DeploykitError", "Detections", "Detector", "ModelSpec", "__version__"]

_EXPORTS = {
    "DeploykitError": "deploykit.errors",
    "Detections": "deploykit.detections",
    "Detector": "deploykit.runtimes.detector",
    "ModelSpec": "deploykit.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
