"""Operations on arrays of axis-aligned boxes: float32 [N, 4], xyxy in pixels.

None of them writes into its input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]

FLIP_DIRECTIONS = ("horizontal", "vertical", "diagonal")


def as_boxes(values: Any) -> Boxes:
    """Return box coordinates as float32 [N, 4]."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 4)


def clip(boxes: Boxes, height: float, width: float) -> Boxes:
    """Return the boxes clipped to the image [0, width] × [0, height]."""
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, np.float32(0), limits)


def scale(boxes: Boxes, width_factor: float, height_factor: float) -> Boxes:
    """Return the boxes scaled about the origin."""
    factors = np.array([width_factor, height_factor] * 2, np.float32)
    return boxes * factors


def shift(boxes: Boxes, dx: float, dy: float) -> Boxes:
    """Return the boxes moved by (dx, dy) pixels."""
    return boxes + np.array([dx, dy, dx, dy], np.float32)


def flip(boxes: Boxes, height: float, width: float, direction: str) -> Boxes:
    """Return the boxes mirrored with an image of the given size.

    Args:
        boxes: float32 [N, 4].
        height: Image height in pixels.
        width: Image width in pixels.
        direction: ``"horizontal"``, ``"vertical"`` or ``"diagonal"`` (both).
    """
    flipped = boxes.copy()
    if direction != "vertical":
        flipped[:, 0::2] = np.float32(width) - boxes[:, 2::-2]
    if direction != "horizontal":
        flipped[:, 1::2] = np.float32(height) - boxes[:, 3::-2]
    return flipped


def touch_image(boxes: Boxes, height: float, width: float) -> npt.NDArray[np.bool_]:
    """Return which boxes reach into the image, bool [N].

    A box whose edge merely lies on the image border does not; this drops what clipping has
    squeezed to nothing.
    """
    inside = (boxes[:, 0] < width) & (boxes[:, 1] < height)
    return inside & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def warp(boxes: Boxes, matrix: npt.NDArray[np.float32]) -> Boxes:
    """Return the boxes around the four warped corners of each box.

    Args:
        boxes: float32 [N, 4].
        matrix: float32 [3, 3], projective, applied to column vectors (x, y, 1).
    """
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 2)
    moved = warp_points(corners, matrix).reshape(-1, 4, 2)
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def warp_points(
    points: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return points float32 [N, 2] moved by a projective matrix float32 [3, 3]."""
    ones = np.ones((len(points), 1), np.float32)
    moved = np.concatenate([points, ones], axis=1) @ matrix.T.astype(np.float32)
    return np.asarray(moved[:, :2] / moved[:, 2:3], dtype=np.float32)


def iou_with(boxes: Boxes, box: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the intersection over union of each box with one box, float32 [N]."""
    corner_a = np.maximum(boxes[:, :2], box[:2])
    corner_b = np.minimum(boxes[:, 2:], box[2:])
    overlap = np.prod(np.clip(corner_b - corner_a, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = areas + np.prod(box[2:] - box[:2]) - overlap
    return np.asarray(overlap / np.maximum(union, 1e-6), dtype=np.float32)
