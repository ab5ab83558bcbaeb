"""Small ONNX artefacts whose detections can be computed by hand.

The graph reports two boxes an image, taken from the mean colour (r, g, b) of its pixels, padding
included: ``[0, 0, r, g]`` with score r / 255 and label 0, and ``[1, 2, 1 + b, 2 + b]`` with score
b / 512 and label 1. With ``image_sizes`` as an input, the first box ends at (width, height); with
``proposals``, the second box is the last proposal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.spec import METADATA_KEY, DimRange, InputSpec, ModelSpec, OutputSpec

CLASSES = ("cat", "dog", "bird")


def make_spec(**changes: object) -> ModelSpec:
    """Return a spec for 64x64 inputs of any batch size; ``changes`` go to its input."""
    inputs = InputSpec(
        batch=DimRange(1, 1, 16),
        height=DimRange.fixed(64),
        width=DimRange.fixed(64),
        scale=(64, 64),
        pad_size=(64, 64),
        pad_value=(10, 20, 30),
    )
    return ModelSpec(
        architecture="MeanColour",
        classes=CLASSES,
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        input=dataclasses.replace(inputs, **changes),
        output=OutputSpec(max_per_img=2),
        score_threshold=0.2,
    )


def make_model(spec: ModelSpec | None) -> onnx.ModelProto:
    """Return the graph described above; without a spec it carries none."""
    described = spec or make_spec()
    inputs = described.input

    def axis(size: DimRange, name: str) -> int | str:
        return size.max if size.is_static else name

    shape = [axis(inputs.batch, "b"), axis(inputs.height, "h"), axis(inputs.width, "w"), 3]
    graph_inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)]
    constants = {
        "image_axes": np.array([1, 2]),
        "row_axis": np.array([1]),
        "wh": np.array([1, 0]),
        "rg": np.array([0, 1]),
        "rb": np.array([0, 2]),
        "bb": np.array([2, 2]),
        "one_two": np.array([1, 2], np.float32),
        "zero": np.array(0, np.float32),
        "weights": np.array([1 / 255, 1 / 512], np.float32),
        "class_ids": np.array([[0, 1]], np.int32),
        "two": np.array([2], np.int32),
        "last": np.array([1]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "image_axes"], ["mean"], keepdims=0),
        helper.make_node("Gather", ["mean", "bb"], ["blue"], axis=1),
        helper.make_node("Add", ["blue", "one_two"], ["end_2"]),
        helper.make_node("Mul", ["blue", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one_two"], ["start_2"]),
        helper.make_node("Concat", ["zeros", "end_1"], ["box_1"], axis=1),
        helper.make_node("Concat", ["start_2", "end_2"], ["box_2"], axis=1),
        helper.make_node("Unsqueeze", ["box_1", "row_axis"], ["row_1"]),
        helper.make_node("Unsqueeze", ["box_2", "row_axis"], ["row_2"]),
        helper.make_node("Concat", ["row_1", "row_2"], ["boxes"], axis=1),
        helper.make_node("Gather", ["mean", "rb"], ["red_blue"], axis=1),
        helper.make_node("Mul", ["red_blue", "weights"], ["scores"]),
        helper.make_node("Shape", ["scores"], ["scores_shape"]),
        helper.make_node("Expand", ["class_ids", "scores_shape"], ["labels"]),
        helper.make_node("Shape", ["scores"], ["batch"], end=1),
        helper.make_node("Expand", ["two", "batch"], ["num_dets"]),
    ]
    if inputs.image_sizes_input:
        sizes = helper.make_tensor_value_info("image_sizes", TensorProto.INT32, [shape[0], 2])
        graph_inputs.append(sizes)
        nodes.insert(4, helper.make_node("Cast", ["image_sizes"], ["hw"], to=TensorProto.FLOAT))
        nodes.insert(5, helper.make_node("Gather", ["hw", "wh"], ["end_1"], axis=1))
    else:
        nodes.insert(4, helper.make_node("Gather", ["mean", "rg"], ["end_1"], axis=1))
    if inputs.proposals:
        shape_of_proposals = [shape[0], inputs.proposals, 4]
        graph_inputs.append(
            helper.make_tensor_value_info("proposals", TensorProto.FLOAT, shape_of_proposals)
        )
        constants["last_row"] = np.array(-1)
        place = next(i for i, node in enumerate(nodes) if node.output[0] == "box_2")
        nodes[place] = helper.make_node("Gather", ["proposals", "last_row"], ["box_2"], axis=1)
    rows = shape[0]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [rows, 2, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, 2]),
        helper.make_tensor_value_info("labels", TensorProto.INT32, [rows, 2]),
        helper.make_tensor_value_info("num_dets", TensorProto.INT32, [rows]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "mean_colour", graph_inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if spec is not None:
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def spec() -> Callable[..., ModelSpec]:
    """``spec(**changes)``: a spec for 64x64 inputs with changes to its input."""
    return make_spec


@pytest.fixture
def write_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the graph with a changed input spec and returns its path."""

    def write(name: str = "model.onnx", *, with_spec: bool = True, **changes: object) -> Path:
        path = tmp_path / name
        onnx.save(make_model(make_spec(**changes) if with_spec else None), path)
        return path

    return write


@pytest.fixture
def onnx_path(write_onnx: Callable[..., Path]) -> Path:
    """An artefact for 64x64 inputs and batches of 1 to 16."""
    return write_onnx()


def _plain(red: int, green: int, blue: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Return a BGR image of one colour."""
    return np.full((height, width, 3), (blue, green, red), np.uint8)


def _noise(seed: int, height: int, width: int) -> np.ndarray:
    """Return a BGR image of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def plain_image() -> Callable[..., np.ndarray]:
    """``plain_image(red, green, blue, height=64, width=64)``, BGR of one colour."""
    return _plain


@pytest.fixture
def noise_image() -> Callable[..., np.ndarray]:
    """``noise_image(seed, height, width)``, BGR of random pixels."""
    return _noise


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with 12 PNG images of rising redness, ``frame0.png`` to ``frame11.png``."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(12):
        cv2.imwrite(str(folder / f"frame{index}.png"), _plain(60 + 10 * index, 40, 20))
    (folder / "notes.txt").write_text("not an image")
    return folder


def _write_video(
    path: Path, frames: int = 12, fps: float = 10, size: tuple[int, int] = (96, 64)
) -> Path:
    """Write an mp4 whose frames brighten; ``size`` is (width, height)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for index in range(frames):
        writer.write(_plain(60 + 10 * index, 40, 20, size[1], size[0]))
    writer.release()
    return path


@pytest.fixture
def write_video() -> Callable[..., Path]:
    """``write_video(path, frames=12, fps=10, size=(96, 64))``."""
    return _write_video


@pytest.fixture
def video_path(tmp_path: Path) -> Path:
    """An mp4 of 12 frames at 10 frames a second."""
    return _write_video(tmp_path / "clip.mp4")


@pytest.fixture
def faulty_files(tmp_path: Path) -> dict[str, Path]:
    """Images that cannot be read, by what is wrong with them."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    encoded = cv2.imencode(".jpg", _noise(0, 80, 100))[1].tobytes()
    contents = {
        "truncated.jpg": encoded[: len(encoded) // 2],
        "text.jpg": b"this is no image",
        "zero_bytes.jpg": b"",
        "header_only.png": cv2.imencode(".png", _noise(0, 8, 8))[1].tobytes()[:20],
    }
    paths = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        paths[name.split(".")[0]] = folder / name
    paths["missing"] = folder / "missing.jpg"
    paths["directory"] = folder / "directory.jpg"
    paths["directory"].mkdir()
    return paths
