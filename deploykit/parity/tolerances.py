"""What two models may differ by and still count as the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from deploykit.errors import UsageError

FEW_EXPLAINED = 4


@dataclass(frozen=True)
class ParityTolerances:
    """Tolerances of a parity verdict.

    The defaults are for artefacts of the same precision (PyTorch fp32 against ONNX Runtime fp32).

    Args:
        box: Largest difference of any box coordinate, in pixels of the reference's network input.
        score: Largest difference of the scores of two matched detections.
        count_threshold: Score from which a detection counts. Rows below it are compared too, but
            only those that belong to a detection above it decide the verdict.
        score_margin: A detection whose score lies within this distance of ``count_threshold`` may
            be missing on the other side: it is listed as a boundary case and does not fail. The
            score tolerance by default.
        mask_probability: Largest difference of the mask probabilities of two matched detections.
        mask_iou: Smallest IoU of the masks of two matched detections, each cut off at probability
            0.5, both as the network gives them and pasted into their boxes.
        match_iou: Smallest IoU at which two boxes that differ by more than the tolerance are
            still taken for the same object, so that the report can say by how much they differ.
        allow_empty: Whether a comparison in which neither model found anything may pass.
        explained: Largest share of the detections that may differ where rounding decides; a handful
            (``FEW_EXPLAINED``) may in any case. 0: no explanation is sought.
        rounding: Relative noise in the reference's layers that stands for rounding; the default is
            for float32.

    Raises:
        UsageError: A value is out of range.
    """

    box: float = 0.1
    score: float = 1e-3
    count_threshold: float = 0.05
    score_margin: float | None = None
    mask_probability: float = 1e-3
    mask_iou: float = 0.99
    match_iou: float = 0.5
    allow_empty: bool = False
    explained: float = 0.01
    rounding: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "allow_empty" or value is None:
                continue
            upper = math.inf if field.name == "box" else 1.0
            if not 0 <= value <= upper or math.isinf(value):
                raise UsageError(
                    f"parity tolerance {field.name} must be within 0..{upper:g}, got {value}"
                )
        if self.match_iou == 0:
            raise UsageError("parity tolerance match_iou must be above 0: boxes have to overlap")

    @property
    def margin(self) -> float:
        """The score margin around the count threshold that applies."""
        return self.score if self.score_margin is None else self.score_margin
