"""``MultiImageMixDataset``: a second pipeline whose transforms draw other images, as YOLOX does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import ConfigError, DatasetError, DeploykitError
from deploykit.training.data.dataset import DetectionDataset, UnusableSampleError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import (
    CachingTransform,
    MixingTransform,
    Pipeline,
    Transform,
)
from deploykit.training.data.wrappers import WrapperDataset
from deploykit.training.registry import DATASETS


@DATASETS.register()
class MultiImageMixDataset(WrapperDataset):
    """A data set with a pipeline after its own, for transforms that mix several images.

    Args:
        dataset: The data set that the images are drawn from, as a config dict or object.
        pipeline: Transforms, among them ``Mosaic`` and ``MixUp``.
        skip_type_keys: Type names of transforms to leave out (YOLOX's last epochs).
        max_refetch: How often to try anew when a transform gives nothing.
        lazy_init: Whether to put off loading annotations until they are needed.

    Raises:
        ConfigError: The pipeline cannot be built, or holds a transform that keeps a cache.
    """

    def __init__(
        self,
        dataset: Any,
        pipeline: Sequence[Any],
        skip_type_keys: Sequence[str] | None = None,
        max_refetch: int = 15,
        lazy_init: bool = False,
    ) -> None:
        self.max_refetch = max_refetch
        self.skipped = frozenset(skip_type_keys or ())
        self.transforms: list[tuple[str, Transform]] = []
        self.set_pipeline(pipeline)
        super().__init__([dataset], lazy_init)

    def set_pipeline(self, transforms: Sequence[Any]) -> None:
        """Replace the mixing pipeline; that of the data set underneath stays."""
        built = Pipeline(transforms).transforms
        for transform in built:
            if isinstance(transform, CachingTransform):
                raise ConfigError(
                    f"{type(transform).__name__} keeps its own cache; put it into the pipeline of "
                    f"the data set itself, not into that of a MultiImageMixDataset"
                )
        names = [
            str(entry["type"]).split(".")[-1] if isinstance(entry, Mapping) else type(one).__name__
            for entry, one in zip(transforms, built, strict=True)
        ]
        self.transforms = list(zip(names, built, strict=True))

    def skip_transforms(self, types: Sequence[str]) -> None:
        """Leave out transforms of these type names from now on."""
        self.skipped = frozenset(types)

    def __len__(self) -> int:
        return len(self.datasets[0])

    def locate(self, index: int) -> tuple[DetectionDataset, int]:
        """Return the data set underneath and the same index."""
        return self.datasets[0], index

    def fetch(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample at ``index`` after both pipelines (see the base class)."""
        sample = self.datasets[0].fetch(index, rng)
        for name, transform in self.transforms:
            if name not in self.skipped:
                sample = self._apply(name, transform, sample, rng)
        return sample

    def _apply(
        self, name: str, transform: Transform, sample: Sample, rng: np.random.Generator
    ) -> Sample:
        partners: list[Sample] = []
        problems: list[tuple[str, str]] = []
        if isinstance(transform, MixingTransform):
            partners = self._partners(name, transform, rng, problems)
        for _ in range(self.max_refetch):
            result = _guarded(name, transform, sample.copy(), partners, rng)
            if result is not None:
                result.problems += problems
                return result
        raise DatasetError(
            f"{sample.record.path}: {name} gave no sample in {self.max_refetch} tries; check the "
            f"pipeline of the MultiImageMixDataset"
        )

    def _partners(
        self,
        name: str,
        transform: MixingTransform,
        rng: np.random.Generator,
        problems: list[tuple[str, str]],
    ) -> list[Sample]:
        for _ in range(self.max_refetch):
            drawn = transform.draw_partners(self._draw(rng, problems), rng)
            if drawn is not None:
                return drawn
        raise DatasetError(
            f"{name} found no usable images to mix in {self.max_refetch} tries; check the images "
            f"and the pipeline of the data set"
        )

    def _draw(
        self, rng: np.random.Generator, problems: list[tuple[str, str]]
    ) -> Callable[[], Sample | None]:
        def draw() -> Sample | None:
            inner = self.datasets[0]
            try:
                sample = inner.fetch(int(rng.integers(len(inner))), rng)
            except UnusableSampleError as error:
                problems.extend(error.problems)
                return None
            problems.extend(sample.problems)
            return sample

        return draw


def _guarded(
    name: str,
    transform: Transform,
    sample: Sample,
    partners: list[Sample],
    rng: np.random.Generator,
) -> Sample | None:
    """Run a transform so that whatever it raises names the image."""
    try:
        if isinstance(transform, MixingTransform):
            return transform.mix(sample, partners, rng)
        return transform(sample, rng)
    except DeploykitError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{sample.record.path}: {name} failed: {type(error).__name__}: {error}"
        ) from error
