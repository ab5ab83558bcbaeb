"""Proposals through ``Detector``, the backends and the detect command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploykit.cli import main
from deploykit.errors import BackendError, UsageError
from deploykit.proposals import write_proposals
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.onnxruntime_backend import OnnxRuntimeBackend
from deploykit.runtimes.preprocess import Preprocessor
from deploykit.runtimes.proposals import with_proposals
from deploykit.spec import DimRange, ModelSpec

WriteOnnx = Callable[..., Path]
MakeImage = Callable[..., np.ndarray]
BOXES = np.array([[4, 8, 40, 48], [10, 20, 30, 60]], np.float32)


@pytest.fixture
def detector(write_onnx: WriteOnnx) -> Detector:
    """Its second box is the last of the two proposals that it takes."""
    return Detector(write_onnx(proposals=2), score_threshold=0.0)


def test_proposals_are_scaled_to_the_network_and_back(
    detector: Detector, plain_image: MakeImage
) -> None:
    image = plain_image(0, 0, 255, height=128, width=128)
    found = detector(image, proposals=BOXES)
    np.testing.assert_array_equal(found.boxes[found.labels == 1], BOXES[1:])
    prepared = detector.prepare([image], [BOXES])
    assert prepared.proposals is not None and prepared.proposals.dtype == np.float32
    np.testing.assert_array_equal(prepared.proposals, BOXES[None] / 2)
    assert prepared.inputs == (prepared.images, prepared.image_sizes, prepared.proposals)


def test_rows_are_filled_and_cut(spec: Callable[..., ModelSpec], plain_image: MakeImage) -> None:
    model = spec(proposals=3, batch=DimRange.fixed(2))
    prepared = Preprocessor(model.input)([plain_image(1, 2, 3)])
    table = with_proposals(prepared, [BOXES], spec=model.input).proposals
    assert table is not None and table.shape == (2, 3, 4)
    np.testing.assert_array_equal(table[0, :2], BOXES)
    assert not table[0, 2].any() and not table[1].any()  # empty rows and the image that is none
    scored = np.concatenate([np.tile(BOXES, (2, 1)), [[0.1], [0.4], [0.3], [0.2]]], axis=1)
    table = with_proposals(prepared, [scored], spec=model.input).proposals
    np.testing.assert_array_equal(table[0], scored[[1, 2, 3], :4])  # the best by score
    table = with_proposals(prepared, [np.tile(BOXES, (2, 1))], spec=model.input).proposals
    np.testing.assert_array_equal(table[0], scored[:3, :4])  # the first without scores


def test_proposals_are_clipped_to_the_image(
    spec: Callable[..., ModelSpec], plain_image: MakeImage
) -> None:
    model = spec(proposals=1)
    prepared = Preprocessor(model.input)([plain_image(1, 2, 3, height=32, width=64)])
    table = with_proposals(prepared, [[[-5, -5, 999, 999]]], spec=model.input).proposals
    assert table.tolist() == [[[0, 0, 64, 32]]]


def test_lists_of_images_and_detections(detector: Detector, plain_image: MakeImage) -> None:
    images = [plain_image(0, 0, 255, height=128, width=128)] * 3
    found = detector(images, proposals=[BOXES, BOXES[::-1], BOXES])
    last = [each.boxes[each.labels == 1][0].tolist() for each in found]
    assert last == [BOXES[1].tolist(), BOXES[0].tolist(), BOXES[1].tolist()]
    # Detections are proposals as well, by their scores.
    again = detector(images, proposals=found)
    assert [each.boxes[each.labels == 1].shape for each in again] == [(1, 4)] * 3


def test_mistakes(
    detector: Detector, onnx_path: Path, write_onnx: WriteOnnx, plain_image: MakeImage
) -> None:
    image = plain_image(1, 2, 3)
    needy = Detector(write_onnx("needy.onnx", proposals=2))
    with pytest.raises(UsageError, match="MeanColour needs the proposals of every image"):
        needy(image)
    with pytest.raises(UsageError, match="needs the proposals of every image, which a stream"):
        next(needy.stream([image]))
    with pytest.raises(UsageError, match="takes no proposals"):
        Detector(write_onnx("plain.onnx"))(image, proposals=BOXES)
    with pytest.raises(UsageError, match="proposals for each of 2 images, got 1"):
        needy([image, image], proposals=[BOXES])
    with pytest.raises(UsageError, match="proposals of 3 images for 2 images"):
        needy([image, image], proposals=[BOXES] * 3)
    for wrong in (BOXES[:, :3], [[0, 0, 1, np.nan]], "boxes", [BOXES]):
        with pytest.raises(UsageError, match="proposals of image 0: expected an array"):
            needy(image, proposals=wrong)


def test_a_graph_must_have_the_input_that_its_spec_promises(
    write_onnx: WriteOnnx, spec: Callable[..., ModelSpec]
) -> None:
    import onnx
    from onnx import helper

    path = write_onnx()
    model = onnx.load(path)
    helper.set_model_props(model, {"deploykit": spec(proposals=5).to_json()})
    onnx.save(model, path)
    with pytest.raises(BackendError, match="has the inputs"):
        OnnxRuntimeBackend(path)


def test_detect_with_a_proposal_file(
    write_onnx: WriteOnnx,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx("needy.onnx", proposals=1)
    tables = {f"frames/frame{i}.png": [[i, 2, 30, 40, 1]] for i in range(11)}  # not of the last
    write_proposals("p.npz", {name: np.array(rows, np.float32) for name, rows in tables.items()})
    arguments = "detect needy.onnx frames --no-images --save-json --score 0 --proposals p.npz"
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out
    assert "failed: p.npz has no proposals for 'frames/frame11.png'" in printed
    content = json.loads((tmp_path / "detections" / "detections.json").read_text())
    seconds = [image["detections"][1]["box"] for image in content["images"]]
    assert seconds == [[i, 2, 30, 40] for i in range(11)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("needy.onnx frames", "MeanColour needs region proposals: --proposals FILE"),
        ("plain.onnx frames --proposals p.npz", "finds its own regions; leave out --proposals"),
        ("needy.onnx frames --proposals no.pkl", "no.pkl: the proposal file does not exist"),
        ("needy.onnx frames --proposals frames/notes.txt", "expected a proposal file in .pkl"),
    ],
)
def test_mistakes_on_the_command_line(
    write_onnx: WriteOnnx,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx("needy.onnx", proposals=1)
    write_onnx("plain.onnx")
    assert main(["detect", *arguments.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_one_model_proposes_and_the_other_looks(
    write_onnx: WriteOnnx, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The COCO file of ``detect`` is a proposal file; the best of the two boxes comes first."""
    monkeypatch.chdir(tmp_path)
    write_onnx("rpn.onnx")
    write_onnx("needy.onnx", proposals=1)
    assert (
        main(
            ["detect", "rpn.onnx", "frames", "--no-images", "--score", "0", "--save-coco", "p.json"]
        )
        == 0
    )
    arguments = "detect needy.onnx frames --no-images --save-json --score 0 --proposals p.json"
    assert main(arguments.split()) == 0
    proposed = json.loads(Path("p.json").read_text())["annotations"]
    content = json.loads(Path("detections/detections.json").read_text())
    for index, image in enumerate(content["images"]):
        x, y, width, height = proposed[2 * index]["bbox"]
        expected = np.clip([x, y, x + width, y + height], 0, 64)
        np.testing.assert_allclose(image["detections"][1]["box"], expected, atol=1e-4)
