import os
from pathlib import Path

import pytest

from deploykit.errors import UsageError
from deploykit.runtimes.file_inputs import (
    FileInput,
    expand_inputs,
    plan_outputs,
    refuse_overwriting,
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "a/2.png",
        "a/10.png",
        "a/clip.mp4",
        "a/notes.txt",
        "a/.h.png",
        "b/2.png",
        "x.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(inputs: list[FileInput]) -> list[str]:
    return [item.name for item in inputs]


def test_folders_files_and_patterns(tree: Path) -> None:
    inputs, failures = expand_inputs(["a", "*/2.png", "x.jpg", "a/notes.txt"])
    assert names(inputs) == ["a/2.png", "a/10.png", "b/2.png", "x.jpg", "a/notes.txt", "a/clip.mp4"]
    assert [item.is_video for item in inputs] == [False] * 5 + [True]
    assert failures == []


def test_each_file_once(tree: Path) -> None:
    inputs, _ = expand_inputs(["a", "a/2.png", "b/../a/2.png", str(tree / "a" / "2.png")])
    assert names(inputs) == ["a/2.png", "a/10.png", "a/clip.mp4"]


def test_cameras_and_streams(tree: Path) -> None:
    inputs, _ = expand_inputs(["0", "rtsp://host/front", "a/clip.mp4"])
    assert [(item.source, item.is_live) for item in inputs] == [
        (0, True),
        ("rtsp://host/front", True),
        (Path("a/clip.mp4"), False),
    ]
    assert names(inputs)[0] == "camera 0"
    (tree / "7").mkdir()
    (tree / "7" / "a.png").touch()
    assert names(expand_inputs(["7"])[0]) == ["7/a.png"]


def test_what_stands_for_nothing_is_reported(tree: Path) -> None:
    inputs, failures = expand_inputs(["empty", "no*.png", "*.txt", "missing.jpg"])
    # A missing file is reported when it is read.
    assert names(inputs) == ["missing.jpg"]
    assert [str(failure) for failure in failures] == [
        "no images or videos in empty",
        "no file matches the pattern 'no*.png'",
        "no file matches the pattern '*.txt'",
    ]


def test_output_names_do_not_collide() -> None:
    sources = ["a/x.jpg", "b/x.jpg", "c/X.jpg", "x-2.jpg", "x.tif", "x.png", "x.mov", "v/x.mp4"]
    inputs = [FileInput(Path(name), name.endswith(("mov", "mp4"))) for name in sources]
    inputs += [FileInput(0, True), FileInput("rtsp://h/front", True), FileInput("rtsp://h", True)]
    outputs = plan_outputs(inputs, Path("out"))
    assert [str(path) for path in outputs] == [
        "out/x.jpg",
        "out/x-2.jpg",
        "out/X-3.jpg",
        "out/x-2-2.jpg",
        "out/x.png",
        "out/x-2.png",
        "out/x.mp4",
        "out/x-2.mp4",
        "out/camera0.mp4",
        "out/front.mp4",
        "out/stream.mp4",
    ]
    assert len({str(path).lower() for path in outputs}) == len(outputs)


def test_inputs_are_never_overwritten(tree: Path) -> None:
    inputs = [Path("a/2.png"), Path("x.jpg")]
    refuse_overwriting([Path("out/2.png"), Path("b/2.png")], inputs)
    (tree / "link").symlink_to(tree / "a")
    os.link(tree / "x.jpg", tree / "hard.jpg")
    for output in ("a/2.png", "b/../a/2.png", "link/2.png", "hard.jpg", str(tree / "x.jpg")):
        with pytest.raises(UsageError, match="would overwrite the input"):
            refuse_overwriting([Path(output)], inputs)
