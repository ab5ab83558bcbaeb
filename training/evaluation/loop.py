"""Runs a model or a detector over a validation set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deploykit.detections import Detections
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.data.loader import DetectionLoader
from deploykit.training.evaluation.metric import Metric
from deploykit.training.structures import Batch

logger = logging.getLogger(__name__)

EvaluationProgress = Callable[[int, int], None]


class _Predictor(Protocol):
    """What a detector of ``deploykit.training.models`` offers for inference."""

    training: bool

    def predict(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]: ...

    def train(self, mode: bool = True) -> Any: ...


class _ImageDetector(Protocol):
    """What ``deploykit.runtimes.Detector`` offers."""

    def __call__(self, image: Any) -> Any: ...


def evaluate(
    model: nn.Module,
    dataloader: DetectionLoader,
    metric: Metric | Sequence[Metric],
    device: torch.device | str = "cpu",
    progress: bool | EvaluationProgress = False,
) -> dict[str, float]:
    """Measure a model on a validation set.

    Every detection counts, whatever its score. The model is put into evaluation mode and back.

    Args:
        model: A detector with ``predict``.
        dataloader: Batches of the validation set; their metas must hold ``img_id``, ``ori_shape``
            and ``scale_factor``.
        metric: One or several metrics, bound to the data set.
        device: Where the model is.
        progress: Whether to show a progress bar, or a function that is called with the number of
            images done and their total.

    Returns:
        The numbers of all metrics by name.
    """
    metrics = [metric] if isinstance(metric, Metric) else list(metric)
    for each in metrics:
        each.reset()
    done, total = 0, len(dataloader.dataset)
    with _evaluation_mode(model) as predictor, _reporter(progress, total) as report:
        for batch in dataloader:
            moved = batch.to(device, non_blocking=True)
            outputs = predictor.predict(moved.images, moved.image_sizes)
            for meta, found in zip(
                batch.metas, detections_of_batch(outputs, batch, metrics[0].classes), strict=True
            ):
                for each in metrics:
                    each.add(meta["img_id"], found)
            done += len(batch.metas)
            report(done, total)
    return _numbers(metrics)


def evaluate_detector(
    detector: _ImageDetector,
    dataset: DetectionDataset,
    metric: Metric | Sequence[Metric],
    batch_size: int = 1,
    progress: bool | EvaluationProgress = False,
) -> dict[str, float]:
    """Measure a ``Detector`` of any backend on a validation set.

    Args:
        detector: A detector that keeps every score (``score_threshold=0``).
        dataset: The validation set; only its image files are used, the detector prepares them.
        metric: One or several metrics, bound to the data set.
        batch_size: Images per call.
        progress: Whether to show a progress bar, or a function that is called with the number of
            images done and their total.

    Returns:
        The numbers of all metrics by name.
    """
    metrics = [metric] if isinstance(metric, Metric) else list(metric)
    for each in metrics:
        each.reset()
    total = len(dataset)
    with _reporter(progress, total) as report:
        for start in range(0, total, batch_size):
            records = [dataset.record(i) for i in range(start, min(start + batch_size, total))]
            found = detector([record.path for record in records])
            for record, detections in zip(records, found, strict=True):
                for each in metrics:
                    each.add(record.image_id, detections)
            report(start + len(records), total)
    return _numbers(metrics)


def detections_of_batch(
    outputs: Sequence[Tensor], batch: Batch, class_names: Sequence[str]
) -> Iterator[Detections]:
    """Turn the outputs of ``predict`` into detections in pixels of the original images.

    Args:
        outputs: boxes f32 [B, K, 4], scores f32 [B, K], labels int32 [B, K], num_dets int32 [B].
        batch: The batch they belong to; its metas tell scale factors and original sizes.
        class_names: The class names that labels index.
    """
    boxes, scores, labels, counts = (output.detach().cpu().numpy() for output in outputs[:4])
    for row, meta in enumerate(batch.metas):
        yield Detections.from_model_outputs(
            boxes[row],
            scores[row],
            labels[row],
            int(counts[row]),
            scale_factor=meta["scale_factor"],
            image_size=meta["ori_shape"],
            class_names=tuple(class_names),
            score_threshold=0.0,
        )


def _numbers(metrics: Iterable[Metric]) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric.compute().items()}


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[_Predictor]:
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(was_training)


@contextmanager
def _reporter(progress: bool | EvaluationProgress, total: int) -> Iterator[EvaluationProgress]:
    """Yield what is called with (done, total)."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda done, total: bar.update(task, completed=done)
