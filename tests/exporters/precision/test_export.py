"""Conversions that end in a lower precision."""

import json
from collections import Counter

import cv2
import numpy as np
import onnx
import pytest

from deploykit.errors import UsageError
from deploykit.exporters.onnx_exporter import ParityOptions, export_onnx
from deploykit.exporters.parity_images import draw_scene
from deploykit.exporters.precision.cost import PrecisionError
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.parity import ParityTolerances
from deploykit.runtimes.detector import Detector
from deploykit.training.config import Config
from deploykit.training.model_spec import load_model

SHAPE = ShapeRequest.parse(shape="128x128")
# The small detector is not trained: its scores are crowded, and rounding moves many.
PARITY = ParityOptions(tolerances=ParityTolerances(box=0.1, score=1e-3))


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        cv2.imwrite(str(images / f"{number}.png"), draw_scene(number, (128, 128)))
    return images


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_artefact_says_what_was_done_and_what_it_costs(
    small_checkpoint, folder, tmp_path, precision
):
    target = tmp_path / "model.onnx"
    options = PrecisionOptions(precision, calibration="minmax", images=[folder])
    exported = export_onnx(small_checkpoint, target, shape=SHAPE, precision=options, parity=PARITY)
    with Detector(target, score_threshold=0.0) as detector:
        assert detector.spec == exported.spec
        assert detector.spec.precision == precision
        record = detector.spec.parity["precision"]
        assert len(detector(draw_scene(0, (128, 128)))) > 0
    assert record["pass"]["ranges_measured_on"] == "4 images given"
    assert record["drift"]["images"] == len(exported.cost.drift.images)
    assert record["accuracy"] is None  # no validation set on disk
    kinds = Counter(node.op_type for node in onnx.load(target).graph.node)
    assert ("QuantizeLinear" in kinds) == (precision == "int8")


def test_a_limit_needs_a_validation_set(small_checkpoint, folder, tmp_path):
    options = PrecisionOptions("fp16", images=[folder], max_map_drop=0.01)
    with pytest.raises(UsageError, match="--max-map-drop needs the validation set"):
        export_onnx(
            small_checkpoint, tmp_path / "m.onnx", shape=SHAPE, precision=options, parity=PARITY
        )
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture
def validation_set(small_checkpoint, tmp_path):
    """A validation set whose truth is what the small detector itself finds: mAP 1 in float32."""
    detector = Detector(small_checkpoint, score_threshold=0.02)
    images, annotations = [], []
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), draw_scene(number, (128, 128)))
        images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 128})
        found = detector(tmp_path / f"{number}.png")
        for box, label in zip(found.boxes, found.labels, strict=True):
            size = box[2:] - box[:2]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [*map(float, box[:2]), *map(float, size)],
                    "area": float(np.prod(size)),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(detector.class_names)]
    truth = tmp_path / "truth.json"
    truth.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    loader = {
        "val_dataloader.dataset.data_root": str(tmp_path),
        "val_dataloader.dataset.ann_file": "truth.json",
        "val_dataloader.dataset.data_prefix": {"img": ""},
        "val_evaluator": {"type": "CocoMetric", "ann_file": str(truth), "metric": "bbox"},
    }
    return loader


@pytest.mark.slow
def test_the_gate_measures_map_and_refuses_what_costs_too_much(
    small_checkpoint, validation_set, folder, tmp_path
):
    text = load_model(small_checkpoint).config.dumps()
    config = Config.from_text(text, "config", validation_set)
    target = tmp_path / "model.onnx"

    def export(limit):
        options = PrecisionOptions(
            "int8", calibration="minmax", images=[folder], max_map_drop=limit
        )
        return export_onnx(
            small_checkpoint,
            target,
            config=config,
            shape=SHAPE,
            precision=options,
            parity=PARITY,
        )

    accuracy = export(1.0).spec.parity["precision"]["accuracy"]
    assert accuracy["images"] == 3
    assert accuracy["fp32"]["coco/bbox_mAP"] > 0.9
    drop = accuracy["drop"]["coco/bbox_mAP"]
    assert drop > 0.01  # crowded scores of an untrained model
    assert drop == accuracy["fp32"]["coco/bbox_mAP"] - accuracy["converted"]["coco/bbox_mAP"]
    target.unlink()
    with pytest.raises(PrecisionError, match="coco/bbox_mAP falls from") as caught:
        export(drop / 2)
    assert not target.exists()
    assert caught.value.cost.accuracy.summary()["drop"] == accuracy["drop"]
