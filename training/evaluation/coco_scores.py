"""From COCO's tables of precision and recall to the published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

AREA_RANGES = ("all", "s", "m", "l")
PRECISION_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")

# COCO's value for "there is no ground truth to measure this on".
UNDEFINED = -1.0


@dataclass(frozen=True)
class ClassScores:
    """Average precision of one class; -1 where there is no ground truth for it.

    Args:
        name: The class.
        objects: Number of objects, crowds not counted.
        mAP: Mean over the IoU thresholds.
        mAP_50: At IoU 0.50.
        mAP_75: At IoU 0.75.
        mAP_s: Of small objects (area under 32² pixels).
        mAP_m: Of medium objects (under 96²).
        mAP_l: Of large objects.
    """

    name: str
    objects: int
    mAP: float
    mAP_50: float
    mAP_75: float
    mAP_s: float
    mAP_m: float
    mAP_l: float


@dataclass(frozen=True)
class ScoreTables:
    """The result of COCO's accumulation.

    Args:
        precision: [T, R, K, A, M] by IoU threshold, recall level, class, area range, number of
            detections; -1 where undefined.
        recall: [T, K, A, M].
        iou_thresholds: [T].
        max_detections: [M], ascending.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    iou_thresholds: npt.NDArray[np.float64]
    max_detections: tuple[int, ...]

    def average_precision(self, item: str, class_index: int | None = None) -> float:
        """Return one of ``PRECISION_ITEMS``, over all classes or of one.

        As in COCO's summary ``mAP`` counts at most 100 detections per image and the others as many
        as there are; of one class all count as many as there are.
        """
        limit = len(self.max_detections) - 1
        if item == "mAP" and class_index is None and 100 in self.max_detections:
            limit = self.max_detections.index(100)
        suffix = item.removeprefix("mAP").removeprefix("_")
        area = AREA_RANGES.index(suffix) if suffix in AREA_RANGES else 0
        table = self.precision[..., area, limit]
        if suffix in ("50", "75"):
            table = table[np.isclose(self.iou_thresholds, int(suffix) / 100)]
        return mean_of_defined(table if class_index is None else table[..., class_index])

    def average_recall(self, limit: int, area: str = "all") -> float:
        """Return the mean recall with at most ``limit`` detections per image."""
        position = self.max_detections.index(limit)
        return mean_of_defined(self.recall[:, :, AREA_RANGES.index(area), position])

    def recall_items(self) -> dict[str, float]:
        """Return the recalls by name: ``AR@100``... and by area at the largest number."""
        most = self.max_detections[-1]
        items = {f"AR@{limit}": self.average_recall(limit) for limit in self.max_detections}
        for area in AREA_RANGES[1:]:
            items[f"AR_{area}@{most}"] = self.average_recall(most, area)
        return items

    def class_scores(self, names: Sequence[str], objects: Sequence[int]) -> list[ClassScores]:
        """Return the average precision of every class.

        Args:
            names: The K class names.
            objects: Number of objects of each class.
        """
        return [
            ClassScores(
                name,
                objects[index],
                **{item: self.average_precision(item, index) for item in PRECISION_ITEMS},
            )
            for index, name in enumerate(names)
        ]


def mean_of_defined(table: npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are not -1, or -1 if there are none."""
    defined = table[table > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED


def class_table(scores: Sequence[ClassScores], title: str = "") -> Any:
    """Return the scores per class as a ``rich.table.Table``."""
    from rich.table import Table

    table = Table(title=title or None)
    table.add_column("class")
    table.add_column("objects", justify="right")
    for item in PRECISION_ITEMS:
        table.add_column(item, justify="right")
    for each in scores:
        values = [getattr(each, item) for item in PRECISION_ITEMS]
        cells = ["-" if value == UNDEFINED else f"{value:.3f}" for value in values]
        table.add_row(each.name, str(each.objects), *cells)
    return table
