"""Every detector as an ONNX file: the same detections as PyTorch on photographs.

Small versions with ResNet-18; ``docs/validation.md`` has the numbers of the full recipes. A graph
is captured once per detector and shape and lowered in each way, and the reference computes every
image once, because these take longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from remembered_backend import RememberedBackend

from deploykit.exporters.graph_capture import capture
from deploykit.exporters.lowerings import LOWERINGS
from deploykit.exporters.onnx_exporter import ExportedModel, ParityOptions, export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityReport, ParityTolerances, compare
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.pytorch_backend import PyTorchBackend
from deploykit.training.model_spec import load_model

DETECTORS = (
    "retinanet",
    "rpn",
    "fast-rcnn",
    "faster-rcnn",
    "mask-rcnn",
    "cascade-rcnn",
    "cascade-mask-rcnn",
)
# Their graphs differ from RetinaNet's in the head alone, so one shape is enough.
STATIC_ONLY = ("fcos", "gfl", "atss", "fovea", "fsaf")
# The operators of the seam are the same in the others.
IN_EVERY_LOWERING = ("retinanet", "faster-rcnn", "mask-rcnn", "fcos", "gfl")
SIZE = (160, 160)
STATIC, STATIC_BATCH = ShapeRequest.parse("160x160"), ShapeRequest.parse("160x160", batch="3")
DYNAMIC = ShapeRequest.parse(dynamic="128x128:160x160:192x224", batch="1:2:3")
REQUIRED = ParityTolerances(box=0.1, score=1e-3)
# What a network of a few thousand weights may differ by; above it something else than rounding is.
ROUNDING = ParityTolerances(box=5e-3, score=1e-4, mask_probability=1e-3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lowerings(name: str) -> tuple[str, ...]:
    """Return the lowerings that a detector is exported in, ``standard`` first."""
    assert next(iter(LOWERINGS)) == "standard"
    return tuple(LOWERINGS) if name in IN_EVERY_LOWERING else ("standard",)


def captured(checkpoint: Path, shape: ShapeRequest) -> bytes:
    loaded = load_model(checkpoint)
    spec = replace(loaded.spec, input=shape.apply(loaded.spec.input))
    return ir.to_proto(capture(loaded.model, spec)).SerializeToString()


def node_count(graph: bytes) -> int:
    return len(onnx.ModelProto.FromString(graph).graph.node)


@pytest.fixture
def export(tmp_path: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return ``export(checkpoint, shape, graph, lowering)``, which lowers a captured graph."""

    def run(checkpoint: Path, shape: ShapeRequest, graph: bytes, lowering: str) -> ExportedModel:
        def again(*_: object) -> ir.Model:
            return ir.from_proto(onnx.ModelProto.FromString(graph))

        monkeypatch.setattr("deploykit.exporters.onnx_exporter.capture", again)
        output = tmp_path / f"{lowering}-{shape.batch.min}-{shape.batch.max}.onnx"
        options = ParityOptions(photographs[::12], REQUIRED)
        return export_onnx(checkpoint, output, shape=shape, lowering=lowering, parity=options)

    return run


@pytest.fixture(scope="module")
def reference(detector_checkpoint: Callable[[str], Path]) -> Callable[[str], Detector]:
    """Return a detector by name, in PyTorch, which both tests of it share."""
    backends: dict[str, RememberedBackend] = {}

    def detector(name: str) -> Detector:
        if name not in backends:
            backend = PyTorchBackend(detector_checkpoint(name), device="cpu")
            backends[name] = RememberedBackend(backend)
        # A static file pads to this size, the checkpoint only to a multiple of 32.
        return Detector(None, backend=backends[name], input_size=SIZE)

    return detector


def parity(
    expected: Detector, exported: Path, photographs: list[Path], batch: int, with_masks: bool
) -> ParityReport:
    """Return a report after asserting that 24 images agree, and that something was found."""
    with Detector(exported, device="cpu", input_size=SIZE, num_threads=1) as candidate:
        report = compare(expected, candidate, photographs, ROUNDING, batch)
    numbers = report.statistics()
    assert report.passed, report.reasons
    assert numbers["images"] == 24 and numbers["matched"] > 24 * 5
    assert numbers["unmatched"] == numbers["label_flips"] == 0
    if with_masks:
        assert numbers["mask_probability_error_max"] < 1e-3
        assert numbers["pasted_mask_iou_min"] > 0.99
    else:
        assert numbers["mask_iou_min"] is None
    return report


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DETECTORS, *STATIC_ONLY])
def test_static_exports_agree_with_pytorch_alone_and_in_batches_of_different_images(
    name: str,
    detector_checkpoint: Callable[[str], Path],
    export: Callable,
    photographs: list[Path],
    reference: Callable[[str], Detector],
):
    checkpoint, masks = detector_checkpoint(name), "mask" in name
    graph, batch_graph = captured(checkpoint, STATIC), captured(checkpoint, STATIC_BATCH)
    # Nothing loops over the images of a batch: more of them make no more nodes.
    assert node_count(batch_graph) == node_count(graph)
    for lowering in lowerings(name):
        if lowering == "plugin" and name in DETECTORS:
            continue  # takes long; the dynamic exports have it, at both batch sizes
        one = export(checkpoint, STATIC, graph, lowering)
        three = export(checkpoint, STATIC_BATCH, batch_graph, lowering)
        assert one.spec.lowering == three.spec.lowering == lowering
        parity(reference(name), one.path, photographs, 1, masks)
        parity(reference(name), three.path, photographs, 3, masks)
        with Detector(one.path, device="cpu", num_threads=1) as alone:
            parity(alone, three.path, photographs, 3, masks)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_dynamic_exports_agree_with_pytorch_alone_and_in_batches_of_different_images(
    name: str,
    detector_checkpoint: Callable[[str], Path],
    export: Callable,
    photographs: list[Path],
    reference: Callable[[str], Detector],
):
    checkpoint, masks = detector_checkpoint(name), "mask" in name
    graph = captured(checkpoint, DYNAMIC)
    for lowering in lowerings(name):
        exported = export(checkpoint, DYNAMIC, graph, lowering)
        sizes = [run["input_size"] for run in exported.spec.parity["runs"]]
        assert sizes == [None, [128, 128], [160, 160], [192, 224]]
        parity(reference(name), exported.path, photographs, 1, masks)
        report = parity(reference(name), exported.path, photographs, 3, masks)
        rows = report.statistics()["batch_invariance"]
        assert rows["images"] == 24 and rows["failed_images"] == 0
        assert rows["max_box_error_px"] < 1e-3 and rows["max_score_error"] < 1e-5
