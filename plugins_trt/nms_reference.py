"""Class-wise non-maximum suppression in numpy, the reference of every other implementation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


def batched_nms(
    boxes: FloatArray,
    scores: FloatArray,
    labels: IndexArray,
    iou_threshold: float,
    max_out: int,
) -> IndexArray:
    """Greedy non-maximum suppression per image and class, cut off after ``max_out`` boxes.

    In order of falling score, ties by lower index, a box is kept unless its IoU with a kept box of
    the same label is greater than ``iou_threshold``. Scores that are not greater than 0 (or not a
    number) are never returned. Everything is computed in float32. This is the definition, written
    down one box after the other; it is slow.

    Args:
        boxes: float32 [B, N, 4], xyxy.
        scores: float32 [B, N].
        labels: int64 [B, N].
        iou_threshold: Overlap above which the worse box is dropped, rounded to float32.
        max_out: Number of results per image.

    Returns:
        int64 [B, max_out], indices into N by falling score, -1 after the last one.
    """
    threshold = np.float32(iou_threshold)
    result = np.full((len(boxes), max_out), -1, dtype=np.int64)
    for image in range(len(boxes)):
        kept: list[int] = []
        candidates = np.flatnonzero(scores[image] > 0)
        for candidate in candidates[np.argsort(-scores[image][candidates], kind="stable")]:
            if len(kept) == max_out:
                break
            rivals = [index for index in kept if labels[image, index] == labels[image, candidate]]
            overlap = iou(boxes[image, rivals], boxes[image, candidate])
            if not (overlap > threshold).any():
                kept.append(int(candidate))
        result[image, : len(kept)] = kept
    return result


def iou(boxes: FloatArray, box: FloatArray) -> FloatArray:
    """Return the intersection over union of boxes with one box.

    Args:
        boxes: float32 [N, 4], xyxy.
        box: float32 [4], xyxy.

    Returns:
        float32 [N]; not a number where both areas are 0.
    """
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    sides = np.maximum(high - low, np.float32(0))
    overlap = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio: FloatArray = overlap / (areas + area - overlap)
    return ratio
