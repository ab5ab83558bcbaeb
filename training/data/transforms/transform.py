"""``Transform``: a step of the data pipeline, and ``Pipeline``: steps in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import ConfigError, DatasetError, DeploykitError
from deploykit.training.data.sample import ImageRecord, Sample
from deploykit.training.registry import TRANSFORMS


class Transform(ABC):
    """One step of a pipeline.

    A transform replaces fields of the sample it is given and returns it. It draws random numbers
    from the generator it is given and from nowhere else, and it never writes into an array of the
    sample: arrays may be shared with a cache.
    """

    @abstractmethod
    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Apply the transform.

        Args:
            sample: The sample; it is changed.
            rng: The source of all randomness.

        Returns:
            The sample, or ``None`` if nothing usable is left and another image should be drawn.
        """


class CachingTransform(Transform):
    """A transform that mixes in earlier samples, which it keeps in a cache."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all cached samples."""

    @abstractmethod
    def remember(self, sample: Sample, rng: np.random.Generator) -> None:
        """Put a sample into the cache."""

    @property
    @abstractmethod
    def missing(self) -> int:
        """How many samples the cache still needs before the first one can be mixed well."""


class MixingTransform(Transform):
    """A transform that mixes in other samples of the data set; for ``MultiImageMixDataset``."""

    @abstractmethod
    def draw_partners(
        self, draw: Callable[[], Sample | None], rng: np.random.Generator
    ) -> list[Sample] | None:
        """Draw the samples to mix in.

        Args:
            draw: Gives a random sample of the data set, or ``None`` if that one is unusable.
            rng: The source of all randomness.

        Returns:
            The samples, or ``None`` if not enough were usable.
        """

    @abstractmethod
    def mix(
        self, sample: Sample, partners: list[Sample], rng: np.random.Generator
    ) -> Sample | None:
        """Return the sample with its partners mixed in; the partners are not changed."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Refuse: there is no data set to draw from.

        Raises:
            ConfigError: Always.
        """
        name = type(self).__name__
        raise ConfigError(
            f"{name} draws other images: put it into the pipeline of a MultiImageMixDataset, or "
            f"use Cached{name}"
        )


class Pipeline:
    """Transforms applied in order.

    Args:
        transforms: Config dicts (``dict(type="Resize", ...)``) or ``Transform`` objects.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        if isinstance(transforms, str | Mapping) or not isinstance(transforms, Sequence):
            raise ConfigError(f"a pipeline must be a list of transforms, got {transforms!r:.100}")
        self.transforms: list[Transform] = [
            entry if isinstance(entry, Transform) else TRANSFORMS.build(entry)
            for entry in transforms
        ]

    @property
    def stateful(self) -> bool:
        """Whether any transform keeps a cache."""
        return any(isinstance(each, CachingTransform) for each in self.transforms)

    def __call__(self, record: ImageRecord, rng: np.random.Generator) -> Sample | None:
        """Return the sample made from a record, or ``None`` if a transform gave none."""
        return self.apply(Sample(record), rng)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Return the sample after all transforms, or ``None`` if one of them gave none."""
        return self._apply(sample, self.transforms, rng)

    def reset(self) -> None:
        """Forget what transforms have cached."""
        for transform in self.transforms:
            if isinstance(transform, CachingTransform):
                transform.reset()

    @property
    def samples_to_prime(self) -> int:
        """How many samples the caches need before the first one can be mixed well."""
        return sum(each.missing for each in self.transforms if isinstance(each, CachingTransform))

    def prime(self, record: ImageRecord, rng: np.random.Generator) -> list[tuple[str, str]]:
        """Run a record up to the first transform whose cache is not filled, and put it in there.

        Returns:
            The problems of the sample.
        """
        for index, transform in enumerate(self.transforms):
            if isinstance(transform, CachingTransform) and transform.missing:
                sample = self._apply(Sample(record), self.transforms[:index], rng)
                if sample is not None:
                    transform.remember(sample, rng)
                    return sample.problems
                break
        return []

    def describe(self) -> str:
        """Return the names of the transforms."""
        return "[" + ", ".join(type(each).__name__ for each in self.transforms) + "]"

    @staticmethod
    def _apply(
        sample: Sample, transforms: Sequence[Transform], rng: np.random.Generator
    ) -> Sample | None:
        current: Sample | None = sample
        for transform in transforms:
            try:
                current = transform(sample, rng)
            except DeploykitError:
                raise
            except Exception as error:
                # Whatever a transform raises, the user must learn which image it was.
                raise DatasetError(
                    f"{sample.record.path}: {type(transform).__name__} failed: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if current is None:
                return None
            sample = current
        return current
