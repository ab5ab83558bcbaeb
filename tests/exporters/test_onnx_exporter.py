"""Checkpoints to ONNX files: a real RTMDet, and a toy detector for everything else."""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deploykit.errors import (
    BackendError,
    CheckpointError,
    ExportError,
    MediaError,
    ParityError,
    UsageError,
)
from deploykit.exporters.graph_capture import capture
from deploykit.exporters.lowerings import LOWERINGS
from deploykit.exporters.onnx_exporter import (
    ConversionParityError,
    ExportedModel,
    ParityOptions,
    export_onnx,
)
from deploykit.exporters.parity_images import draw_scene
from deploykit.exporters.shape_request import ShapeRequest
from deploykit.inspection import inspect_model
from deploykit.parity import ParityTolerances
from deploykit.runtimes.detector import Detector
from deploykit.spec import ModelSpec
from deploykit.training.model_spec import load_model

TOY_SHAPE = ShapeRequest.parse(shape="96x160")


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(graph: onnx.GraphProto) -> Counter[str]:
    counts = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                counts += operators(attribute.g)
    return counts


def stored_spec(path: Path) -> ModelSpec:
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return ModelSpec.from_json(metadata["deploykit"])


def scenes(height: int, width: int, count: int) -> np.ndarray:
    return np.stack([draw_scene(20 + seed, (height, width)) for seed in range(count)])


def test_flipped_bits_in_the_weights_are_noticed(static: ExportedModel, tmp_path: Path) -> None:
    content = bytearray(static.path.read_bytes())
    content[len(content) // 3] ^= 1
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content)
    with pytest.raises(BackendError, match="its checksum does not match"):
        Detector(damaged)
    with pytest.raises(BackendError, match="its checksum does not match"):
        inspect_model(damaged)


@pytest.fixture(scope="module")
def static(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """The RTMDet for its own 128x128 images."""
    path = tmp_path_factory.mktemp("static") / "model.onnx"
    return export_onnx(small_checkpoint, path)


@pytest.fixture(scope="module")
def dynamic(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """The RTMDet for sizes from 64x96 to 192x160 and batches of 1 to 4."""
    path = tmp_path_factory.mktemp("dynamic") / "model.onnx"
    shape = ShapeRequest.parse(dynamic="64x96:128x128:192x160", batch="1:2:4")
    return export_onnx(small_checkpoint, path, shape=shape)


def test_static_graph_is_clean(static: ExportedModel):
    model = onnx.load(static.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.functions
    counts = operators(model.graph)
    # Priors and shapes are constants, casts turn pixels, flags and labels into what they become.
    assert not counts.keys() & {"Identity", "Shape", "Constant", "CastLike", "If"}
    assert counts["NonMaxSuppression"] == 1
    assert counts["Cast"] <= 6
    names = {tensor.name for tensor in model.graph.initializer}
    assert "bbox_head.rtm_cls.0.weight" in names  # the name in the state dict
    images, *others = model.graph.input
    assert not others and images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_nodes_know_their_module_and_nothing_of_this_machine(static: ExportedModel):
    model = onnx.load(static.path)
    detector = load_model_of(static)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        assert metadata.keys() == {"deploykit.module"}
        assert isinstance(detector.get_submodule(metadata["deploykit.module"]), torch.nn.Module)
        assert node.name.startswith(metadata["deploykit.module"] + "/Conv")
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    content = static.path.read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def load_model_of(exported: ExportedModel) -> torch.nn.Module:
    config = exported.parity.runs[0][1].reference.name
    return load_model(config).model


def test_spec_travels_in_the_file(static: ExportedModel, small_checkpoint: Path):
    spec = stored_spec(static.path)
    assert spec == static.spec
    assert (spec.architecture, spec.classes) == ("RTMDet", ("circle", "square", "star"))
    assert (spec.lowering, spec.precision) == ("standard", "fp32")
    inputs = spec.input
    assert (str(inputs.batch), str(inputs.height), str(inputs.width)) == ("1", "128", "128")
    assert spec.checkpoint_sha256 == hashlib.sha256(small_checkpoint.read_bytes()).hexdigest()
    assert spec.config_sha256 == load_model(small_checkpoint).spec.config_sha256
    assert {"deploykit", "torch", "onnx", "onnxscript", "onnxruntime"} <= spec.versions.keys()
    assert spec.parity is not None and spec.parity["passed"]
    assert json.loads(spec.to_json())["parity"] == spec.parity
    (run,) = spec.parity["runs"]
    assert run["matched"] > 50 and run["unmatched"] == 0
    assert 0 < spec.parity["max_box_error_px"] < 0.05
    assert 0 < spec.parity["max_score_error"] < 1e-4


def test_static_outputs_equal_pytorch_row_by_row(static: ExportedModel, small_checkpoint: Path):
    model, session = load_model(small_checkpoint).model, onnx_session(static.path)
    for image in scenes(128, 128, 4):
        found = session.run(None, {"images": image[None]})
        with torch.no_grad():
            expected = model.predict(torch.from_numpy(image[None]))
        compare_outputs(found, [tensor.numpy() for tensor in expected])


def compare_outputs(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    boxes, scores, labels, count = found
    assert count.tolist() == expected[3].tolist()
    # Rows of nearly equal score may have swapped places.
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    assert sorted(labels.ravel().tolist()) == sorted(expected[2].ravel().tolist())
    np.testing.assert_allclose(
        np.sort(boxes.reshape(-1, 4), axis=0), np.sort(expected[0].reshape(-1, 4), axis=0), atol=0.1
    )


@pytest.mark.slow
def test_dynamic_axes_are_named(dynamic: ExportedModel):
    session = onnx_session(dynamic.path)
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", "height", "width", 3])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == {
        "boxes": ["batch", 40, 4],
        "scores": ["batch", 40],
        "labels": ["batch", 40],
        "num_dets": ["batch"],
    }
    inputs = stored_spec(dynamic.path).input
    assert (str(inputs.height), str(inputs.width)) == ("64:128:192", "96:128:160")
    sizes = [run["input_size"] for run in stored_spec(dynamic.path).parity["runs"]]
    assert sizes == [None, [64, 96], [192, 160]]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (96, 160), (192, 96)])
def test_dynamic_outputs_equal_pytorch(
    dynamic: ExportedModel, small_checkpoint: Path, size: tuple[int, int]
):
    image = scenes(*size, 1)
    with torch.no_grad():
        expected = load_model(small_checkpoint).model.predict(torch.from_numpy(image))
    found = onnx_session(dynamic.path).run(None, {"images": image})
    compare_outputs(found, [tensor.numpy() for tensor in expected])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 128), (64, 160)])
