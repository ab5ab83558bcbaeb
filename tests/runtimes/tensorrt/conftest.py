"""Engines of the graph in ``tests/runtimes/conftest.py``, built by the real TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_cuda import FakeDevice

from deploykit.engine_spec import EngineSpec, write_engine
from deploykit.exporters.tensorrt.builder import BuildOptions, BuiltEngine, build_engine
from deploykit.runtimes.backend import open_backend

_BUILT: dict[str, BuiltEngine] = {}


@pytest.fixture
def write_rtx_engine(tmp_path: Path, write_onnx: Callable[..., Path]) -> Callable[..., Path]:
    """Return ``write(name, described={...}, **changes)``.

    ``changes`` are those of the input spec, ``described`` changes what the engine's own spec says.
    """
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

    def write(
        name: str = "model.engine", described: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        key = repr(sorted(changes.items()))
        graph = write_onnx("graph.onnx", **changes)
        if key not in _BUILT:
            backend = open_backend(graph)
            _BUILT[key] = build_engine(onnx.load(graph), backend.spec, BuildOptions("rtx"))
        built = _BUILT[key]
        spec: EngineSpec = replace(built.spec, **(described or {}))
        write_engine(tmp_path / name, built.plan, spec)
        return tmp_path / name

    return write


@pytest.fixture(params=range(3))
def device(request: pytest.FixtureRequest) -> Iterator[FakeDevice]:
    """A device that must be left clean."""
    device = FakeDevice(request.param)
    yield device
    device.check_all_given_back()
