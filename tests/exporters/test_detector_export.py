"""Every detector as an ONNX file: the same detections as PyTorch on photographs.

Small versions with ResNet-18; ``docs/validation.md`` has the numbers of the full recipes. A graph
is captured once per detector and shape and lowered in each way, because capturing takes longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from deploykit.exporters.graph_capture import capture
from deploykit.exporters.lowerings import LOWERINGS
from deploykit.exporters.onnx_exporter import ExportedModel, ParityOptions, export_onnx
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityReport, ParityTolerances, compare
from deploykit.runtimes.detector import Detector
from deploykit.training.model_spec import load_model

DETECTORS = (
    "retinanet",
    "fcos",
    "atss",
    "gfl",
    "rpn",
    "faster-rcnn",
    "mask-rcnn",
    "cascade-rcnn",
    "cascade-mask-rcnn",
)
# These hold what the graphs of the others hold; what takes long is done with them alone.
DYNAMIC_DETECTORS = ("retinanet", "rpn", "mask-rcnn", "cascade-mask-rcnn")
IN_EVERY_LOWERING = (*DYNAMIC_DETECTORS, "fcos", "atss", "gfl")
IN_EVERY_SHAPE = ("retinanet", "cascade-mask-rcnn")
STATIC, STATIC_BATCH = ShapeRequest.parse("160x160"), ShapeRequest.parse("160x160", batch="3")
DYNAMIC = ShapeRequest.parse(dynamic="128x128:160x160:192x224", batch="1:2:4")
REQUIRED = ParityTolerances(box=0.1, score=1e-3)
# What a network of a few thousand weights may differ by; above it something else than rounding is.
ROUNDING = ParityTolerances(box=5e-3, score=1e-4, mask_probability=1e-3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        output = tmp_path / f"{lowering}-{shape.batch.max}.onnx"
        options = ParityOptions(photographs[::12], REQUIRED)
        return export_onnx(checkpoint, output, shape=shape, lowering=lowering, parity=options)

    return run


def parity(checkpoint: Path, exported: Path, photographs: list[Path], batch: int) -> ParityReport:
    size = (160, 160)  # a static file pads to it, the checkpoint only to a multiple of 32
    with (
        Detector(checkpoint, device="cpu", input_size=size) as reference,
        Detector(exported, device="cpu", input_size=size, num_threads=1) as candidate,
    ):
        return compare(reference, candidate, photographs, ROUNDING, batch)


def check(report: ParityReport, with_masks: bool) -> None:
    """Assert that 24 images agree, and that there was something to agree about."""
    numbers = report.statistics()
    assert report.passed, report.reasons
    assert numbers["images"] == 24 and numbers["matched"] > 24 * 5
    assert numbers["unmatched"] == numbers["label_flips"] == 0
    if with_masks:
        assert numbers["mask_probability_error_max"] < 1e-3
        assert numbers["pasted_mask_iou_min"] > 0.99
    else:
        assert numbers["mask_iou_min"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_static_exports_agree_with_pytorch(
    name: str,
    detector_checkpoint: Callable[[str], Path],
    export: Callable,
    photographs: list[Path],
):
    checkpoint, with_masks = detector_checkpoint(name), "mask" in name
    graph = captured(checkpoint, STATIC)
    for lowering in LOWERINGS if name in IN_EVERY_LOWERING else ("standard",):
        exported = export(checkpoint, STATIC, graph, lowering)
        assert exported.spec.lowering == lowering
        check(parity(checkpoint, exported.path, photographs, 1), with_masks)

    if name not in IN_EVERY_SHAPE:
        return
    # Nothing loops over the images of a batch: more of them make no more nodes.
    batch_graph = captured(checkpoint, STATIC_BATCH)
    assert node_count(batch_graph) == node_count(graph)
    in_batches = export(checkpoint, STATIC_BATCH, batch_graph, "standard")
    check(parity(checkpoint, in_batches.path, photographs, 3), with_masks)
    compare_rows(in_batches.path.with_name("standard-1.onnx"), in_batches.path, photographs[::8])


def compare_rows(alone: Path, together: Path, photographs: list[Path]) -> None:
    """Assert that the rows of a batch of different images are what a static batch of 1 gives."""
    import cv2

    images = [cv2.imread(str(path)) for path in photographs]
    with Detector(alone, device="cpu") as one, Detector(together, device="cpu") as three:
        prepared = three.prepare(images)
        rows = three.backend.infer(prepared.images, prepared.image_sizes)
        for row in range(3):
            single = one.backend.infer(
                prepared.images[row : row + 1], prepared.image_sizes[row : row + 1]
            )
            assert single["num_dets"][0] == rows["num_dets"][row] > 0
            for name in rows:
                np.testing.assert_allclose(rows[name][row], single[name][0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC_DETECTORS)
def test_dynamic_exports_agree_with_pytorch_in_batches_of_different_images(
    name: str,
    detector_checkpoint: Callable[[str], Path],
    export: Callable,
    photographs: list[Path],
):
    checkpoint = detector_checkpoint(name)
    graph = captured(checkpoint, DYNAMIC)
    for lowering in ("standard", "primitive") if name in IN_EVERY_SHAPE else ("standard",):
        exported = export(checkpoint, DYNAMIC, graph, lowering)
        sizes = [run["input_size"] for run in exported.spec.parity["runs"]]
        assert sizes == [None, [128, 128], [160, 160], [192, 224]]
        report = parity(checkpoint, exported.path, photographs, 3)
        check(report, "mask" in name)
        rows = report.statistics()["batch_invariance"]
        assert rows["images"] == 24 and rows["failed_images"] == 0
        assert rows["max_box_error_px"] < 1e-3 and rows["max_score_error"] < 1e-5