def test_rows_of_a_batch_equal_their_own_results(dynamic: ExportedModel, size: tuple[int, int]):
    session, images = onnx_session(dynamic.path), scenes(*size, 4)
    images[2] = 0  # nothing to see beside full images
    together = session.run(None, {"images": images})
    for row in range(4):
        alone = session.run(None, {"images": images[row : row + 1]})
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[row])


def test_detector_runs_the_file(static: ExportedModel, small_checkpoint: Path):
    image = draw_scene(3, (150, 200))
    with Detector(static.path) as exported, Detector(small_checkpoint, device="cpu") as original:
        found, expected = exported(image), original(image)
        assert len(found) == len(expected) > 0
        assert found.class_names == expected.class_names == ("circle", "square", "star")


def test_image_sizes_become_an_input(toy_checkpoint: Path, tmp_path: Path):
    exported = export_onnx(
        toy_checkpoint, tmp_path / "toy.onnx", shape=ShapeRequest.parse(shape="96x128", batch="2")
    )
    session = onnx_session(exported.path)
    images, sizes = session.get_inputs()
    assert (images.shape, sizes.name, sizes.type) == (
        [2, 96, 128, 3],
        "image_sizes",
        "tensor(int32)",
    )
    feeds = {"images": scenes(96, 128, 2), "image_sizes": np.int32([[96, 128], [40, 50]])}
    boxes, scores, _, count = session.run(None, feeds)
    assert count.min() > 0
    assert boxes[1].max() <= 50 and boxes[1, :, 3].max() <= 40 < boxes[0, :, 3].max()
    assert (np.diff(scores) <= 0).all()


def test_test_options_reach_the_graph(toy_checkpoint: Path, tmp_path: Path):
    exported = export_onnx(
        toy_checkpoint,
        tmp_path / "toy.onnx",
        shape=ShapeRequest.parse(shape="96x160"),
        test_options={"max_per_img": 3, "score_thr": 0.5},
    )
    assert exported.spec.output.max_per_img == 3 and exported.spec.score_threshold == 0.5
    feeds = {"images": scenes(96, 160, 1), "image_sizes": np.int32([[96, 160]])}
    scores = onnx_session(exported.path).run(["scores"], feeds)[0]
    assert scores.shape == (1, 3) and (scores[scores > 0] > 0.5).all()


