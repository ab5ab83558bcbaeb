from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import deploykit.runtimes.video_writer
from deploykit.errors import MediaError
from deploykit.runtimes.video_writer import VideoWriter

MakeImage = Callable[..., np.ndarray]


@pytest.fixture(params=["h264", "mpeg4"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mpeg4":
        monkeypatch.setattr(deploykit.runtimes.video_writer, "_import_av", lambda: None)
    else:
        pytest.importorskip("av")
    return str(request.param)


def read_back(path: Path) -> tuple[list[np.ndarray], float, str]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        read, frame = capture.read()
        if not read:
            break
        frames.append(frame)
    code = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    return frames, capture.get(cv2.CAP_PROP_FPS), code


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 96), (64, 96)), ((63, 95), (64, 96)), ((1, 1), (2, 2))]
)
def test_round_trip(
    tmp_path: Path,
    codec: str,
    plain_image: MakeImage,
    size: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    path = tmp_path / "new" / "video.mp4"
    if codec == "mpeg4" and size == (1, 1):
        pytest.skip("MPEG-4 has no such small frames")
    with VideoWriter(path, fps=12.5) as writer:
        for level in (60, 120, 180):
            writer.write(plain_image(level, level, level, *size))
        assert not path.exists(), "the file appears when it is whole"
    frames, fps, code = read_back(path)
    assert [round(float(frame.mean()), -1) for frame in frames] == [60, 120, 180]
    assert {frame.shape[:2] for frame in frames} == {expected}
    assert fps == pytest.approx(12.5)
    assert code in {"h264": ("h264", "avc1"), "mpeg4": ("FMP4", "mp4v")}[codec]
    assert [p.name for p in path.parent.iterdir()] == ["video.mp4"]


def test_an_exception_leaves_nothing(tmp_path: Path, codec: str, plain_image: MakeImage) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"an older video")
    with pytest.raises(KeyError), VideoWriter(path) as writer:
        writer.write(plain_image(1, 2, 3))
        raise KeyError
    assert path.read_bytes() == b"an older video"
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def test_no_frames_no_file(tmp_path: Path, codec: str) -> None:
    with VideoWriter(tmp_path / "video.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats(tmp_path: Path, codec: str, plain_image: MakeImage) -> None:
    with (
        pytest.raises(MediaError, match=r"video"),
        VideoWriter(tmp_path / "video.xyz") as writer,
    ):
        writer.write(plain_image(1, 2, 3))
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size(tmp_path: Path, plain_image: MakeImage) -> None:
    with (
        pytest.raises(MediaError, match=r"must have the size of the first, \(64, 64\)"),
        VideoWriter(tmp_path / "video.mp4") as writer,
    ):
        writer.write(plain_image(1, 2, 3))
        writer.write(plain_image(1, 2, 3, height=32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, 2000, float("nan")])
def test_impossible_frame_rates(tmp_path: Path, fps: float) -> None:
    with pytest.raises(MediaError, match="frames per second"):
        VideoWriter(tmp_path / "video.mp4", fps)


def test_a_folder_that_cannot_be_made(tmp_path: Path, plain_image: MakeImage) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(MediaError, match="cannot write"),
        VideoWriter(tmp_path / "file" / "video.mp4") as writer,
    ):
        writer.write(plain_image(1, 2, 3))
