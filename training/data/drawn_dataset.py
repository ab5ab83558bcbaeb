"""Small COCO data sets of drawn shapes, to time training and to test it without real images."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import write_atomic
from deploykit.errors import MediaError
from deploykit.proposals import grid_proposals, write_proposals

SPLITS = ("train", "val")
_GRID_PROPOSALS = 300
_SHAPES = ("rectangle", "ellipse", "triangle")


def write_drawn_dataset(
    folder: Path,
    classes: Sequence[str],
    counts: tuple[int, int] = (32, 8),
    size: tuple[int, int] = (480, 640),
    objects: tuple[int, int] = (2, 8),
    seed: int = 0,
) -> None:
    """Write ``train/`` and ``val/`` images with ``annotations/train.json`` and ``val.json``.

    Objects have boxes and masks, which do not know what is drawn over them. A class has a shape and
    a colour of its own; backgrounds are noisy, so that the JPEG files cost about as much to decode
    as photographs. ``proposals/train.npz`` and ``val.npz`` hold boxes near
    the objects and regular ones.

    Args:
        folder: Where to write; files of the same names are replaced.
        classes: Class names.
        counts: Number of training and of validation images.
        size: (height, width) of the images in pixels.
        objects: Fewest and most objects in an image.
        seed: Seed of the drawing.

    Raises:
        MediaError: An image cannot be written.
    """
    rng = np.random.default_rng(seed)
    for split, count in zip(SPLITS, counts, strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        proposals: dict[str, npt.NDArray[np.float32]] = {}
        for number in range(count):
            name = f"{number:05d}.jpg"
            number_of_objects = int(rng.integers(objects[0], objects[1] + 1))
            image, boxes, labels = draw_scene(rng, size, number_of_objects, len(classes))
            good, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            if not good:
                raise MediaError(f"the drawn image {name} could not be encoded")
            write_atomic(folder / split / name, data.tobytes())
            images.append(
                {"id": number + 1, "file_name": name, "height": size[0], "width": size[1]}
            )
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
                annotations.append(_annotation(len(annotations) + 1, number + 1, box, label))
            proposals[f"{split}/{name}"] = _proposals(boxes, size, number)
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_atomic(folder / "annotations" / f"{split}.json", json.dumps(content))
        write_proposals(folder / "proposals" / f"{split}.npz", proposals)


def _proposals(
    boxes: npt.NDArray[np.float32], size: tuple[int, int], seed: int
) -> npt.NDArray[np.float32]:
    """Return four shifted copies of each box before a grid of boxes, float32 [N, 5]."""
    rng = np.random.default_rng(seed)
    edges = np.tile(boxes[:, 2:] - boxes[:, :2], (4, 2))
    near = np.tile(boxes, (4, 1)) + rng.normal(0, 0.1, edges.shape) * edges
    rows = np.concatenate([near, grid_proposals(size, _GRID_PROPOSALS)])
    return np.concatenate([rows, np.linspace(1, 0, len(rows))[:, None]], axis=1).astype(np.float32)


def _annotation(identity: int, image: int, box: list[float], label: int) -> dict[str, Any]:
    left, top, right, bottom = box
    return {
        "id": identity,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": [_outline(_shape_of(label), box)],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
    }


def _shape_of(label: int) -> str:
    return _SHAPES[label % len(_SHAPES)]


def _outline(shape: str, box: list[float]) -> list[float]:
    """Return the polygon of a shape that fills a box, [x, y, x, y, ...]."""
    left, top, right, bottom = box
    if shape == "rectangle":
        return [left, top, right, top, right, bottom, left, bottom]
    if shape == "triangle":
        return [left, bottom, right, bottom, (left + right) / 2, top]
    angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    y = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    outline: list[float] = np.stack((x, y), axis=1).round(2).flatten().tolist()
    return outline


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], objects: int, classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Draw an image.

    Args:
        rng: The source of randomness.
        size: (height, width) in pixels.
        objects: Number of objects.
        classes: Number of classes.

    Returns:
        The image uint8 [H, W, 3] in BGR, boxes float32 [N, 4] (xyxy, pixels) and labels int64 [N].
    """
    height, width = size
    # Backgrounds are greyish, objects are saturated.
    cells = (max(2, height // 40), max(2, width // 40))
    coarse = rng.integers(60, 180, (*cells, 1), np.uint8) + rng.integers(
        0, 40, (*cells, 3), np.uint8
    )
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 24, image.shape, np.uint8)
    image = cv2.add(image, noise)
    boxes = np.zeros((objects, 4), np.float32)
    labels = rng.integers(0, classes, objects).astype(np.int64)
    shortest = min(height, width)
    for row, label in enumerate(labels.tolist()):
        w, h = rng.integers(shortest // 8, shortest // 3, 2).tolist()
        left, top = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        boxes[row] = left, top, left + w, top + h
        _draw_object(image, (left, top, left + w - 1, top + h - 1), label, classes)
    return image.astype(np.uint8), boxes, labels


def _draw_object(
    image: npt.NDArray[Any], box: tuple[int, int, int, int], label: int, classes: int
) -> None:
    left, top, right, bottom = box
    red, green, blue = colorsys.hsv_to_rgb(label / classes, 0.8, 0.9)
    colour = (blue * 255, green * 255, red * 255)
    shape = _shape_of(label)
    if shape == "rectangle":
        cv2.rectangle(image, (left, top), (right, bottom), colour, cv2.FILLED)
    elif shape == "ellipse":
        centre = ((left + right) // 2, (top + bottom) // 2)
        axes = ((right - left) // 2, (bottom - top) // 2)
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, cv2.FILLED)
    else:
        corners = [(left, bottom), (right, bottom), ((left + right) // 2, top)]
        cv2.fillPoly(image, [np.array(corners, np.int32)], colour)
