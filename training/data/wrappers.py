"""Data sets made of other data sets."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import ConfigError, DatasetError
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.data.report import AnnotationReport
from deploykit.training.data.sample import ImageRecord, Sample
from deploykit.training.registry import DATASETS


class WrapperDataset(DetectionDataset):
    """A data set whose samples come from others; subclasses say which.

    Args:
        datasets: The data sets underneath, as config dicts or objects.
        lazy_init: Whether to put off loading annotations until they are needed.
    """

    def __init__(self, datasets: Sequence[Any], lazy_init: bool = False) -> None:
        name = type(self).__name__
        if not datasets:
            raise ConfigError(f"{name} needs at least one data set")
        self.datasets: list[DetectionDataset] = []
        for entry in datasets:
            dataset = entry if isinstance(entry, DetectionDataset) else _build(entry, lazy_init)
            self.datasets.append(dataset)
        if not lazy_init:
            self.full_init()

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The class names; a label is an index into them."""
        return self.datasets[0].classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:  # type: ignore[override]
        """One RGB colour per class, or empty."""
        return self.datasets[0].palette

    @property
    def keeps_caches(self) -> bool:
        """Whether a sample depends on those that were fetched before it in the same epoch."""
        return any(dataset.keeps_caches for dataset in self.datasets)

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """Return the data set and the index within it that ``index`` stands for."""
        raise NotImplementedError

    def full_init(self) -> None:
        """Load the annotations if that has not happened yet."""
        for dataset in self.datasets:
            dataset.full_init()

    def fetch(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample at ``index`` after the pipeline of the data set it belongs to."""
        dataset, inner = self.locate(index)
        return dataset.fetch(inner, rng)

    def record(self, index: int) -> ImageRecord:
        """Return what the annotation file says about the image at ``index``."""
        dataset, inner = self.locate(index)
        return dataset.record(inner)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the image at ``index`` as annotated, in pixels."""
        dataset, inner = self.locate(index)
        return dataset.image_size(inner)

    def set_pipeline(self, transforms: Sequence[Any]) -> None:
        """Replace the pipeline of every data set underneath."""
        for dataset in self.datasets:
            dataset.set_pipeline(transforms)

    def begin_epoch(self, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Forget what transforms have cached and fill their caches anew."""
        return [problem for dataset in self.datasets for problem in dataset.begin_epoch(rng)]

    def reports(self) -> list[AnnotationReport]:
        """Return the report of every annotation file underneath."""
        return [report for dataset in self.datasets for report in dataset.reports()]


def _build(config: Any, lazy_init: bool) -> DetectionDataset:
    options = dict(config) if isinstance(config, Mapping) else config
    if lazy_init and isinstance(options, dict):
        options.setdefault("lazy_init", True)
    dataset = DATASETS.build(options)
    if not isinstance(dataset, DetectionDataset):
        raise ConfigError(f"'{type(dataset).__name__}' is not a data set")
    return dataset


@DATASETS.register()
class ConcatDataset(WrapperDataset):
    """Data sets one after the other.

    Args:
        datasets: The data sets, as config dicts or objects. They must have the same classes in the
            same order, since a label is an index into them.
        lazy_init: Whether to put off loading annotations until they are needed.
        ignore_keys: Accepted for MMDetection's configs.

    Raises:
        DatasetError: The classes differ.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        lazy_init: bool = False,
        ignore_keys: str | Sequence[str] | None = None,
    ) -> None:
        self._ends: list[int] | None = None
        super().__init__(datasets, lazy_init)

    def full_init(self) -> None:
        """Load the annotations if that has not happened yet."""
        if self._ends is not None:
            return
        super().full_init()
        first = self.datasets[0].classes
        for position, dataset in enumerate(self.datasets[1:], 2):
            if dataset.classes != first:
                raise DatasetError(
                    f"ConcatDataset: data set {position} has the classes {dataset.classes[:5]}, "
                    f"the first has {first[:5]}; give both the same metainfo=dict(classes=...)"
                )
        self._ends = list(itertools.accumulate(len(dataset) for dataset in self.datasets))

    def _all_ends(self) -> list[int]:
        self.full_init()
        return self._ends or []

    def __len__(self) -> int:
        return self._all_ends()[-1]

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """Return the data set and the index within it that ``index`` stands for."""
        ends = self._all_ends()
        position = bisect.bisect_right(ends, index)
        return self.datasets[position], index - (ends[position - 1] if position else 0)


@DATASETS.register()
class RepeatDataset(WrapperDataset):
    """A data set repeated, so that an epoch is longer.

    Args:
        dataset: The data set, as a config dict or object.
        times: How often.
        lazy_init: Whether to put off loading annotations until they are needed.
    """

    def __init__(self, dataset: Any, times: int, lazy_init: bool = False) -> None:
        if not isinstance(times, int) or times < 1:
            raise ConfigError(f"RepeatDataset: times must be a whole number >= 1, got {times!r}")
        self.times = times
        super().__init__([dataset], lazy_init)

    def __len__(self) -> int:
        return self.times * len(self.datasets[0])

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """Return the data set and the index within it that ``index`` stands for."""
        return self.datasets[0], index % len(self.datasets[0])


@DATASETS.register()
class ClassBalancedDataset(WrapperDataset):
    """A data set in which images with rare classes are repeated (LVIS, arXiv:1908.03195).

    A class that occurs in a share f of the images has the repeat factor max(1, sqrt(t / f)); an
    image is repeated as often as the largest factor of its classes says, rounded up.

    Args:
        dataset: The data set, as a config dict or object.
        oversample_thr: t; classes in a larger share of the images are not repeated.
        lazy_init: Whether to put off loading annotations until they are needed.
    """

    def __init__(self, dataset: Any, oversample_thr: float, lazy_init: bool = False) -> None:
        if not isinstance(oversample_thr, int | float) or oversample_thr <= 0:
            raise ConfigError(
                f"ClassBalancedDataset: oversample_thr must be > 0, got {oversample_thr!r}"
            )
        self.oversample_thr = oversample_thr
        self._indices: list[int] | None = None
        super().__init__([dataset], lazy_init)

    def full_init(self) -> None:
        """Load the annotations if that has not happened yet."""
        if self._indices is not None:
            return
        super().full_init()
        inner = self.datasets[0]
        labels = [inner.labels_of(index) for index in range(len(inner))]
        images_with = Counter(label for found in labels for label in found)
        factor = {
            label: max(1.0, math.sqrt(self.oversample_thr / (count / len(inner))))
            for label, count in images_with.items()
        }
        self._indices = [
            index
            for index, found in enumerate(labels)
            for _ in range(math.ceil(max((factor[label] for label in found), default=1.0)))
        ]

    def _all_indices(self) -> list[int]:
        self.full_init()
        return self._indices or []

    def __len__(self) -> int:
        return len(self._all_indices())

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """Return the data set and the index within it that ``index`` stands for."""
        return self.datasets[0], self._all_indices()[index]
