"""How far two models agree about one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploykit.parity.mask_agreement import MaskAgreement, compare_masks
from deploykit.parity.matching import DetectionRows, Floats, Mask, Matching, match_detections
from deploykit.parity.raw_outputs import (
    RawDifference,
    RawOutputs,
    masks_comparable,
    raw_difference,
)
from deploykit.parity.rounding import RoundingRuns
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
        masks: The masks of every matched pair, or ``None`` without masks.
        masks_missing: Whether one model gives masks that the other does not, or of another size.
        unmatched: Detections beyond the margin that the other model does not have.
        explained: Detections that the other model does not have, or has out of tolerance, and that
            the reference itself has or has not as rounding decides (see ``RoundingRuns``). Pairs
            out of tolerance of which that holds for both members are not among the matched pairs.
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
    masks: MaskAgreement | None
    masks_missing: bool
    unmatched: tuple[LoneDetection, ...]
    explained: tuple[LoneDetection, ...]
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
        box, score = self.max_box_error, self.max_score_error
        if box > tolerances.box:
            found.append(Failure("box error", f"{box:.3g} px", box))
        if score > tolerances.score:
            found.append(Failure("score error", f"{score:.2e}", score))
        return found + self._mask_failures(tolerances)

    def is_disputed(self, tolerances: ParityTolerances) -> bool:
        """Return whether a detection is out of tolerance, which rounding might explain."""
        return bool(
            self.unmatched
            or self.label_flips
            or self.max_box_error > tolerances.box
            or self.max_score_error > tolerances.score
        )

    def _mask_failures(self, tolerances: ParityTolerances) -> list[Failure]:
        if self.masks_missing:
            return [Failure("masks", "not given by both models in the same size", 1.0)]
        if self.masks is None:
            return []
        found = []
        error = self.masks.max_probability_error
        if error > tolerances.mask_probability:
            found.append(Failure("mask probability error", f"{error:.2e}", error))
        for kind, iou in (
            ("mask IoU", self.masks.min_iou),
            ("pasted mask IoU", self.masks.min_pasted_iou),
        ):
            if iou < tolerances.mask_iou:
                found.append(Failure(kind, f"{iou:.4f}", -iou))
        return found

    @property
    def max_box_error(self) -> float:
        """Largest box error in pixels of the network input; 0 without pairs."""
        return float(self.box_errors.max(initial=0.0))

    @property
    def max_score_error(self) -> float:
        """Largest score error; 0 without pairs."""
        return float(self.score_errors.max(initial=0.0))

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
    rounding: RoundingRuns | None = None,
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
        rounding: What the reference finds under rounding noise, to explain differences with.
    """
    to_network = [np.tile(np.asarray(factor, np.float64), 2) for factor in scale_factors]
    kept = [_finite_rows(outputs) for outputs in (reference, candidate)]
    rows = [_detection_rows(reference, kept[0]), _detection_rows(candidate, kept[1])]
    if not np.array_equal(to_network[0], to_network[1]):
        moved = rows[1].boxes / to_network[1] * to_network[0]
        rows[1] = replace(rows[1], boxes=moved)
    matching = match_detections(rows[0], rows[1], tolerances)
    cases = _Cases(rows, (_cutoff(reference), _cutoff(candidate)), to_network[0], tolerances)
    if rounding is not None:
        matching = cases.set_aside(matching, rounding)
    cases.sort(matching)
    first = np.array([pair[0] for pair in matching.pairs], np.intp)
    second = np.array([pair[1] for pair in matching.pairs], np.intp)
    difference = np.abs(rows[0].boxes[first] - rows[1].boxes[second])
    masks = None
    if masks_comparable(reference, candidate):
        assert reference.masks is not None and candidate.masks is not None  # noqa: S101
        logits = reference.masks[kept[0][first]], candidate.masks[kept[1][second]]
        boxes = rows[0].boxes[first], rows[1].boxes[second]
        masks = compare_masks(logits, boxes, tolerances.mask_probability)
    return Agreement(
        counts=(_count(rows[0], tolerances), _count(rows[1], tolerances)),
        box_errors=difference.max(axis=1, initial=0.0),
        box_errors_original=(difference / to_network[0]).max(axis=1, initial=0.0),
        score_errors=np.abs(rows[0].scores[first] - rows[1].scores[second]),
        masks=masks,
        masks_missing=masks is None
        and (reference.masks is not None or candidate.masks is not None),
        unmatched=tuple(cases.unmatched),
        explained=tuple(cases.explained),
        boundary=tuple(cases.boundary),
        crossings=cases.crossings,
        label_flips=_label_flips(rows, matching, to_network[0]),
        order_changes=int((kept[0][first] != kept[1][second]).sum()),
        raw=raw_difference(reference, candidate),
    )


