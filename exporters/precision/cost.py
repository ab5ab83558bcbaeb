"""What a precision pass costs: drift of detections, and mAP where a validation set is on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.errors import ParityError, UsageError
from deploykit.exporters.parity_images import Image
from deploykit.exporters.precision.accuracy import AccuracyDrop, measure_drop, validation_set
from deploykit.exporters.precision.apply import PrecisionRecord
from deploykit.exporters.precision.options import PrecisionOptions
from deploykit.parity import ParityReport, ParityTolerances, compare
from deploykit.runtimes.backend import Backend
from deploykit.runtimes.detector import Detector

if TYPE_CHECKING:
    from deploykit.training.config import Config

# What counts as the same detection in the record of the drift; the verdict is that of mAP.
DRIFT_TOLERANCES = {
    "fp16": ParityTolerances(box=1.0, score=0.01, count_threshold=0.3, explained=0),
    "int8": ParityTolerances(box=4.0, score=0.1, count_threshold=0.3, explained=0),
}


@dataclass(frozen=True)
class PrecisionCost:
    """What a precision pass did and what it costs.

    Args:
        record: What was converted.
        drift: Detections of the converted model against those of the float32 graph.
        accuracy: mAP of both; ``None`` without a validation set.
    """

    record: PrecisionRecord
    drift: ParityReport
    accuracy: AccuracyDrop | None

    @property
    def passed(self) -> bool:
        """Whether mAP holds, or was not measured."""
        return self.accuracy is None or self.accuracy.passed

    def summary(self) -> dict[str, Any]:
        """Return the record that goes into the spec of the artefact."""
        accuracy = None if self.accuracy is None else self.accuracy.summary()
        return {"pass": self.record.summary(), "drift": self.drift.summary(), "accuracy": accuracy}


class PrecisionError(ParityError):
    """A lower precision costs more mAP than it may; nothing was written.

    Args:
        cost: The measurements.
    """

    def __init__(self, cost: PrecisionCost) -> None:
        self.cost = cost
        reason = "" if cost.accuracy is None else cost.accuracy.reason
        super().__init__(
            f"{cost.record.precision} costs too much accuracy, so nothing was written: {reason}. "
            "Keep sensitive nodes in float32 with --keep-fp32, or allow more with --max-map-drop"
        )


def measure_cost(
    reference: Backend,
    candidate: Backend,
    record: PrecisionRecord,
    images: Sequence[Image],
    config: Config,
    options: PrecisionOptions,
    step: Callable[[str], AbstractContextManager[Any]],
) -> PrecisionCost:
    """Compare a converted graph with the float32 graph it was made from.

    Args:
        reference: The float32 graph.
        candidate: The converted graph; it computes what the artefact computes, rounding included.
        record: What was converted.
        images: For the drift.
        config: Its validation set is used for mAP if it is on disk.
        options: The limit of the loss.
        step: Called with the name of each step; the step runs inside the context it returns.

    Raises:
        PrecisionError: mAP falls by more than the limit.
        UsageError: A limit was asked for, but there is no validation set on disk.
    """
    with step(f"drift of {record.precision}"):
        drift = compare(
            Detector(None, backend=reference),
            Detector(None, backend=candidate),
            images,
            replace(DRIFT_TOLERANCES[record.precision], allow_empty=True),
            names=("fp32", record.precision),
        )
    known = validation_set(config)
    accuracy = None
    if known is not None:
        dataset, evaluator = known
        with step(f"mAP on {len(dataset)} validation images"):
            accuracy = measure_drop(
                reference, candidate, dataset, evaluator, options.map_drop_limit
            )
    elif options.max_map_drop is not None:
        raise UsageError(
            "--max-map-drop needs the validation set of the config, which is not on disk; run "
            "where it is, or name a config that has its path with --config"
        )
    cost = PrecisionCost(record, drift, accuracy)
    if not cost.passed:
        raise PrecisionError(cost)
    return cost
