"""What a lower precision costs in mAP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import DeploykitError
from deploykit.runtimes.backend import Backend
from deploykit.runtimes.detector import Detector

if TYPE_CHECKING:
    from deploykit.training.config import Config
    from deploykit.training.data.dataset import DetectionDataset

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AccuracyDrop:
    """mAP of two models on one data set.

    Args:
        reference: Metrics of the checkpoint by name, e.g. ``"coco/bbox_mAP"``.
        candidate: The same metrics of the exported model.
        images: Number of images.
        limit: The largest drop that passes.
    """

    reference: dict[str, float]
    candidate: dict[str, float]
    images: int
    limit: float

    @property
    def drops(self) -> dict[str, float]:
        """By metric, how much lower the exported model is."""
        return {
            name: value - self.candidate[name]
            for name, value in self.reference.items()
            if name.endswith("mAP")
        }

    @property
    def passed(self) -> bool:
        """Whether no mAP fell by more than the limit."""
        return all(drop <= self.limit for drop in self.drops.values())

    @property
    def reason(self) -> str:
        """The metrics that fell too far, in words."""
        return "; ".join(
            f"{name} falls from {self.reference[name]:.4f} to {self.candidate[name]:.4f}, more "
            f"than {self.limit:g}"
            for name, drop in self.drops.items()
            if drop > self.limit
        )

    def summary(self) -> dict[str, Any]:
        """Return the record that goes into the spec of the artefact."""
        return {
            "images": self.images,
            "limit": self.limit,
            "fp32": {name: self.reference[name] for name in self.drops},
            "converted": {name: self.candidate[name] for name in self.drops},
            "drop": self.drops,
        }


def validation_set(config: Config) -> tuple[DetectionDataset, Any] | None:
    """Return the validation set of a config and its evaluator, if its files are on disk."""
    from deploykit.training.data.build import build_dataset

    for split in ("val", "test"):
        loader, evaluator = config.get(f"{split}_dataloader"), config.get(f"{split}_evaluator")
        if loader and evaluator:
            try:
                dataset = build_dataset(loader["dataset"])
                return (dataset, evaluator) if len(dataset) else None
            except (DeploykitError, OSError):
                continue  # not on this machine
    return None


def measure_drop(
    reference: Backend,
    candidate: Backend,
    dataset: DetectionDataset,
    evaluator: Any,
    limit: float,
    progress: Progress | None = None,
) -> AccuracyDrop:
    """Measure two models on a validation set.

    Args:
        reference: The model as it was.
        candidate: The converted one.
        dataset: The validation set.
        evaluator: Config of the metrics, such as ``val_evaluator``.
        limit: The largest drop of any mAP that passes.
        progress: Called with the number of images done and their total, both models counted.

    Raises:
        DatasetError: The evaluator does not fit the data set.
    """
    from deploykit.training.evaluation import build_metrics, evaluate_detector

    results: list[dict[str, float]] = []
    for turn, backend in enumerate((reference, candidate)):
        detector = Detector(backend.name, backend=backend, score_threshold=0.0)

        def report(done: int, total: int, turn: int = turn) -> None:
            if progress is not None:
                progress(turn * total + done, 2 * total)

        metrics = build_metrics(evaluator, dataset)
        batch = max(1, backend.spec.input.batch.min)
        results.append(evaluate_detector(detector, dataset, metrics, batch, report))
    return AccuracyDrop(results[0], results[1], len(dataset), limit)
