"""How far the masks of matched detections agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.mask_paste import paste_masks
from deploykit.parity.matching import Floats, Mask


@dataclass(frozen=True, eq=False)
class MaskAgreement:
    """The comparison of the masks of P matched pairs.

    Pixels where both models are undecided (probability within the tolerance of 0.5) count for
    neither IoU, and pixels that change with the box alone not for the pasted one.

    Args:
        probability_errors: float64 [P], largest difference of a probability of each pair.
        ious: float64 [P], IoU of the masks as the network gives them, cut off at probability 0.5.
        pasted_ious: float64 [P], the same after both were pasted into their boxes, in pixels of the
            reference's network input.
    """

    probability_errors: Floats
    ious: Floats
    pasted_ious: Floats

    @property
    def max_probability_error(self) -> float:
        """Largest probability error; 0 without pairs."""
        return float(self.probability_errors.max(initial=0.0))

    @property
    def min_iou(self) -> float:
        """Smallest IoU of the network's masks; 1 without pairs."""
        return float(self.ious.min(initial=1.0))

    @property
    def min_pasted_iou(self) -> float:
        """Smallest IoU of pasted masks; 1 without pairs."""
        return float(self.pasted_ious.min(initial=1.0))


def compare_masks(
    logits: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    boxes: tuple[Floats, Floats],
    tolerance: float,
) -> MaskAgreement:
    """Compare the masks of matched detections.

    Args:
        logits: float [P, h, w] of (reference, candidate), in the frames of their boxes.
        boxes: float64 [P, 4] of (reference, candidate), xyxy in one frame.
        tolerance: Probabilities that are this close to 0.5 are on neither side of it.
    """
    probabilities = [_sigmoid(part.astype(np.float64)) for part in logits]
    errors = np.abs(probabilities[0] - probabilities[1])
    errors = np.where(np.isnan(errors), 1.0, errors)
    undecided = [np.abs(part - 0.5) <= tolerance for part in probabilities]
    ious = [
        _iou(first > 0, second > 0, both)
        for first, second, both in zip(*logits, undecided[0] & undecided[1], strict=True)
    ]
    pasted = [
        _pasted_iou((logits[0][pair], logits[1][pair]), (boxes[0][pair], boxes[1][pair]), tolerance)
        for pair in range(len(ious))
    ]
    return MaskAgreement(
        errors.max(axis=(1, 2), initial=0.0),
        np.array(ious, np.float64),
        np.array(pasted, np.float64),
    )


def _pasted_iou(
    logits: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    boxes: tuple[Floats, Floats],
    tolerance: float,
) -> float:
    corner = np.floor(np.minimum(boxes[0][:2], boxes[1][:2]))
    width, height = np.ceil(np.maximum(boxes[0][2:], boxes[1][2:]) - corner).astype(int).tolist()
    offset = np.tile(corner, 2)

    def paste(side: int, threshold: float, box_side: int | None = None) -> Mask:
        box = boxes[side if box_side is None else box_side] - offset
        pasted: Mask = paste_masks(logits[side][None], box[None], (height, width), threshold)[0]
        return pasted

    first, second = paste(0, 0.5), paste(1, 0.5)
    if np.array_equal(first, second):
        return 1.0
    # A probability is undecided where thresholds on both sides of 0.5 disagree about it.
    undecided = [paste(side, 0.5 - tolerance) & ~paste(side, 0.5 + tolerance) for side in (0, 1)]
    # The errors of boxes have a tolerance of their own, and in a box of few pixels a small one
    # moves pixels. Those that the reference's own mask changes in the other box say nothing here.
    moved = first != paste(0, 0.5, box_side=1)
    return _iou(first, second, (undecided[0] & undecided[1]) | moved)


def _iou(first: Mask, second: Mask, left_out: Mask) -> float:
    """Return the IoU of two masks without the pixels that are left out; 1 for empty ones."""
    union = int(((first | second) & ~left_out).sum())
    return int((first & second & ~left_out).sum()) / union if union else 1.0


def _sigmoid(logits: Floats) -> Floats:
    exponential = np.exp(-np.abs(logits))
    result: Floats = np.where(logits >= 0, 1.0, exponential) / (1 + exponential)
    return result
