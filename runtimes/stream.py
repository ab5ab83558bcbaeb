"""Detection over a stream of frames, with decoding ahead of the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from deploykit.detections import Detections
from deploykit.image_io import BgrImage
from deploykit.runtimes.sources import (
    VideoReader,
    images_of,
    is_live,
    is_single_image,
    is_video,
    load_image,
)

T = TypeVar("T")


def stream_detections(
    detect: Callable[[Sequence[BgrImage]], list[Detections]], source: Any, batch_size: int
) -> Iterator[tuple[BgrImage, Detections]]:
    """Yield every frame of a source with its detections.

    While the network runs on one batch, the next one is decoded in a second thread. Cameras,
    streams and iterators of the caller are read in the caller's thread instead: reading them ahead
    would only make the frames older, or run the caller's code where it does not expect it.

    Args:
        detect: Runs the network on a batch of BGR images.
        source: What ``Detector.stream`` takes.
        batch_size: Frames in a batch; the last may be smaller.

    Raises:
        MediaError: The source is missing or damaged.
    """
    if is_video(source):
        with VideoReader(source) as reader:
            batches = in_batches(reader, batch_size)
            # Closed before the reader is, so that no thread reads from a released video.
            with closing(batches if is_live(source) else read_ahead(batches)) as ready:
                for batch in ready:
                    yield from zip(batch, detect(batch), strict=True)
            if reader.shortfall:
                warnings.warn(reader.shortfall, RuntimeWarning, stacklevel=2)
        return
    items = [source] if is_single_image(source) else images_of(source)
    batches = in_batches(map(load_image, items), batch_size)
    with closing(batches if isinstance(items, Iterator) else read_ahead(batches)) as ready:
        for batch in ready:
            yield from zip(batch, detect(batch), strict=True)


def in_batches(items: Iterable[T], size: int) -> Generator[list[T], None, None]:
    """Yield lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def read_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield the items of an iterable while a second thread fetches the next one.

    Exceptions of the iterable are raised here, after the items before them. Closing the generator
    waits for the item that is being fetched.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool:
        upcoming = pool.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # anything but the sentinel is a T
