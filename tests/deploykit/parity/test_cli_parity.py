from __future__ import annotations

import json

import pytest

import deploykit.runtimes.detector
from deploykit.cli import main
from deploykit.image_io import write_image

CAT = (2, 3, 8, 9, 0.9, 0)
MOVED = (2.5, 3, 8, 9, 0.9, 0)


@pytest.fixture
def opened(fakes, monkeypatch):
    """Open ``good.*`` and ``bad.*`` as models that find a cat, the bad one beside its place."""
    calls = []

    def open_detector(path, **options):
        calls.append((path.name, options))
        found = MOVED if path.stem == "bad" else CAT
        return fakes.Detector({key: fakes.rows_of(found) for key in range(10)})

    monkeypatch.setattr(deploykit.runtimes.detector, "Detector", open_detector)
    return calls


@pytest.fixture
def images(tmp_path, fakes):
    for key in range(4):
        write_image(tmp_path / "photos" / f"{key}.png", fakes.image_of(key))
    return tmp_path / "photos"


def test_agreement_exits_with_0(opened, images, capsys):
    code = main(["parity", "good.pth", "good.onnx", "--images", str(images), "--batch-size", "2"])
    assert code == 0
    assert "parity: PASS" in capsys.readouterr().out
    assert [name for name, _ in opened] == ["good.pth", "good.onnx"]


def test_disagreement_exits_with_1_and_the_json_says_why(opened, images, tmp_path, capsys):
    path = tmp_path / "out" / "parity.json"
    arguments = ["parity", "good.pth", "bad.onnx", "--images", str(images), "--json", str(path)]
    assert main(arguments) == 1
    data = json.loads(path.read_text())
    assert data["passed"] is False and data["overall"]["images"] == 4
    assert data["reference"]["name"] == "good.pth"
    assert "box error above 0.1 px in 4 images" in capsys.readouterr().out
    assert main([*arguments, "--box-tolerance", "0.6"]) == 0


def test_options_reach_the_detectors_and_the_tolerances(opened, images, tmp_path):
    path = tmp_path / "parity.json"
    arguments = ["--shape", "64x96", "--threads", "1", "--device", "cpu", "--limit", "2"]
    arguments += ["--score", "0.2", "--score-tolerance", "0.01", "--score-margin", "0.1"]
    pattern = str(images / "*.png")
    command = ["parity", "good.pth", "good.onnx", "--images", pattern, "--json", str(path)]
    assert main(command + arguments) == 0
    options = {"device": "cpu", "input_size": (64, 96), "num_threads": 1}
    assert opened[-2:] == [("good.pth", options), ("good.onnx", options)]
    data = json.loads(path.read_text())
    assert [image["name"][-5:] for image in data["images"]] == ["0.png", "2.png"]
    tolerances = data["tolerances"]
    assert (tolerances["count_threshold"], tolerances["score"], tolerances["margin"]) == (
        0.2,
        0.01,
        0.1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "missing"], "image file not found: missing"),
        (["--images", "missing/*.png"], "no file matches"),
        (["--images", "IMAGES", "--limit", "0"], "must be at least 1"),
        (["--images", "IMAGES", "--batch-size", "0"], "must be at least 1"),
        (["--images", "IMAGES", "--batch-size", "99"], "takes batch size 1:1:8, not 99"),
        (["--images", "IMAGES", "--shape", "640"], "expected HEIGHTxWIDTH"),
        (["--images", "IMAGES", "--box-tolerance", "-1"], "box must be within"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(opened, images, capsys, arguments, message):
    arguments = [str(images) if word == "IMAGES" else word for word in arguments]
    assert main(["parity", "good.pth", "good.onnx", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("deploykit: error: ") and error.count("\n") == 1
    assert message in error


def test_a_missing_model_exits_with_2(images, capsys):
    assert main(["parity", "missing.pth", "missing.onnx", "--images", str(images)]) == 2
    assert "missing.pth" in capsys.readouterr().err
