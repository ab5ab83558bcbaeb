"""How far two models agree about one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploykit.parity.matching import DetectionRows, Floats, Matching, match_detections
from deploykit.parity.raw_outputs import (
    RawDifference,
    RawOutputs,
    mask_ious,
    masks_comparable,
    raw_difference,
)
from deploykit.parity.tolerances import ParityTolerances

Side = Literal["reference", "candidate"]


@dataclass(frozen=True)
class Failure:
    """Something that is out of tolerance in one image.

    Args:
        kind: What, e.g. ``"box error"``.
        text: How bad, in words.
        badness: How bad, for sorting within the kind.
    """

    kind: str
    text: str
    badness: float


@dataclass(frozen=True)
class LoneDetection:
    """A detection that one model has and the other has not.

    Args:
        side: The model that has it.
        box: xyxy in pixels of the original image.
        score: Its score.
        label: Its class index.
    """

    side: Side
    box: tuple[float, float, float, float]
    score: float
    label: int


@dataclass(frozen=True)
class LabelFlip:
    """The same box with another class.

    Args:
        box: The reference's box, xyxy in pixels of the original image.
        reference_label: Class index that the reference gives.
        candidate_label: Class index that the candidate gives.
        reference_score: Score that the reference gives.
        candidate_score: Score that the candidate gives.
    """

    box: tuple[float, float, float, float]
    reference_label: int
    candidate_label: int
    reference_score: float
    candidate_score: float


@dataclass(frozen=True, eq=False)
class Agreement:
    """The comparison of two models' outputs for one image.

    Args:
        counts: Detections that reach the count threshold: (reference, candidate).
        box_errors: Largest coordinate difference of every matched pair, in pixels of the
            reference's network input.
        box_errors_original: The same in pixels of the original image.
        score_errors: Score difference of every matched pair.
        mask_ious: Mask IoU of every matched pair; empty without masks.
        masks_missing: Whether one model gives masks that the other does not, or of another size.
        unmatched: Detections beyond the margin that the other model does not have.
        boundary: Detections that only one model counts, within the margin of the count threshold
            or of the lowest score for which the other model had a row left.
        crossings: Matched pairs of which one member counts and the other does not, although they
            are not both within the margin.
        label_flips: Boxes that both have with different classes.
        order_changes: Matched pairs whose row numbers differ.
        raw: Differences of the raw outputs, row by row.
    """

    counts: tuple[int, int]
    box_errors: Floats
    box_errors_original: Floats
    score_errors: Floats
    mask_ious: Floats
    masks_missing: bool
    unmatched: tuple[LoneDetection, ...]
    boundary: tuple[LoneDetection, ...]
    crossings: int
    label_flips: tuple[LabelFlip, ...]
    order_changes: int
    raw: RawDifference

    def failures(self, tolerances: ParityTolerances) -> list[Failure]:
        """Return everything that is out of tolerance."""
        found = [
            Failure(kind, f"{count}", count)
            for kind, count in (
                ("unmatched detections", len(self.unmatched)),
                ("label flips", len(self.label_flips)),
                ("detections across the count threshold", self.crossings),
            )
            if count
        ]
        box, score, mask_iou = self.max_box_error, self.max_score_error, self.min_mask_iou
        if box > tolerances.box:
            found.append(Failure("box error", f"{box:.3g} px", box))
        if score > tolerances.score:
            found.append(Failure("score error", f"{score:.2e}", score))
        if self.masks_missing:
            found.append(Failure("masks", "not given by both models in the same size", 1.0))
        elif mask_iou < tolerances.mask_iou:
            found.append(Failure("mask IoU", f"{mask_iou:.4f}", -mask_iou))
        return found

    @property
    def max_box_error(self) -> float:
        """Largest box error in pixels of the network input; 0 without pairs."""
        return float(self.box_errors.max(initial=0.0))

    @property
    def max_score_error(self) -> float:
        """Largest score error; 0 without pairs."""
        return float(self.score_errors.max(initial=0.0))

    @property
    def min_mask_iou(self) -> float:
        """Smallest mask IoU; 1 without masks."""
        return float(self.mask_ious.min(initial=1.0))

    def severity(self, tolerances: ParityTolerances) -> tuple[int, float]:
        """Return a sort key: the worse the agreement, the greater."""
        worst = max(
            self.max_box_error / max(tolerances.box, 1e-12),
            self.max_score_error / max(tolerances.score, 1e-12),
        )
        return len(self.unmatched) + len(self.label_flips) + self.crossings, worst


def compare_outputs(
    reference: RawOutputs,
    candidate: RawOutputs,
    scale_factors: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    tolerances: ParityTolerances,
) -> Agreement:
    """Compare the outputs of two models for one image.

    Boxes are compared in the frame of the reference's network input, so that a tolerance means the
    same for small and large pictures. If the models scale the image differently, the candidate's
    boxes are carried over. Non-finite rows are left out; ``output_faults`` reports them.

    Args:
        reference: Outputs of the reference.
        candidate: Outputs of the candidate.
        scale_factors: For each model [2] (width, height): original image to network input.
        tolerances: The tolerances.
    """
    to_network = [np.tile(np.asarray(factor, np.float64), 2) for factor in scale_factors]
    kept = [_finite_rows(outputs) for outputs in (reference, candidate)]
    rows = [_detection_rows(reference, kept[0]), _detection_rows(candidate, kept[1])]
    if not np.array_equal(to_network[0], to_network[1]):
        moved = rows[1].boxes / to_network[1] * to_network[0]
        rows[1] = DetectionRows(moved, rows[1].scores, rows[1].labels)
    matching = match_detections(rows[0], rows[1], tolerances)
    first = np.array([pair[0] for pair in matching.pairs], np.intp)
    second = np.array([pair[1] for pair in matching.pairs], np.intp)
    difference = np.abs(rows[0].boxes[first] - rows[1].boxes[second])
    numbers = [(int(kept[0][row]), int(kept[1][column])) for row, column in matching.pairs]
    ious: Sequence[float] = ()
    if reference.masks is not None and masks_comparable(reference, candidate):
        assert candidate.masks is not None  # noqa: S101  (masks_comparable says so)
        ious = mask_ious(reference.masks, candidate.masks, numbers)
    cutoffs = (_cutoff(reference), _cutoff(candidate))
    unmatched, boundary, crossings = _threshold_cases(
        rows, matching, cutoffs, to_network[0], tolerances
    )
    return Agreement(
        counts=(_count(rows[0], tolerances), _count(rows[1], tolerances)),
        box_errors=difference.max(axis=1, initial=0.0),
        box_errors_original=(difference / to_network[0]).max(axis=1, initial=0.0),
        score_errors=np.abs(rows[0].scores[first] - rows[1].scores[second]),
        mask_ious=np.array(ious, np.float64),
        masks_missing=not masks_comparable(reference, candidate)
        and (reference.masks is not None or candidate.masks is not None),
        unmatched=unmatched,
        boundary=boundary,
        crossings=crossings,
        label_flips=tuple(
            LabelFlip(
                _box(rows[0].boxes[row] / to_network[0]),
                int(rows[0].labels[row]),
                int(rows[1].labels[column]),
                float(rows[0].scores[row]),
                float(rows[1].scores[column]),
            )
            for row, column in matching.label_flips
        ),
        order_changes=sum(row != column for row, column in numbers),
        raw=raw_difference(reference, candidate),
    )


def _threshold_cases(
    rows: Sequence[DetectionRows],
    matching: Matching,
    cutoffs: tuple[float, float],
    to_network: Floats,
    tolerances: ParityTolerances,
) -> tuple[tuple[LoneDetection, ...], tuple[LoneDetection, ...], int]:
    """Sort what only one side counts into unmatched, boundary cases and crossings."""
    threshold, margin = tolerances.count_threshold, tolerances.margin
    sides: tuple[Side, Side] = ("reference", "candidate")
    lone: tuple[list[LoneDetection], list[LoneDetection]] = ([], [])

    def record(side: int, row: int, is_boundary: bool) -> None:
        box = _box(rows[side].boxes[row] / to_network)
        score, label = float(rows[side].scores[row]), int(rows[side].labels[row])
        lone[is_boundary].append(LoneDetection(sides[side], box, score, label))

    for side, alone in enumerate((matching.reference_only, matching.candidate_only)):
        # What a full set of rows had no room for is no better known than what the threshold drops.
        limit = max(threshold, cutoffs[1 - side])
        for row in alone:
            record(side, row, bool(rows[side].scores[row] < limit + margin))
    crossings = 0
    for pair in matching.pairs:
        scores = [float(rows[side].scores[pair[side]]) for side in (0, 1)]
        counted = [score >= threshold for score in scores]
        if counted[0] == counted[1]:
            continue
        if max(abs(score - threshold) for score in scores) <= margin:
            record(counted.index(True), pair[counted.index(True)], True)
        else:
            crossings += 1
    return tuple(lone[0]), tuple(lone[1]), crossings


def _cutoff(outputs: RawOutputs) -> float:
    """Return the lowest score of a set of rows that is full, and 0 of one that has room."""
    return float(outputs.scores[-1]) if outputs.num_dets >= len(outputs.scores) > 0 else 0.0


def _finite_rows(outputs: RawOutputs) -> npt.NDArray[np.intp]:
    count = min(max(outputs.num_dets, 0), len(outputs.scores))
    finite = np.isfinite(outputs.boxes[:count]).all(axis=1) & np.isfinite(outputs.scores[:count])
    return np.flatnonzero(finite)


def _detection_rows(outputs: RawOutputs, kept: npt.NDArray[np.intp]) -> DetectionRows:
    return DetectionRows(
        outputs.boxes[kept].astype(np.float64),
        outputs.scores[kept].astype(np.float64),
        outputs.labels[kept].astype(np.int64),
    )


def _count(rows: DetectionRows, tolerances: ParityTolerances) -> int:
    return int((rows.scores >= tolerances.count_threshold).sum())


def _box(box: Floats) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2
