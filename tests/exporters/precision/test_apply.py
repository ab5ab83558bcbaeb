"""The passes on the graph of a whole detector."""

import json
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import run

from deploykit.errors import UsageError
from deploykit.exporters.graph_capture import capture
from deploykit.exporters.graph_cleanup import clean_up
from deploykit.exporters.lowerings import lowering
from deploykit.exporters.parity_images import draw_scene
from deploykit.exporters.precision.apply import apply_precision
from deploykit.exporters.precision.calibration_images import calibration_images, graph_inputs
from deploykit.exporters.precision.float16_rounding import with_explicit_rounding
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.exporters.precision.selection import KeepFloat32
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.training.model_spec import load_model


@pytest.fixture(scope="module")
def exported(small_checkpoint):
    loaded = load_model(small_checkpoint)
    spec = replace(loaded.spec, input=ShapeRequest.parse(shape="128x128").apply(loaded.spec.input))
    graph = capture(loaded.model, spec)
    lowering("standard")(graph)
    clean_up(graph)
    return ir.to_proto(graph), spec


@pytest.fixture(scope="module")
def feeds(exported):
    return graph_inputs([draw_scene(seed, (120, 160)) for seed in range(4)], exported[1].input)


def raw_outputs(model, feeds):
    """Return the logits and distances of each level: what the decoding starts from."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value for value in inferred.graph.value_info}
    heads = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Conv" and "rtm_" in node.name and "rtm_cls" in node.name
    ]
    assert len(heads) == 3
    del model.graph.output[:]
    model.graph.output.extend(types[name] for name in heads)
    return [np.concatenate([o.ravel() for o in run(model, **feed)]).astype("f8") for feed in feeds]


def test_float16_of_a_detector(exported, feeds):
    model, _ = exported
    converted, record = apply_precision(model, PrecisionOptions("fp16"), feeds, "drawn")
    inputs = [(value.name, value.type) for value in model.graph.input]
    assert [(value.name, value.type) for value in converted.graph.input] == inputs
    outputs = [(value.name, value.type.tensor_type.elem_type) for value in model.graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in converted.graph.output] == outputs
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert record.converted["Conv"] == len(convolutions)
    assert record.summary()["kept_in_fp32"]["coordinates or pixels"] == 3
    assert json.loads(json.dumps(record.summary())) == record.summary()
    size = [len(each.SerializeToString()) for each in (model, converted)]
    assert size[1] < size[0]
    for exact, half in zip(
        raw_outputs(model, feeds),
        raw_outputs(with_explicit_rounding(converted), feeds),
        strict=True,
    ):
        # float16 has 11 bits; errors of dozens of layers add up like noise.
        error = np.abs(exact - half).max() / np.abs(exact).max()
        assert 2**-12 < error < 2**-6


def test_int8_of_a_detector(exported, feeds):
    model, _ = exported
    options = PrecisionOptions("int8", calibration="minmax")
    converted, record = apply_precision(model, options, feeds, "drawn")
    kinds = Counter(node.op_type for node in converted.graph.node)
    assert kinds["QuantizeLinear"] > 0
    assert "head" in record.kept.values()
    quantised = sum(record.converted.values())
    assert quantised + len(record.kept) == sum(n.op_type == "Conv" for n in model.graph.node)
    # One pair for each weight, and one for each value that is read by any of them.
    assert kinds["DequantizeLinear"] == kinds["QuantizeLinear"] + quantised
    for exact, rounded in zip(
        raw_outputs(model, feeds), raw_outputs(converted, feeds), strict=True
    ):
        assert 0.9 < np.corrcoef(exact, rounded)[0, 1] < 1


def test_what_is_kept_stays(exported, feeds):
    model, _ = exported
    options = PrecisionOptions("fp16", keep=KeepFloat32(nodes=["backbone.*"]))
    converted, record = apply_precision(model, options, feeds, "drawn")
    backbone = [
        n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith("backbone")
    ]
    assert sum(why == "kept on request" for why in record.kept.values()) > len(backbone)
    weights = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert weights[backbone[0].input[1]] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp8"}, {"precision": "int8", "calibration": "best"}, {"max_images": 0}],
)
def test_options_are_checked(options):
    with pytest.raises(UsageError):
        PrecisionOptions(**options)


class TestCalibrationImages:
    def test_the_users_come_first(self, tmp_path):
        for number in range(5):
            cv2.imwrite(str(tmp_path / f"{number}.png"), draw_scene(number, (32, 32)))
        options = PrecisionOptions("int8", images=[tmp_path], max_images=3)
        images, source = calibration_images(options, {})
        assert len(images) == 3
        assert source == "3 of 5 images given"

    def test_then_the_training_set(self, tmp_path):
        names = [f"{number}.png" for number in range(4)]
        for number, name in enumerate(names):
            cv2.imwrite(str(tmp_path / name), draw_scene(number, (32, 32)))
        annotations = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}
        (tmp_path / "train.json").write_text(json.dumps(annotations))
        dataset = {"data_root": str(tmp_path), "ann_file": "train.json", "pipeline": [{}]}
        config = {"train_dataloader": {"dataset": dataset}}
        images, source = calibration_images(PrecisionOptions("int8", max_images=2), config)
        assert source == "2 of 4 images of the training set"
        assert all(path.is_file() for path in images)

    def test_int8_is_not_calibrated_on_drawings(self):
        with pytest.raises(UsageError, match="--calibration-images"):
            calibration_images(PrecisionOptions("int8"), {})
        _, source = calibration_images(PrecisionOptions("fp16"), {})
        assert "drawn" in source

    def test_a_graph_that_takes_batches_gets_batches(self, exported):
        batched = replace(exported[1].input, batch=ShapeRequest.parse(batch="3").batch)
        scenes = [draw_scene(seed, (64, 64)) for seed in range(4)]
        feeds = graph_inputs(scenes, batched)
        assert [feed["images"].shape for feed in feeds] == [(3, 128, 128, 3)] * 2
        first = feeds[0]["images"]
        np.testing.assert_array_equal(feeds[1]["images"][1], first[0])
