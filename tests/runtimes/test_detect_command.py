import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.cli import detect, main
from deploykit.detections import Detections
from deploykit.image_io import read_image
from deploykit.proposals import write_proposals
from deploykit.runtimes.detection_run import DetectionRun
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.file_inputs import FileInput
from deploykit.runtimes.result_files import DetectionLog
from deploykit.runtimes.sources import VideoReader
from deploykit.runtimes.video_writer import VideoWriter
from deploykit.spec import DimRange

MakeImage = Callable[..., np.ndarray]
WriteOnnx = Callable[..., Path]
BOX = np.array([[8, 4, 40, 60, 0.9]], np.float32)


@pytest.fixture
def place(tmp_path: Path, onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``model.onnx`` in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_annotates_a_folder(place: Path, image_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["detect", "model.onnx", "frames", "--out", "results"]) == 0
    assert listing(place / "results") == sorted(f"frame{index}.png" for index in range(12))
    original, annotated = (read_image(d / "frame5.png") for d in (image_folder, place / "results"))
    assert original.shape == annotated.shape
    assert (original != annotated).any()
    printed = capsys.readouterr().out
    assert "12 images" in printed and "12 detections" in printed and "cat" in printed
    assert "ms per image" in printed and "wrote 12 files to results" in printed


def test_the_picture_is_what_draw_gives(place: Path, image_folder: Path) -> None:
    assert main(["detect", "model.onnx", "frames/frame9.png", "--score", "0.1"]) == 0
    image = read_image(image_folder / "frame9.png")
    expected = Detector(place / "model.onnx", score_threshold=0.1)(image).draw(image)
    np.testing.assert_array_equal(read_image(place / "detections" / "frame9.png"), expected)


def test_json(place: Path, image_folder: Path, video_path: Path) -> None:
    arguments = "detect model.onnx frames clip.mp4 nothing.png --save-json --no-images --score 0"
    assert main(arguments.split()) == 0
    assert listing(place / "detections") == ["detections.json"]
    data = json.loads((place / "detections" / "detections.json").read_text())
    assert data["class_names"] == ["cat", "dog", "bird"]
    assert [image["file"] for image in data["images"]] == [
        f"frames/frame{index}.png" for index in range(12)
    ]
    assert data["images"][0]["output"] is None
    detector = Detector(place / "model.onnx", score_threshold=0)
    for image in data["images"]:
        found = Detections.from_dict(image | {"class_names": data["class_names"]})
        assert found == detector(place / image["file"])
    (video,) = data["videos"]
    assert (video["file"], video["fps"], video["image_size"]) == ("clip.mp4", 10, [64, 96])
    assert [frame["index"] for frame in video["frames"]] == list(range(12))
    for frame, (_, found) in zip(video["frames"], detector.stream(video_path), strict=True):
        assert frame["detections"] == found.to_dict()["detections"]
    assert data["failed"] == [
        {"file": "nothing.png", "reason": "image file not found: nothing.png"}
    ]


def test_coco(place: Path, image_folder: Path, video_path: Path) -> None:
    arguments = "detect model.onnx frames clip.mp4 --no-images --save-coco out/c.json --score 0"
    assert main(arguments.split()) == 0
    from pycocotools.coco import COCO

    coco = COCO(str(place / "out" / "c.json"))
    assert len(coco.imgs) == 24 and len(coco.anns) == 48
    assert [coco.cats[i]["name"] for i in (1, 2, 3)] == ["cat", "dog", "bird"]
    assert coco.imgs[1]["file_name"] == "frames/frame0.png"
    assert coco.imgs[24]["file_name"] == "clip.mp4#frame=11"
    detector = Detector(place / "model.onnx", score_threshold=0)
    found = detector(image_folder / "frame0.png")
    assert [a["bbox"] for a in coco.imgToAnns[1]] == [r["bbox"] for r in found.to_coco(1)]
    assert [a["score"] for a in coco.imgToAnns[1]] == found.scores.tolist()


def test_videos(place: Path, video_path: Path) -> None:
    assert main(["detect", "model.onnx", "clip.mp4", "--batch-size", "5"]) == 0
    with VideoReader(place / "detections" / "clip.mp4") as reader:
        frames = list(reader)
        assert reader.fps == 10
    assert len(frames) == 12 and frames[0].shape == (64, 96, 3)
    with VideoReader(video_path) as reader:
        differences = [
            np.abs(ours.astype(int) - theirs).mean()
            for ours, theirs in zip(frames, reader, strict=True)
        ]
    assert min(differences) > 1, "every frame is annotated"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_broken_files_do_not_stop_the_run(
    place: Path,
    image_folder: Path,
    faulty_files: dict[str, Path],
    capsys: pytest.CaptureFixture,
    batch_size: int,
) -> None:
    (place / "faulty" / "cut.mp4").write_bytes(b"\0" * 100)
    arguments = ["detect", "model.onnx", "faulty", "frames", "missing.jpg", "empty*"]
    assert main([*arguments, "--batch-size", str(batch_size)]) == 0
    printed = capsys.readouterr()
    assert len(listing(place / "detections")) == 12
    for name in ("truncated.jpg", "text.jpg", "zero_bytes.jpg", "header_only.png", "cut.mp4"):
        (line,) = (line for line in printed.out.splitlines() if name in line)
        assert line.startswith(f"failed: {'cannot open ' * (name == 'cut.mp4')}faulty/{name}")
    assert "failed: image file not found: missing.jpg" in printed.out
    assert "12 images, 7 failed" in printed.out
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("name", ["truncated.jpg", "nothing.jpg", "nothing*.jpg", "none.mp4"])
def test_exit_code_2_when_nothing_can_be_read(
    place: Path, faulty_files: dict[str, Path], capsys: pytest.CaptureFixture, name: str
) -> None:
    assert main(["detect", "model.onnx", f"faulty/{name}"]) == 2
    assert "1 failed" in capsys.readouterr().out
    assert not (place / "detections").exists()


def test_same_names_in_different_folders(place: Path, plain_image: MakeImage) -> None:
    for folder, red in (("a", 100), ("b", 200)):
        (place / folder).mkdir()
        cv2.imwrite(str(place / folder / "x.png"), plain_image(red, 0, 0))
    assert main(["detect", "model.onnx", "a", "b", "--hide-labels"]) == 0
    assert listing(place / "detections") == ["x-2.png", "x.png"]
    centres = [read_image(place / "detections" / name)[32, 32, 2] for name in ("x.png", "x-2.png")]
    assert centres == [100, 200]


@pytest.mark.parametrize(
    "arguments",
    [
        "frames --out frames",
        "frames/frame0.png --out out --save-coco frames/frame0.png",
        "frames --no-images --save-coco model.onnx",
    ],
)
def test_inputs_are_never_overwritten(
    place: Path, image_folder: Path, capsys: pytest.CaptureFixture, arguments: str
) -> None:
    before = {name: (place / name).read_bytes() for name in listing(place)}
    assert main(["detect", "model.onnx", *arguments.split()]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert {name: (place / name).read_bytes() for name in listing(place)} == before


def test_classes(place: Path, image_folder: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["detect", "model.onnx", "frames", "--no-images", "--score", "0"]
    for classes, expected in (("dog", "12 detections"), ("0, dog", "24 detections"), ("2", None)):
        assert main([*arguments, "--classes", classes]) == 0
        printed = capsys.readouterr().out
        assert (expected is None and "detections" not in printed) or expected in printed
    assert main([*arguments, "--classes", "dgo"]) == 2
    assert "unknown class 'dgo'. Did you mean dog" in capsys.readouterr().err


def test_labels_can_be_hidden(place: Path, image_folder: Path) -> None:
    pictures = {}
    for option in ("--show-labels", "--hide-labels"):
        assert main(["detect", "model.onnx", "frames/frame9.png", option]) == 0
        pictures[option] = read_image(place / "detections" / "frame9.png")
    assert (pictures["--show-labels"] != pictures["--hide-labels"]).any()


def test_input_size(write_onnx: WriteOnnx, place: Path, image_folder: Path) -> None:
    sides = DimRange(32, 64, 128)
    write_onnx("dynamic.onnx", height=sides, width=sides)
    arguments = ["detect", "dynamic.onnx", "frames", "--no-images", "--save-json", "--shape"]
    assert main([*arguments, "96x128"]) == 0
    data = json.loads((place / "detections" / "detections.json").read_text())
    expected = Detector(place / "dynamic.onnx", input_size=(96, 128))(image_folder)
    assert data["images"][11]["detections"] == expected[11].to_dict()["detections"]
    assert main([*arguments, "100x128"]) == 2
    assert main([*arguments, "96"]) == 2
    assert main(["detect", "dynamic.onnx", "frames", "--classes", ","]) == 2


def test_a_static_batch_is_used_whole(
    write_onnx: WriteOnnx, place: Path, image_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    write_onnx("four.onnx", batch=DimRange.fixed(4))
    assert main(["detect", "four.onnx", "frames", "--no-images"]) == 0
    assert "12 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing.onnx frames", "this is missing: nothing.onnx"),
        ("notes.txt frames", "cannot tell which backend"),
        ("broken.onnx frames", "ONNX Runtime cannot load broken.onnx"),
        ("model.onnx frames --device tpu", "unknown device 'tpu'"),
        ("model.onnx frames --score 2", "score_threshold must be within"),
        ("model.onnx frames --batch-size 99", "batches of up to 16"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    place: Path, image_folder: Path, capsys: pytest.CaptureFixture, arguments: str, message: str
) -> None:
    (place / "broken.onnx").write_bytes(b"no model")
    assert main(["detect", *arguments.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.startswith("deploykit: error: ") and printed.count("\n") == 1


def test_the_command_prints_no_noise_of_libraries(
    place: Path, image_folder: Path, onnx_path: Path
) -> None:
    """FFmpeg and OpenCV write about broken files to stderr by themselves unless told not to."""
    (place / "cut.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 300)
    command = [sys.executable, "-m", "deploykit", "detect", "model.onnx", "cut.mp4", "frames", "9"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0
    assert "12 images, 2 failed" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("example", detect.EXAMPLES)
def test_examples_of_the_help_work(
    place: Path, image_folder: Path, video_path: Path, write_onnx: WriteOnnx, example: str
) -> None:
    image_folder.rename(place / "images")
    (place / "street.jpg").write_bytes((place / "images" / "frame3.png").read_bytes())
    write_onnx("fast_rcnn.onnx", proposals=2)
    write_proposals("proposals.npz", {f"images/frame{i}.png": BOX for i in range(12)})
    program, *arguments = shlex.split(example)
    assert program == "deploykit"
    assert main(arguments) == 0


def test_ctrl_c_ends_a_camera_and_keeps_its_video(
    place: Path, plain_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that delivers three frames until the user presses Ctrl-C."""
    with_camera = FileInput(0, is_video=True)
    monkeypatch.setattr(VideoReader, "__init__", _camera_init)
    monkeypatch.setattr(
        VideoReader, "__iter__", lambda self: _frames_then_ctrl_c(plain_image(200, 100, 50))
    )
    monkeypatch.setattr(VideoReader, "close", lambda self: None)
    detector = Detector(place / "model.onnx")
    log = DetectionLog("model.onnx", detector.class_names)
    DetectionRun(detector, log).video(with_camera, place / "camera0.mp4")
    assert log.frames == 3
    monkeypatch.undo()
    with VideoReader(place / "camera0.mp4") as reader:
        assert len(list(reader)) == 3


def test_ctrl_c_in_a_file_ends_the_run(
    place: Path, video_path: Path, plain_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        VideoReader, "__iter__", lambda self: _frames_then_ctrl_c(plain_image(200, 100, 50))
    )
    assert main(["detect", "model.onnx", "clip.mp4"]) == 130
    assert not (place / "detections" / "clip.mp4").exists()


def test_a_video_that_ends_early_is_reported(place: Path, capsys: pytest.CaptureFixture) -> None:
    path = place / "early.mp4"
    with VideoWriter(path, fps=10) as writer:
        for seed in range(20):
            noise = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
            writer.write(noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert main(["detect", "model.onnx", "early.mp4"]) == 0
    assert "failed: early.mp4 ended after" in capsys.readouterr().out
    assert (place / "detections" / "early.mp4").exists()


def _camera_init(self: VideoReader, source: int) -> None:
    self.source, self.name = source, f"camera {source}"
    self.fps = self.frame_count = None
    self.frames_read = 3


def _frames_then_ctrl_c(frame: np.ndarray):
    yield from [frame] * 3
    raise KeyboardInterrupt