@pytest.fixture(scope="module")
def toy_graph(toy_checkpoint: Path) -> bytes:
    """The captured graph of the toy detector for 96x160."""
    loaded = load_model(toy_checkpoint)
    inputs = TOY_SHAPE.apply(loaded.spec.input)
    graph = capture(loaded.model, replace(loaded.spec, input=inputs))
    return ir.to_proto(graph).SerializeToString()


@pytest.fixture
def quick(toy_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the toy detector for 96x160 skip the capture, which has been done before."""

    def captured(*_: Any) -> ir.Model:
        return ir.from_proto(onnx.ModelProto.FromString(toy_graph))

    monkeypatch.setattr("deploykit.exporters.onnx_exporter.capture", captured)


@pytest.mark.usefixtures("quick")
def test_named_parity_images_are_used(toy_checkpoint: Path, tmp_path: Path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), draw_scene(number, (80, 90)))
    exported = export_onnx(
        toy_checkpoint,
        tmp_path / "toy.onnx",
        shape=TOY_SHAPE,
        parity=ParityOptions([tmp_path]),
    )
    assert exported.parity.images == "3 images given"
    assert exported.spec.parity is not None and exported.spec.parity["runs"][0]["images"] == 3


@pytest.mark.usefixtures("quick")
def test_a_difference_leaves_no_file(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(graph: Any) -> dict[str, int]:
        limits = standard(graph)
        for node in graph.graph:
            if node.op_type == "Conv":
                weight = node.inputs[1].const_value.numpy().copy()
                weight[-1] *= 1.02
                node.inputs[1].const_value = ir.tensor(weight, name=node.inputs[1].name)
        return limits

    standard = LOWERINGS["standard"]
    monkeypatch.setitem(LOWERINGS, "standard", broken)
    target = tmp_path / "out" / "toy.onnx"
    with pytest.raises(ConversionParityError) as raised:
        export_onnx(toy_checkpoint, target, shape=TOY_SHAPE)
    assert isinstance(raised.value, ParityError)
    assert "box error above 0.1 px" in str(raised.value)
    assert not raised.value.parity.passed
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_tolerances_decide(toy_checkpoint: Path, tmp_path: Path):
    target = tmp_path / "toy.onnx"
    options = ParityOptions(tolerances=ParityTolerances(box=0.0, score=0.0))
    with pytest.raises(ConversionParityError):
        export_onnx(toy_checkpoint, target, shape=TOY_SHAPE, parity=options)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_onnx_form_is_named(
    toy_detector: type[Any], toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Eigenvalues(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features + torch.linalg.eigvals(features[0, :, :4, :4]).real.sum()

    class Odd(toy_detector):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.backbone.append(Eigenvalues())

    from deploykit.training.registry import MODELS

    monkeypatch.setitem(MODELS._entries, "ToyDetector", Odd)
    with pytest.raises(ExportError) as raised:
        export_onnx(toy_checkpoint, tmp_path / "toy.onnx")
    message = str(raised.value)
    assert "aten.linalg_eig" in message and "module 'backbone.2'" in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []


def test_a_branch_on_a_value_is_explained(
    toy_detector: type[Any], toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Branching(toy_detector):
        def predict(self, images: Any, image_sizes: Any = None) -> Any:
            return super().predict(images if images.sum() > 0 else images + 1, image_sizes)

    from deploykit.training.registry import MODELS

    monkeypatch.setitem(MODELS._entries, "ToyDetector", Branching)
    with pytest.raises(ExportError, match="cannot trace the model .* data-dependent") as raised:
        export_onnx(toy_checkpoint, tmp_path / "toy.onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_an_error_and_leaves_nothing(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "out" / "toy.onnx"
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(ExportError, match="cannot be written: No space left on device"):
        export_onnx(toy_checkpoint, target, shape=TOY_SHAPE)
    assert list(target.parent.iterdir()) == []


def test_early_refusals(toy_checkpoint: Path, tmp_path: Path):
    target = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match=r"must be an \.onnx file"):
        export_onnx(toy_checkpoint, tmp_path / "model.engine")
    with pytest.raises(UsageError, match="unknown lowering 'tensor'"):
        export_onnx(toy_checkpoint, target, lowering="tensor")
    with pytest.raises(UsageError, match="multiple of 32"):
        export_onnx(toy_checkpoint, target, shape=ShapeRequest.parse(shape="100x100"))
    with pytest.raises(MediaError, match="nowhere"):
        export_onnx(toy_checkpoint, target, parity=ParityOptions([tmp_path / "nowhere"]))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(toy_checkpoint.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="damaged"):
        export_onnx(damaged, target)
    assert not target.exists()
