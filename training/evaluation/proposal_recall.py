"""Recall of region proposals, whatever the class: the ``proposal_fast`` of MMDetection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.training.evaluation.coco_scores import UNDEFINED

Boxes = npt.NDArray[np.float32]


def average_recalls(
    truths: Sequence[Boxes],
    proposals: Sequence[Boxes],
    limits: Sequence[int],
    thresholds: npt.NDArray[np.float64],
) -> list[float]:
    """Return the mean recall over IoU thresholds for each number of proposals per image.

    Objects and proposals of an image are matched one to one, the pair with the highest IoU first.

    Args:
        truths: float32 [N, 4] per image, the objects, crowds left out.
        proposals: float32 [P, 4] per image, best first.
        limits: Numbers of proposals.
        thresholds: IoU from which an object counts as found.

    Returns:
        One recall per limit; -1 if there is no object at all.
    """
    if not sum(map(len, truths)):
        return [UNDEFINED] * len(limits)
    overlaps = [pairwise_iou(truth, found) for truth, found in zip(truths, proposals, strict=True)]
    recalls = []
    for limit in limits:
        ious = np.concatenate([matched_ious(table[:, :limit]) for table in overlaps])
        recalls.append(float((ious[:, None] >= thresholds).mean()))
    return recalls


def matched_ious(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the IoU of every object with its proposal, float32 [N]; -1 where none is left.

    Args:
        table: IoU of objects and proposals, float32 [N, P].
    """
    remaining = table.copy()
    result = np.full(len(table), -1, np.float32)
    for _ in range(min(table.shape)):
        row, column = np.unravel_index(remaining.argmax(), remaining.shape)
        result[row] = remaining[row, column]
        remaining[row] = -1
        remaining[:, column] = -1
    return result


def pairwise_iou(boxes: Boxes, others: Boxes) -> npt.NDArray[np.float32]:
    """Return float32 [N, P], the intersection over union of boxes [N, 4] and [P, 4]."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    union = _areas(boxes)[:, None] + _areas(others) - shared
    iou: npt.NDArray[Any] = shared / np.maximum(union, 1e-6)
    return iou.astype(np.float32)


def _areas(boxes: Boxes) -> npt.NDArray[np.float32]:
    areas: npt.NDArray[np.float32] = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas
