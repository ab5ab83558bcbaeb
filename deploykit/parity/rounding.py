"""Which differences rounding decides: shown by the reference itself, not guessed from outputs.

A detector makes hard decisions: which of two overlapping boxes scores higher, whether an overlap
exceeds the threshold, which candidates are among the best k. Where a decision is nearly tied,
rounding makes it, and two correct implementations find different objects. The outputs alone cannot
tell that from a fault, since a box that was moved by mistake has the same score and overlaps, too.

So the reference runs again with random relative noise of the size of a rounding error on all that
its layers compute. A detection that some of these runs have and others do not is *undecided*: the
reference does not know it any better than the candidate. A real difference is one that no run of
the reference makes, whatever the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.parity.matching import DetectionRows, Floats, Mask
from deploykit.parity.tolerances import ParityTolerances

# Runs with noise; a tie that each of them decides by chance is overlooked once in 2**RUNS.
RUNS = 8
# How many of the reference's detections a run with noise may fail to repeat within half of the
# tolerances: this share, or this number. Otherwise the noise changes more than a few decisions, and
# the run proves nothing.
_LARGEST_SHARE = 0.1
_LARGEST_NUMBER = 2


@dataclass(frozen=True, eq=False)
class RoundingRuns:
    """What the reference finds in one image, without noise and with.

    Args:
        runs: Detections of each run, boxes in pixels of the original image; at least one.
    """

    runs: Sequence[DetectionRows]

    @classmethod
    def of(
        cls,
        reference: DetectionRows,
        noisy: Iterable[DetectionRows],
        to_network: Floats,
        tolerances: ParityTolerances,
    ) -> RoundingRuns:
        """Keep those runs with noise in which nearly all detections are those without.

        Args:
            reference: Detections without noise, boxes in pixels of the original image.
            noisy: Detections with noise.
            to_network: float64 [4], factors from there to pixels of the network input.
            tolerances: The tolerances of the comparison.
        """
        counting = np.flatnonzero(reference.scores >= tolerances.count_threshold)
        kept = [reference]
        for rows in noisy:
            near = _near(reference, rows, to_network, tolerances, 0.5)
            changed = int((~near[counting].any(axis=1)).sum())
            if changed <= max(_LARGEST_NUMBER, _LARGEST_SHARE * len(counting)):
                kept.append(rows)
        return cls(kept)

    def undecided(
        self, found: DetectionRows, to_network: Floats, tolerances: ParityTolerances
    ) -> Mask:
        """Return for each detection whether some runs have it and others do not.

        Args:
            found: Detections of any model, boxes in pixels of the original image.
            to_network: float64 [4], factors from there to pixels of the network input.
            tolerances: Within these a run has a detection.

        Returns:
            bool [N].
        """
        present = np.zeros(len(found), np.intp)
        for rows in self.runs:
            present += _near(found, rows, to_network, tolerances).any(axis=1)
        return (present > 0) & (present < len(self.runs))


def _near(
    first: DetectionRows,
    second: DetectionRows,
    to_network: Floats,
    tolerances: ParityTolerances,
    factor: float = 1.0,
) -> Mask:
    """Return which detections [N, M] are the same within a factor of the tolerances."""
    difference = np.abs(first.boxes[:, None] - second.boxes[None]) * to_network
    near: Mask = (
        (difference.max(axis=2, initial=0.0) <= factor * tolerances.box)
        & (np.abs(first.scores[:, None] - second.scores[None]) <= factor * tolerances.score)
        & (first.labels[:, None] == second.labels[None])
    )
    return near
