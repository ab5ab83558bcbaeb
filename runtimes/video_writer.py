"""Writing video files: H.264 through PyAV where it is installed, else MPEG-4 through OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

import cv2
import numpy as np

from deploykit.atomic_file import atomic_path
from deploykit.errors import MediaError
from deploykit.image_io import BgrImage

DEFAULT_FPS = 25.0


class _Encoder(Protocol):
    def write(self, frame: BgrImage) -> None: ...

    def close(self) -> None: ...


class VideoWriter:
    """Writes frames of one size to a video file, which appears whole or not at all.

    Used as a context manager: the file gets its final name when the block ends without an
    exception and at least one frame was written. H.264 (package ``av``) plays in browsers; without
    that package the codec is MPEG-4 Part 2.

    Args:
        path: The file, e.g. ``out.mp4``; its folder is created when missing.
        fps: Frames per second.

    Raises:
        MediaError: The file cannot be written, or a frame has another size than the first.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = DEFAULT_FPS) -> None:
        if not 0 < fps <= 1000:
            raise MediaError(f"frames per second must be within 0..1000, got {fps}")
        self.path = Path(path)
        self.fps = fps
        self.frames_written = 0
        self._size: tuple[int, int] | None = None
        self._encoder: _Encoder | None = None
        self._file = ExitStack()

    def write(self, frame: BgrImage) -> None:
        """Append a frame, uint8 [H, W, 3] BGR; an odd height or width is padded by one pixel."""
        if self._encoder is None:
            self._size = (frame.shape[0], frame.shape[1])
            self._encoder = self._open(self._size)
        if frame.shape[:2] != self._size:
            raise MediaError(
                f"every frame of {self.path} must have the size of the first, {self._size}, got "
                f"{frame.shape[:2]}"
            )
        self._encoder.write(_evened(frame))
        self.frames_written += 1

    def _open(self, size: tuple[int, int]) -> _Encoder:
        height, width = (side + side % 2 for side in size)
        try:
            temporary = self._file.enter_context(atomic_path(self.path))
        except OSError as error:
            raise MediaError(f"cannot write {self.path}: {error.strerror or error}") from None
        av = _import_av()
        if av is None:
            return _OpenCvEncoder(temporary, self.fps, width, height)
        return _H264Encoder(av, temporary, self.fps, width, height)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The stack gives the file its name, or removes it when it is handed an exception.
        try:
            if self._encoder is not None:
                self._encoder.close()
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(kind, error, traceback)


class _H264Encoder:
    """H.264 at constant quality, with the index in front so that playing can start at once."""

    def __init__(self, av: ModuleType, path: Path, fps: float, width: int, height: int) -> None:
        self._av = av
        rate = Fraction(fps).limit_denominator(10_000)
        with self._errors_named():
            self._container = av.open(str(path), "w", options={"movflags": "faststart"})
            self._stream: Any = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    def write(self, frame: BgrImage) -> None:
        picture = self._av.VideoFrame.from_ndarray(frame, format="bgr24")
        with self._errors_named():
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        with self._errors_named():
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (self._av.error.FFmpegError, ValueError) as error:
            raise MediaError(f"the video cannot be written: {error}") from None


class _OpenCvEncoder:
    def __init__(self, path: Path, fps: float, width: int, height: int) -> None:
        self._writer = cv2.VideoWriter(
            str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height)
        )
        if not self._writer.isOpened():
            raise MediaError(
                f"OpenCV cannot write a video to {path.suffix} files; use .mp4, or install the "
                f"package 'av': pip install 'deploykit[video]'"
            )

    def write(self, frame: BgrImage) -> None:
        self._writer.write(frame)

    def close(self) -> None:
        self._writer.release()


def _import_av() -> ModuleType | None:
    """Return PyAV with the H.264 encoder, or ``None`` where there is none."""
    try:
        import av
    except ImportError:
        return None
    module: ModuleType = av
    return module if "libx264" in av.codecs_available else None


def _evened(frame: BgrImage) -> BgrImage:
    """Repeat the last row and column where needed: 4:2:0 video has even sizes."""
    bottom, right = frame.shape[0] % 2, frame.shape[1] % 2
    if not bottom and not right:
        return np.ascontiguousarray(frame)
    padded = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8)
