"""The images that a benchmark feeds: the user's, or artificial ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from deploykit.image_io import BgrImage, read_image

ARTIFICIAL_SIZE = (720, 1280)  # (height, width) of a common camera
_ARTIFICIAL_COUNT = 8
_SHAPES_PER_IMAGE = 40


def artificial_images(
    count: int = _ARTIFICIAL_COUNT, size: tuple[int, int] = ARTIFICIAL_SIZE, seed: int = 0
) -> list[BgrImage]:
    """Draw images of filled shapes on a noisy gradient; the same ones for the same arguments.

    They exercise every stage, but a detector finds other numbers of objects in them than in real
    images, which moves the time of the postprocessing.

    Args:
        count: Number of images.
        size: (height, width) in pixels.
        seed: Seed of the drawing.
    """
    random = np.random.default_rng(seed)
    height, width = size
    images = []
    for _ in range(count):
        corners = random.integers(0, 256, (2, 2, 3), np.uint8)
        image = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
        for _ in range(_SHAPES_PER_IMAGE):
            centre = (int(random.integers(width)), int(random.integers(height)))
            axes = tuple(int(side) for side in random.integers(4, max(5, min(size) // 6), 2))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            angle = float(random.uniform(0, 180))
            cv2.ellipse(image, centre, axes, angle, 0, 360, colour, cv2.FILLED)
        noise = random.integers(-12, 13, image.shape, np.int16)
        images.append(np.clip(image + noise, 0, 255).astype(np.uint8))
    return images


def describe_images(images: Sequence[BgrImage], artificial: bool) -> str:
    """Return in words what was fed, e.g. ``"8 artificial images, 1280x720"``."""
    sizes = {(image.shape[1], image.shape[0]) for image in images}
    smallest, largest = min(sizes), max(sizes)
    text = "x".join(map(str, smallest))
    if smallest != largest:
        text += f" to {'x'.join(map(str, largest))}"
    kind = "artificial" if artificial else "real"
    return f"{len(images)} {kind} image{'s' * (len(images) != 1)}, {text}"


def load_images(paths: Sequence[Path]) -> list[BgrImage]:
    """Read images into memory, so that decoding is no part of what is timed.

    Raises:
        MediaError: One of them cannot be read.
    """
    return [read_image(path) for path in paths]
