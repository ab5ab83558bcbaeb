"""Where images come from: files, folders, glob patterns, arrays, videos, cameras, streams."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from deploykit.errors import MediaError, UsageError
from deploykit.image_io import BgrImage, as_bgr, list_images, natural_key, read_image

_SUFFIXES = "3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
_URL_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp", "srt")


def load_image(item: Any) -> BgrImage:
    """Return one image given as a path, an array or a PIL image as BGR uint8 [H, W, 3].

    Raises:
        MediaError: It is missing, damaged or of an unsupported kind.
    """
    if isinstance(item, str | os.PathLike):
        return read_image(item)
    return as_bgr(item)


def is_video_path(path: str | os.PathLike[str]) -> bool:
    """Return whether the suffix of ``path`` is that of a video format."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def is_stream_url(source: Any) -> bool:
    """Return whether ``source`` is the URL of a video stream."""
    return isinstance(source, str) and urlsplit(source).scheme.lower() in _URL_SCHEMES


def is_live(source: Any) -> bool:
    """Return whether ``source`` is a camera index or the URL of a stream."""
    return isinstance(source, int) or is_stream_url(source)


def is_video(source: Any) -> bool:
    """Return whether ``source`` is a video file, a camera index or the URL of a stream."""
    return is_live(source) or (isinstance(source, str | os.PathLike) and is_video_path(source))


def is_single_image(source: Any) -> bool:
    """Return whether ``source`` means one image: a path to a file, an array or a PIL image."""
    if isinstance(source, str | os.PathLike):
        return not (os.path.isdir(source) or is_pattern(source) or is_video(source))
    return isinstance(source, np.ndarray) or hasattr(source, "getbands")


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a glob pattern; a file of exactly this name is not."""
    return glob.has_magic(os.fspath(path)) and not os.path.exists(path)


def expand_pattern(pattern: str | os.PathLike[str]) -> list[Path]:
    """Return the files that match a glob pattern (``**`` for any depth), in natural order.

    Raises:
        MediaError: None does.
    """
    found = [Path(name) for name in glob.glob(os.fspath(pattern), recursive=True)]
    files = sorted((path for path in found if path.is_file()), key=natural_key)
    if not files:
        raise MediaError(f"no file matches the pattern '{os.fspath(pattern)}'")
    return files


def images_of(source: Any) -> Iterable[Any]:
    """Return the images that a source of several images stands for, not loaded yet.

    Args:
        source: A list or another iterable of images, a directory, or a glob pattern.

    Raises:
        MediaError: A directory or pattern without images.
        UsageError: A video or camera, or something that holds no images.
    """
    if is_video(source):
        raise UsageError(
            f"{source!r} is a video or a camera; iterate over detector.stream(...) instead"
        )
    if isinstance(source, str | os.PathLike):
        return expand_pattern(source) if is_pattern(source) else list_images(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        return source
    raise UsageError(
        f"cannot detect in a {type(source).__name__}; expected a path, a directory, a glob "
        f"pattern, a BGR uint8 array, a PIL image, or a list of those"
    )


class VideoReader:
    """Reads the frames of a video file, a camera or a stream, each once.

    Args:
        source: Path of a video file, index of a camera, or URL of a stream.

    Attributes:
        fps: Frames per second, or ``None`` when the source does not tell.
        frame_count: Number of frames that the file promises, or ``None``. Some containers only
            estimate it.
        frames_read: Number of frames read so far.

    Raises:
        MediaError: It is missing, empty, damaged, or there is no such camera.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.source = source
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        self.frames_read = 0
        if not is_live(source):
            path = Path(self.name)
            if not path.is_file():
                what = "a directory" if path.is_dir() else "missing"
                raise MediaError(f"expected a video file, but this is {what}: {path}")
            if path.stat().st_size == 0:
                raise MediaError(f"{path} is empty (0 bytes)")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            self.close()
            hint = (
                "there is no such camera or it is in use"
                if isinstance(source, int)
                else "it is damaged, truncated, unreachable or not a video"
            )
            raise MediaError(f"cannot open {self.name}: {hint}")
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        # Containers without a frame rate report 0 or their clock rate.
        self.fps = fps if 0 < fps <= 1000 else None
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 and not is_live(source) else None

    def __iter__(self) -> Iterator[BgrImage]:
        """Yield the frames as BGR uint8 [H, W, 3]; each is a new array.

        Raises:
            MediaError: Not one frame could be decoded.
        """
        while self._capture.isOpened():
            read, frame = self._capture.read()
            if not read:
                break
            self.frames_read += 1
            yield as_bgr(np.asarray(frame), self.name)
        if not self.frames_read:
            raise MediaError(f"{self.name} holds no frame that can be decoded")

    @property
    def shortfall(self) -> str | None:
        """After the last frame: what to tell when clearly fewer came than the file promised."""
        if self.frame_count is None or self.frames_read >= 0.9 * self.frame_count - 1:
            return None
        return (
            f"{self.name} ended after {self.frames_read} of {self.frame_count} frames; it is "
            f"damaged or truncated"
        )

    def close(self) -> None:
        """Release the file or camera."""
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
