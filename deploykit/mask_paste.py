"""From the mask logits of a network, in the frame of each box, to masks of the whole image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError

Floats = npt.NDArray[np.float32]


def paste_masks(
    logits: npt.NDArray[np.floating],
    boxes: npt.NDArray[np.floating],
    image_size: tuple[int, int],
    threshold: float = 0.5,
) -> npt.NDArray[np.bool_]:
    """Resize masks to their boxes and cut them off at a threshold.

    Each mask is stretched over its box by bilinear interpolation of its probabilities, with zeros
    around it: what MMDetection computes with ``grid_sample(align_corners=False)``.

    Args:
        logits: float [N, h, w], in the frame of each box.
        boxes: float [N, 4], xyxy in pixels of the image; they may reach beyond it.
        image_size: (height, width) of the image in pixels.
        threshold: Probability from which a pixel belongs to the object.

    Returns:
        bool [N, height, width].

    Raises:
        UsageError: There are not as many masks as boxes.

    Example:
        >>> masks = paste_masks(np.full((1, 2, 2), 5.0), np.array([[1.0, 1, 3, 3]]), (4, 4))
        >>> masks[0].astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    logits = np.asarray(logits, np.float32)
    if logits.ndim != 3 or len(logits) != len(boxes):
        raise UsageError(
            f"masks must have shape [{len(boxes)}, h, w], one per box, got {list(logits.shape)}"
        )
    height, width = image_size
    probabilities = _sigmoid(logits)
    pasted = np.zeros((len(boxes), height, width), np.bool_)
    for target, probability, box in zip(pasted, probabilities, boxes, strict=True):
        if not np.isfinite(box).all():
            continue
        rows, weights_y = _axis(box[1], box[3], probability.shape[0], height)
        columns, weights_x = _axis(box[0], box[2], probability.shape[1], width)
        # The interpolation is separable: one matrix product per axis.
        target[rows, columns] = weights_y @ probability @ weights_x.T >= threshold
    return pasted


def _axis(start: np.float32, end: np.float32, cells: int, length: int) -> tuple[slice, Floats]:
    """Return the pixels of one axis that a mask can reach, and what they take from its cells.

    Args:
        start: Where the box starts, in pixels.
        end: Where it ends.
        cells: Number of cells of the mask.
        length: Number of pixels of the image.

    Returns:
        Pixels n0..n1 and weights float32 [n1 - n0, cells].
    """
    first = min(max(int(np.floor(start)) - 1, 0), length)
    last = max(min(int(np.ceil(end)) + 1, length), first)
    pixels = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (pixels - start) / (end - start) * np.float32(2) - np.float32(1)
    # A box without an extent shows the centre of its mask.
    place = np.where(np.isinf(place), np.float32(0), place)
    cell = ((place + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
    distance = np.abs(cell[:, None] - np.arange(cells, dtype=np.float32))
    weights = np.maximum(np.float32(1) - distance, np.float32(0))
    return slice(first, last), np.asarray(np.nan_to_num(weights), np.float32)


def _sigmoid(logits: Floats) -> Floats:
    exponential = np.exp(-np.abs(logits))
    return np.asarray(
        np.where(logits >= 0, 1 / (1 + exponential), exponential / (1 + exponential)), np.float32
    )
