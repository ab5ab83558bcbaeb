import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import Detector
from deploykit.errors import BackendError, MediaError, UsageError
from deploykit.runtimes.sources import VideoReader, is_live, is_video
from deploykit.runtimes.stream import in_batches, read_ahead

MakeImage = Callable[..., np.ndarray]
WriteVideo = Callable[..., Path]


@pytest.fixture
def detector(onnx_path: Path) -> Detector:
    return Detector(onnx_path, score_threshold=0.0)


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_videos(detector: Detector, video_path: Path, batch_size: int) -> None:
    pairs = list(detector.stream(video_path, batch_size=batch_size))
    assert len(pairs) == 12
    for frame, found in pairs:
        assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
        assert found == detector(frame)
    redness = [frame[..., 2].mean() for frame, _ in pairs]
    assert np.diff(redness).min() > 0, "frames come in order"
    assert len({id(frame) for frame, _ in pairs}) == 12, "no frame is overwritten by the next"


def test_series_of_images(detector: Detector, image_folder: Path) -> None:
    expected = detector(image_folder)
    paths = [image_folder / f"frame{index}.png" for index in range(12)]
    for source in (image_folder, str(image_folder / "*.png"), paths, iter(paths), tuple(paths)):
        pairs = list(detector.stream(source, batch_size=5))
        assert [found for _, found in pairs] == expected
    assert [found for _, found in detector.stream(paths[3])] == [expected[3]]


def test_streams_are_lazy(detector: Detector, noise_image: MakeImage) -> None:
    taken = []

    def frames() -> Iterator[np.ndarray]:
        for index in range(1000):
            taken.append(threading.get_ident())
            yield noise_image(index, 32, 32)

    stream = detector.stream(frames(), batch_size=2)
    for _ in range(3):
        next(stream)
    assert len(taken) == 4
    assert set(taken) == {threading.get_ident()}, "the caller's iterator runs in his thread"


def test_frames_before_a_broken_one_are_given(
    detector: Detector, image_folder: Path, faulty_files: dict[str, Path]
) -> None:
    stream = detector.stream([image_folder / "frame0.png", faulty_files["truncated"]])
    next(stream)
    with pytest.raises(MediaError, match=r"truncated\.jpg"):
        next(stream)


def test_leaving_early_releases_the_video(detector: Detector, video_path: Path) -> None:
    before = threading.active_count()
    stream = detector.stream(video_path)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_failing_network_stops_the_reading_first(
    detector: Detector, video_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releasing a video that another thread reads from can crash the process."""
    events = []
    read, close = VideoReader.__iter__, VideoReader.close

    def slow_frames(self: VideoReader) -> Iterator[np.ndarray]:
        for frame in read(self):
            events.append("read")
            time.sleep(0.05)
            events.append("done")
            yield frame

    def close_and_tell(self: VideoReader) -> None:
        events.append("close")
        close(self)

    monkeypatch.setattr(VideoReader, "__iter__", slow_frames)
    monkeypatch.setattr(VideoReader, "close", close_and_tell)
    detector.close()
    with pytest.raises(BackendError, match="is closed"):
        list(detector.stream(video_path))
    assert events == ["read", "done", "read", "done", "close"]


def test_a_stream_over_a_dict_is_refused(detector: Detector) -> None:
    with pytest.raises(UsageError, match="cannot detect in a dict"):
        list(detector.stream({}))


def test_video_properties(video_path: Path) -> None:
    with VideoReader(video_path) as reader:
        assert (reader.fps, reader.frame_count, reader.frames_read) == (10, 12, 0)
        assert len(list(reader)) == reader.frames_read == 12
        assert reader.shortfall is None


def test_a_truncated_video_is_reported(
    detector: Detector, write_video: WriteVideo, tmp_path: Path
) -> None:
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"cannot open .*cut\.mp4"):
        list(detector.stream(tmp_path / "cut.mp4"))


def test_a_video_that_ends_early_is_reported(
    detector: Detector, tmp_path: Path, noise_image: MakeImage
) -> None:
    from deploykit.runtimes.video_writer import VideoWriter

    path = tmp_path / "early.mp4"
    with VideoWriter(path, fps=10) as writer:  # has its index in front
        for seed in range(20):
            writer.write(noise_image(seed, 64, 96))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.warns(RuntimeWarning, match=r"early\.mp4 ended after \d+ of 20 frames"):
        pairs = list(detector.stream(path))
    assert 0 < len(pairs) < 19


def test_a_whole_video_gives_no_warning(detector: Detector, video_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(detector.stream(video_path))) == 12


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "this is missing"),
        ("empty.mp4", b"", r"is empty \(0 bytes\)"),
        ("text.mp4", b"this is no video", "cannot open"),
    ],
)
def test_faulty_videos_are_named(
    detector: Detector, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        list(detector.stream(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_camera(detector: Detector) -> None:
    with pytest.raises(MediaError, match="cannot open camera 77"):
        list(detector.stream(77))


@pytest.mark.parametrize(
    ("source", "live", "video"),
    [
        (0, True, True),
        ("rtsp://camera/1", True, True),
        ("HTTP://host/clip.mp4", True, True),
        ("clip.MP4", False, True),
        (Path("clip.mkv"), False, True),
        ("image.png", False, False),
        ("C:/image.png", False, False),
        (None, False, False),
    ],
)
def test_kinds_of_sources(source: Any, live: bool, video: bool) -> None:
    assert (is_live(source), is_video(source)) == (live, video)


def test_batches() -> None:
    assert list(in_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_batches([], 3)) == []


def test_reading_ahead_overlaps() -> None:
    """The second item is fetched while the first one is worked on."""
    fetched = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        fetched.set()
        yield 1

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert fetched.wait(timeout=30)
    assert list(ahead) == [1]


def test_reading_ahead_passes_errors_on() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise MediaError("broken")

    ahead = read_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(MediaError, match="broken"):
        next(ahead)
    assert list(read_ahead([])) == []
    assert list(read_ahead([None, None])) == [None, None]
