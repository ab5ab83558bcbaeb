"""Detection over many files: load, detect, draw, write, record, and go on after a broken one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from deploykit.detections import Detections
from deploykit.drawing import DrawStyle
from deploykit.errors import DatasetError, DeploykitError, MediaError
from deploykit.image_io import BgrImage, write_image
from deploykit.proposals import ProposalTable
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.file_inputs import Failure, FileInput
from deploykit.runtimes.result_files import DetectionLog
from deploykit.runtimes.sources import VideoReader, load_image
from deploykit.runtimes.stream import in_batches, read_ahead
from deploykit.runtimes.video_writer import DEFAULT_FPS, VideoWriter

Planned = tuple[FileInput, Path | None]


class DetectionRun:
    """Detects in files one after the other and writes what was found.

    Args:
        detector: The detector.
        log: Receives the results and the failures.
        batch_size: Images or frames that run at once.
        classes: Names or labels that are kept; all by default.
        proposals: Where to look up the proposals of each image, for models that take them.
        style: How the annotated pictures are drawn.
        on_progress: Called with the number of images or frames that were just finished.
        on_failure: Called for every input that cannot be read, or not to its end.

    Attributes:
        seconds: Time spent so far in the stages ``prepare``, ``network`` and ``finish``.
    """

    def __init__(
        self,
        detector: Detector,
        log: DetectionLog,
        *,
        batch_size: int = 1,
        classes: Sequence[str | int] | None = None,
        proposals: ProposalTable | None = None,
        style: DrawStyle | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
        on_failure: Callable[[Failure], None] = lambda failure: None,
    ) -> None:
        self.detector = detector
        self.log = log
        self.seconds = {"prepare": 0.0, "network": 0.0, "finish": 0.0}
        self._batch_size = batch_size
        self._classes = classes
        self._proposals = proposals
        self._style = style
        self._on_progress = on_progress
        self._on_failure = on_failure

    def fail(self, failure: Failure) -> None:
        """Record an input that cannot be read, or not to its end."""
        self.log.failures.append(failure)
        self._on_failure(failure)

    def images(self, planned: Sequence[Planned]) -> None:
        """Detect in images; each annotated picture goes to the path planned with it, if any.

        Raises:
            MediaError: A picture cannot be written.
            BackendError: The engine failed.
        """
        with closing(self._loaded(planned)) as loaded:
            for batch in in_batches(loaded, self._batch_size):
                given = None
                if self._proposals is not None:
                    given = [self._proposals.find(item.name) for item, _, _ in batch]
                results = self._detect([image for _, _, image in batch], given)
                for (item, output, image), found in zip(batch, results, strict=True):
                    if output is not None:
                        write_image(output, found.draw(image, self._style))
                    self.log.add_image(item.name, output, found)
                self._on_progress(len(batch))

    def video(self, item: FileInput, output: Path | None) -> None:
        """Detect in the frames of a video, camera or stream; Ctrl-C ends the latter two.

        Raises:
            MediaError: The annotated video cannot be written.
            BackendError: The engine failed.
        """
        if self.detector.spec.input.proposals:
            self.fail(Failure(item.name, "the model needs proposals, which frames have none of"))
            return
        with ExitStack() as resources:
            try:
                reader = resources.enter_context(VideoReader(item.source))
            except MediaError as error:
                self.fail(Failure(item.name, str(error)))
                return
            fps = reader.fps or DEFAULT_FPS
            writer = resources.enter_context(VideoWriter(output, fps)) if output else None
            # Closed before the reader is, so that no thread reads from a released video.
            frames = resources.enter_context(closing(self._frames(item, reader)))
            try:
                for batch in in_batches(frames, self._batch_size):
                    for frame, found in zip(batch, self._detect(batch), strict=True):
                        if writer is not None:
                            writer.write(found.draw(frame, self._style))
                        self.log.add_frame(item.name, output, fps, found)
                    self._on_progress(len(batch))
            except KeyboardInterrupt:
                if not item.is_live:
                    raise

    def _loaded(
        self, planned: Sequence[Planned]
    ) -> Generator[tuple[FileInput, Path | None, BgrImage], None, None]:
        """Yield the images that can be read; report the others."""

        def load() -> Iterator[tuple[FileInput, Path | None, BgrImage | DeploykitError]]:
            for item, output in planned:
                try:
                    if self._proposals is not None:
                        self._proposals.find(item.name)  # an image without them is left out
                    yield item, output, load_image(item.source)
                except (MediaError, DatasetError) as error:
                    yield item, output, error

        with closing(read_ahead(load())) as ahead:
            for item, output, loaded in ahead:
                if isinstance(loaded, DeploykitError):
                    self.fail(Failure(item.name, str(loaded)))
                    self._on_progress(1)
                else:
                    yield item, output, loaded

    def _frames(self, item: FileInput, reader: VideoReader) -> Generator[BgrImage, None, None]:
        try:
            yield from reader if item.is_live else read_ahead(reader)
        except MediaError as error:
            self.fail(Failure(item.name, str(error)))
        if reader.shortfall:
            self.fail(Failure(item.name, reader.shortfall))

    def _detect(
        self, images: Sequence[BgrImage], proposals: Sequence[Any] | None = None
    ) -> list[Detections]:
        start = time.perf_counter()
        prepared = self.detector.prepare(images, proposals)
        ready = time.perf_counter()
        outputs = self.detector.backend.infer(*prepared.inputs)
        computed = time.perf_counter()
        results = self.detector.finish(outputs, prepared)
        self.seconds["prepare"] += ready - start
        self.seconds["network"] += computed - ready
        self.seconds["finish"] += time.perf_counter() - computed
        if self._classes is None:
            return results
        return [found.filter(classes=self._classes) for found in results]
