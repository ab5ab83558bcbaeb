"""From a model's outputs to metrics: batches during training, any ``Detector`` afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from deploykit.detections import Detections
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.evaluation.metric import Metric
from deploykit.training.structures import Batch

EvaluationProgress = Callable[[int, int], None]


class _ImageDetector(Protocol):
    """What ``deploykit.runtimes.Detector`` offers."""

    def __call__(self, source: Any, /, proposals: Any = None) -> Any: ...


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
        dataset: The validation set; only its image files and proposals are used, the detector
            prepares them.
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
            given = [record.proposals for record in records if record.proposals is not None]
            options = {"proposals": given} if given else {}
            found = detector([record.path for record in records], **options)
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
        outputs: boxes f32 [B, K, 4], scores f32 [B, K], labels int32 [B, K], num_dets int32 [B],
            and optionally mask logits f32 [B, K, h, w].
        batch: The batch they belong to; its metas tell scale factors and original sizes.
        class_names: The class names that labels index.
    """
    arrays = [output.detach().cpu().numpy() for output in outputs]
    boxes, scores, labels, counts = arrays[:4]
    masks = arrays[4] if len(arrays) > 4 else None
    for row, meta in enumerate(batch.metas):
        yield Detections.from_model_outputs(
            boxes[row],
            scores[row],
            labels[row],
            int(counts[row]),
            None if masks is None else masks[row],
            scale_factor=meta["scale_factor"],
            image_size=meta["ori_shape"],
            class_names=tuple(class_names),
            score_threshold=0.0,
        )


def _numbers(metrics: Iterable[Metric]) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric.compute().items()}


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
