"""``deploykit::batched_nms``: class-wise non-maximum suppression with a fixed number of results."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

# Candidates are looked at in order of score, this many at first and at most this many at a time.
_FIRST_CHUNK = 1024
_LARGEST_CHUNK = 4096


@torch.library.custom_op("deploykit::batched_nms", mutates_args=())
def batched_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_out: int
) -> Tensor:
    """Greedy non-maximum suppression per image and class, cut off after ``max_out`` boxes.

    In order of falling score, ties by lower index, a box is kept unless its IoU with a kept box of
    the same label is greater than ``iou_threshold``. IoU is ``inter / (area_a + area_b - inter)``
    in float32, and so is the threshold; an IoU that is not a number suppresses nothing. Classes are
    told apart by their labels and not by shifting the boxes, which would cost precision.

    Candidates with a score that is not greater than 0, or not a number, are never returned.

    Only as many candidates as it takes to find ``max_out`` are compared: a kept box depends on
    better ones alone. The work is done on the CPU, so that every device gives the same result.

    Args:
        boxes: float32 [B, N, 4], xyxy.
        scores: float32 [B, N].
        labels: int64 [B, N].
        iou_threshold: Overlap above which the worse box is dropped.
        max_out: Number of results per image.

    Returns:
        int64 [B, max_out], indices into N by falling score, -1 after the last one.
    """
    # The kernel compares a float32 IoU with a double; rounding the threshold first makes that a
    # comparison of float32 numbers, which is what engines do.
    threshold = float(np.float32(iou_threshold))
    keep = torch.full((boxes.shape[0], max_out), -1, dtype=torch.int64)
    host = (boxes.cpu(), scores.cpu(), labels.cpu())
    for row, image_boxes, image_scores, image_labels in zip(keep, *host, strict=True):
        kept = _image_nms(image_boxes, image_scores, image_labels, threshold, max_out)
        row[: len(kept)] = kept
    return keep.to(boxes.device)


@batched_nms.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_out: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], max_out), dtype=torch.int64)


def _image_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, max_out: int
) -> Tensor:
    """Return the kept indices of one image, int64 [k] with k <= max_out."""
    order = _best_first(scores, _FIRST_CHUNK)
    kept = order[:0]
    start, size = 0, _FIRST_CHUNK
    while len(kept) < max_out:
        if start >= len(order):
            complete = _best_first(scores, None)
            if len(complete) == len(order):
                break
            order = complete
        chunk = order[start : start + size]
        kept = _extend(kept, chunk, boxes, scores, labels, threshold)
        start += len(chunk)
        size = min(2 * size, _LARGEST_CHUNK)
    return kept[:max_out]


def _best_first(scores: Tensor, count: int | None) -> Tensor:
    """Return the indices of positive scores, best first, ties by index.

    With a ``count`` that is less than their number, only the best of them: at least ``count``, and
    all that tie with the last one. Such an order is a prefix of the complete one.
    """
    positive = scores > 0
    if count is not None and count < len(scores):
        least = torch.where(positive, scores, 0.0).topk(count).values[-1]
        positive &= scores >= least
    index = positive.nonzero().squeeze(1)
    return index[scores[index].argsort(descending=True, stable=True)]


def _extend(
    kept: Tensor, chunk: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float
) -> Tensor:
    """Return ``kept`` with what survives of ``chunk``, which holds the next best candidates."""
    candidates = torch.cat((kept, chunk))
    candidate_labels = labels[candidates]
    survives = torch.ones(len(candidates), dtype=torch.bool)
    groups, counts = torch.unique(candidate_labels, return_counts=True)
    for label in groups[counts > 1]:
        # Kept boxes stand before the new ones and overlap each other no more than allowed, so they
        # stay and suppress what they must.
        members = (candidate_labels == label).nonzero().squeeze(1)
        index = candidates[members]
        survivors = nms(boxes[index], scores[index], threshold)
        survives[members] = False
        survives[members[survivors]] = True
    return candidates[survives]
