"""TensorRT-RTX, which builds engines without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from engine_graphs import STATIC, detector_graph, detector_spec

from deploykit.exporters.tensorrt.builder import BuildOptions, BuiltEngine, build_engine
from deploykit.spec import InputSpec


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """TensorRT-RTX, which builds without a GPU."""
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of engines for this test alone."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def build(rtx: ModuleType) -> Callable[..., BuiltEngine]:
    """``build(model, inputs=STATIC, **options)`` builds with TensorRT-RTX."""

    def make(
        model: onnx.ModelProto | None = None, inputs: InputSpec = STATIC, **options: Any
    ) -> BuiltEngine:
        graph = detector_graph(inputs) if model is None else model
        return build_engine(graph, detector_spec(inputs), BuildOptions("rtx", **options))

    return make
