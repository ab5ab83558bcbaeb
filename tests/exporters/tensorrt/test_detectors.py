"""Every detector from its checkpoint to an engine in one command, built by TensorRT-RTX.

The engines are not run here, which takes a GPU; what is compared with PyTorch is the graph that
they are built from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deploykit import cli
from deploykit.engine_spec import EngineSpec, read_engine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rtx", "one_thread")]
SHAPES = {
    "static": ["--shape", "128x128"],
    "dynamic": ["--dynamic", "96x96:128x128:160x192", "--batch", "1:2:3"],
}
DETECTORS = ("rtmdet", "retinanet", "faster-rcnn", "mask-rcnn")
# fp16 and int8 change the graph of every detector in the same way, whatever the shapes are.
BUILDS = [
    *((name, shape, "fp32") for name in DETECTORS for shape in SHAPES),
    *((name, "static", precision) for name in DETECTORS for precision in ("fp16", "int8")),
    *(("retinanet", "dynamic", precision) for precision in ("fp16", "int8")),
]
Convert = Callable[..., EngineSpec]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def convert(
    detector_checkpoint: Callable[[str], Path],
    small_checkpoint: Path,
    photographs: list[Path],
    tmp_path: Path,
) -> Convert:
    """``convert(name, *words)`` runs the command for a detector; returns the spec of the engine."""

    def run(name: str, *words: str) -> EngineSpec:
        checkpoint = small_checkpoint if name == "rtmdet" else detector_checkpoint(name)
        output = tmp_path / "model.engine"
        images = ["--parity-images", *map(str, photographs[::12])]
        command = ["convert", str(checkpoint), "--to", "tensorrt", "--out", str(output)]
        assert cli.main([*command, "--flavour", "rtx", *images, *words]) == 0
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "cache",
            "model.engine",
            "model.engine.json",
        ]
        return read_engine(output)[0]

    return run


@pytest.mark.parametrize(("name", "shape", "precision"), BUILDS)
def test_one_command_from_checkpoint_to_engine(
    name: str, shape: str, precision: str, convert: Convert, photographs: list[Path]
):
    words = [*SHAPES[shape], "--precision", precision]
    if precision == "int8":
        words += ["--calibration-images", *map(str, photographs[::8])]
    spec = convert(name, *words)
    assert spec.flavour == "rtx" and spec.model.lowering == "primitive"
    assert spec.model.parity is not None and spec.model.parity["passed"]
    assert spec.model.input.is_static == (shape == "static")
    assert ("masks" in spec.model.output.names) == (name == "mask-rcnn")
    assert spec.model.precision == precision
    assert spec.inputs[0].dtype == "uint8"
    assert {tensor.dtype for tensor in spec.outputs} == {"float32", "int32"}
    used = spec.precision_used.types
    assert spec.precision_used.source == "graph"
    assert ("float16" in used) == (precision == "fp16")
    assert ("int8" in used) == (precision == "int8")
    assert not spec.build_log.warnings
