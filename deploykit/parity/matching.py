"""One-to-one matching of the detections of two models in one image.

Matching greedily by IoU is wrong in dense crowds and for duplicates: the nearest box may be another
object's, and one wrong pair looks like two errors. So the matching has three steps:

1. Pairs of equal class within the box *and* the score tolerance form a bipartite graph, in which a
   maximum matching is found. If any pairing exists that satisfies the tolerances for every
   detection that counts, this step finds one (see ``match_within_tolerance``), so a failed verdict
   is never an accident of the matching order.
2. What is left is matched greedily by IoU within the class: the same object, out of tolerance.
3. What is left then is matched greedily by IoU across classes: the label flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploykit.parity.tolerances import ParityTolerances

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DetectionRows:
    """The detections that one model found in one image.

    Args:
        boxes: float64 [N, 4], xyxy in pixels of the reference's network input.
        scores: float64 [N].
        labels: int64 [N].
    """

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Matching:
    """Pairs of row indices (reference, candidate) and the rows that found no partner.

    Only rows that count, and their partners, appear. Pairs are in the order of the reference rows.

    Args:
        pairs: Same class.
        label_flips: Same place, other class.
        reference_only: Reference rows that count and have no partner.
        candidate_only: Candidate rows that count and have no partner.
    """

    pairs: list[tuple[int, int]]
    label_flips: list[tuple[int, int]]
    reference_only: list[int]
    candidate_only: list[int]


def box_iou(first: Floats, second: Floats) -> Floats:
    """Return the IoU of every box of ``first`` with every box of ``second``.

    Args:
        first: float [N, 4], xyxy.
        second: float [M, 4], xyxy.

    Returns:
        float64 [N, M]; 0 where the union has no area.
    """
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas = [
        np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)
    ]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def match_detections(
    reference: DetectionRows, candidate: DetectionRows, tolerances: ParityTolerances
) -> Matching:
    """Match the detections of two models one to one.

    A row counts when its score reaches ``tolerances.count_threshold``. Every row that counts is
    matched against all rows of the other side, so that a detection that fell below the threshold is
    reported with its score error and not as missing; two rows below the threshold are never paired.

    Args:
        reference: Rows of the reference model, finite.
        candidate: Rows of the candidate model, finite.
        tolerances: What counts, and what is near enough.

    Returns:
        The matching; each row appears at most once.
    """
    threshold, margin = tolerances.count_threshold, tolerances.margin
    counts = [rows.scores >= threshold for rows in (reference, candidate)]
    allowed: Mask = counts[0][:, None] | counts[1][None, :]
    same_class: Mask = reference.labels[:, None] == candidate.labels[None, :]
    box_error = np.abs(reference.boxes[:, None] - candidate.boxes[None]).max(axis=2, initial=0.0)
    score_error = np.abs(reference.scores[:, None] - candidate.scores[None])
    near: Mask = (box_error <= tolerances.box) & (score_error <= tolerances.score)
    cost = _relative(box_error, tolerances.box) + _relative(score_error, tolerances.score)
    pairs = match_within_tolerance(
        near & same_class & allowed,
        cost,
        reference.scores >= threshold + margin,
        candidate.scores >= threshold + margin,
    )
    free = allowed.copy()
    _take(free, pairs)
    iou = box_iou(reference.boxes, candidate.boxes)
    overlapping: Mask = iou >= tolerances.match_iou
    far = match_greedily(free & same_class & overlapping, -iou, score_error)
    _take(free, far)
    flips = match_greedily(free & ~same_class & overlapping, -iou, score_error)
    matched = pairs + far + flips
    alone = [
        sorted(set(np.flatnonzero(counts[side]).tolist()) - {pair[side] for pair in matched})
        for side in (0, 1)
    ]
    return Matching(sorted(pairs + far), sorted(flips), alone[0], alone[1])


def _relative(error: Floats, tolerance: float) -> Floats:
    return error / tolerance if tolerance > 0 else error


def _take(free: Mask, pairs: Sequence[tuple[int, int]]) -> None:
    for row, column in pairs:
        free[row] = False
        free[:, column] = False


def match_greedily(allowed: Mask, *costs: Floats) -> list[tuple[int, int]]:
    """Pair rows and columns, the cheapest allowed pair first.

    Args:
        allowed: bool [N, M], which pairs may be matched.
        *costs: float [N, M] each; the first decides, the next ones break ties, and among what is
            still equal the lower row and then the lower column come first.

    Returns:
        Pairs (row, column) in the order in which they were made.
    """
    rows, columns = np.nonzero(allowed)
    order = np.lexsort((columns, rows, *(cost[rows, columns] for cost in reversed(costs))))
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def match_within_tolerance(
    allowed: Mask, cost: Floats, required_rows: Mask, required_columns: Mask
) -> list[tuple[int, int]]:
    """Find a one-to-one matching that covers the required rows and columns if one exists.

    It starts from the greedy matching by cost, which for sets without near-duplicates is already
    complete. Then every required row without a partner looks for an alternating path that ends at a
    free column, or at a row that is not required and gives its partner up: afterwards as many
    required rows are covered as in any matching (Berge 1957). The required columns do the same, and
    since their paths uncover no row, both sides are covered as well as each could be alone
    (Mendelsohn and Dulmage 1958).

    Args:
        allowed: bool [N, M], which pairs may be matched.
        cost: float [N, M]; among equal choices the cheaper pair is tried first.
        required_rows: bool [N].
        required_columns: bool [M].

    Returns:
        Pairs (row, column).
    """
    column_of = dict(match_greedily(allowed, cost))
    row_of = {column: row for row, column in column_of.items()}
    for side, partner_of, owner_of, required in (
        (0, column_of, row_of, required_rows),
        (1, row_of, column_of, required_columns),
    ):
        alone = [node for node in np.flatnonzero(required).tolist() if node not in partner_of]
        if alone:
            neighbours = _neighbours(*((allowed, cost) if side == 0 else (allowed.T, cost.T)))
            for start in alone:
                _augment(start, neighbours, partner_of, owner_of, required)
    return list(column_of.items())


def _neighbours(allowed: Mask, cost: Floats) -> list[list[int]]:
    """List the allowed partners of every row, cheapest first."""
    order = np.argsort(np.where(allowed, cost, np.inf), axis=1, kind="stable")
    degrees = allowed.sum(axis=1)
    return [order[row, :degree].tolist() for row, degree in enumerate(degrees.tolist())]


def _augment(
    start: int,
    neighbours: list[list[int]],
    partner_of: dict[int, int],
    owner_of: dict[int, int],
    required: Mask,
) -> None:
    """Cover ``start`` along the first alternating path that a breadth-first search finds."""
    came_from: dict[int, int] = {}  # other side's node -> node that reached it
    queue = [start]
    for node in queue:
        for other in neighbours[node]:
            if other in came_from:
                continue
            came_from[other] = node
            owner = owner_of.get(other)
            if owner is not None and required[owner]:
                queue.append(owner)
                continue
            if owner is not None:
                del partner_of[owner]
            step: int | None = other
            while step is not None:  # hand each partner on along the path, back to the start
                taker = came_from[step]
                given_up = partner_of.get(taker)
                partner_of[taker], owner_of[step] = step, taker
                step = given_up
            return
