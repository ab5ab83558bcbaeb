"""``Metric``: collects the detections of a validation set and turns them into numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from deploykit.detections import Detections
from deploykit.errors import ConfigError
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.registry import METRICS


class Metric(ABC):
    """Collects detections image by image.

    The order of calls is ``bind`` once, then for every evaluation ``reset``, ``add`` per image,
    ``compute``. Where several processes share the images out, each of them adds its own, and the
    first one merges what the others collected before it computes.
    """

    @abstractmethod
    def bind(self, dataset: DetectionDataset) -> None:
        """Take classes, images and, where the metric has none of its own, ground truth.

        Raises:
            DatasetError: The data set does not fit the metric's annotation file.
        """

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The class names that labels index."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all detections."""

    @abstractmethod
    def add(self, image_id: int | str, detections: Detections) -> None:
        """Take the detections of one image.

        Args:
            image_id: The image's id in the annotation file.
            detections: In pixels of the original image, unfiltered by score.

        Raises:
            DatasetError: The image is unknown or its detections came before, or the classes are
                not those of the data set.
        """

    @abstractmethod
    def collected(self) -> dict[int | str, Any]:
        """Return what was added, by image, in a form that is small and can be pickled."""

    @abstractmethod
    def merge(self, collected: Mapping[int | str, Any]) -> None:
        """Take what another process collected; images that are known already are passed over."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the numbers by name, e.g. ``coco/bbox_mAP``."""


def build_metrics(
    config: Mapping[str, Any] | Sequence[Any] | Metric, dataset: DetectionDataset
) -> list[Metric]:
    """Build the metrics of a config's ``val_evaluator`` or ``test_evaluator``.

    Args:
        config: ``dict(type="CocoMetric", ...)``, or a list of such.
        dataset: The data set that is evaluated.

    Raises:
        ConfigError: The config does not describe metrics.
        DatasetError: The data set does not fit a metric.
    """
    entries = [config] if isinstance(config, Mapping | Metric) else list(config or ())
    if not entries:
        raise ConfigError("an evaluator needs at least one metric, e.g. dict(type='CocoMetric')")
    metrics: list[Metric] = []
    for entry in entries:
        metric = entry if isinstance(entry, Metric) else METRICS.build(entry)
        if not isinstance(metric, Metric):
            raise ConfigError(f"'{type(metric).__name__}' is not a metric")
        metric.bind(dataset)
        metrics.append(metric)
    return metrics