def detections_in_image(outputs: RawOutputs, scale_factor: npt.NDArray[Any]) -> DetectionRows:
    """Return the finite detections of a model with boxes in pixels of the original image.

    Args:
        outputs: Outputs for one image.
        scale_factor: [2] (width, height): original image to network input.
    """
    rows = _detection_rows(outputs, _finite_rows(outputs))
    return replace(rows, boxes=rows.boxes / np.tile(np.asarray(scale_factor, np.float64), 2))


class _Cases:
    """Sorts the detections that only one model has, or has out of tolerance.

    Args:
        rows: Detections of (reference, candidate), boxes in pixels of the network input.
        cutoffs: Lowest score for which each model had no row left, or 0.
        to_network: float64 [4], factors from the original image to the network input.
        tolerances: The tolerances.
    """

    def __init__(
        self,
        rows: Sequence[DetectionRows],
        cutoffs: tuple[float, float],
        to_network: Floats,
        tolerances: ParityTolerances,
    ) -> None:
        self.rows = rows
        self.cutoffs = cutoffs
        self.to_network = to_network
        self.tolerances = tolerances
        self.unmatched: list[LoneDetection] = []
        self.explained: list[LoneDetection] = []
        self.boundary: list[LoneDetection] = []
        self.crossings = 0

    def set_aside(self, matching: Matching, rounding: RoundingRuns) -> Matching:
        """Move what rounding explains to ``explained``; return the matching without it."""
        undecided: list[Mask] = [
            rounding.undecided(
                replace(rows, boxes=rows.boxes / self.to_network), self.to_network, self.tolerances
            )
            for rows in self.rows
        ]

        def explains(pair: tuple[int, int]) -> bool:
            return bool(undecided[0][pair[0]] and undecided[1][pair[1]])

        def is_far(pair: tuple[int, int]) -> bool:
            first, second = self.rows[0], self.rows[1]
            box = np.abs(first.boxes[pair[0]] - second.boxes[pair[1]]).max()
            score = abs(first.scores[pair[0]] - second.scores[pair[1]])
            return bool(box > self.tolerances.box or score > self.tolerances.score)

        pairs = [pair for pair in matching.pairs if is_far(pair) and explains(pair)]
        flips = [pair for pair in matching.label_flips if explains(pair)]
        alone = [
            [row for row in rows if undecided[side][row] and not self._is_boundary(side, row)]
            for side, rows in enumerate((matching.reference_only, matching.candidate_only))
        ]
        for side in (0, 1):
            for row in [*(pair[side] for pair in pairs + flips), *alone[side]]:
                self.explained.append(self._lone(side, row))
        return Matching(
            [pair for pair in matching.pairs if pair not in pairs],
            [pair for pair in matching.label_flips if pair not in flips],
            [row for row in matching.reference_only if row not in alone[0]],
            [row for row in matching.candidate_only if row not in alone[1]],
        )

    def sort(self, matching: Matching) -> None:
        """Sort what only one side counts into unmatched, boundary cases and crossings."""
        threshold, margin = self.tolerances.count_threshold, self.tolerances.margin
        for side, alone in enumerate((matching.reference_only, matching.candidate_only)):
            for row in alone:
                kind = self.boundary if self._is_boundary(side, row) else self.unmatched
                kind.append(self._lone(side, row))
        for pair in matching.pairs:
            scores = [float(self.rows[side].scores[pair[side]]) for side in (0, 1)]
            counted = [score >= threshold for score in scores]
            if counted[0] == counted[1]:
                continue
            if max(abs(score - threshold) for score in scores) <= margin:
                self.boundary.append(self._lone(counted.index(True), pair[counted.index(True)]))
            else:
                self.crossings += 1

    def _is_boundary(self, side: int, row: int) -> bool:
        # What a full set of rows had no room for is no better known than what the threshold drops.
        limit = max(self.tolerances.count_threshold, self.cutoffs[1 - side])
        return bool(self.rows[side].scores[row] < limit + self.tolerances.margin)

    def _lone(self, side: int, row: int) -> LoneDetection:
        rows = self.rows[side]
        name: Side = "candidate" if side else "reference"
        box = _box(rows.boxes[row] / self.to_network)
        return LoneDetection(name, box, float(rows.scores[row]), int(rows.labels[row]))


def _label_flips(
    rows: Sequence[DetectionRows], matching: Matching, to_network: Floats
) -> tuple[LabelFlip, ...]:
    return tuple(
        LabelFlip(
            _box(rows[0].boxes[row] / to_network),
            int(rows[0].labels[row]),
            int(rows[1].labels[column]),
            float(rows[0].scores[row]),
            float(rows[1].scores[column]),
        )
        for row, column in matching.label_flips
    )


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
