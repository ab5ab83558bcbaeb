"""A random choice between pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.errors import ConfigError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import (
    CachingTransform,
    MixingTransform,
    Pipeline,
    Transform,
)
from deploykit.training.registry import TRANSFORMS


@TRANSFORMS.register()
class RandomChoice(Transform):
    """Apply one of several pipelines.

    Args:
        transforms: The pipelines, each a list of transforms or a single transform.
        prob: Probability of each; by default all are equally likely.

    Raises:
        ConfigError: Arguments that make no sense, or transforms that draw other images: those keep
            or need more than the sample at hand.
    """

    def __init__(self, transforms: Sequence[Any], prob: Sequence[float] | None = None) -> None:
        if isinstance(transforms, str) or not isinstance(transforms, Sequence) or not transforms:
            raise ConfigError(
                f"RandomChoice: transforms must be a list of pipelines, got {transforms!r:.100}"
            )
        self.pipelines = [
            Pipeline(entry if isinstance(entry, list | tuple) else [entry]) for entry in transforms
        ]
        self.prob = None if prob is None else [float(p) for p in prob]
        if self.prob is not None and (
            len(self.prob) != len(self.pipelines)
            or min(self.prob) < 0
            or abs(sum(self.prob) - 1) > 1e-6
        ):
            raise ConfigError(
                f"RandomChoice: prob must be {len(self.pipelines)} probabilities that add up to 1, "
                f"one per pipeline, got {list(self.prob)}"
            )
        for transform in [each for part in self.pipelines for each in part.transforms]:
            if isinstance(transform, CachingTransform | MixingTransform):
                raise ConfigError(
                    f"RandomChoice: {type(transform).__name__} draws other images and cannot be "
                    "chosen at random; put it into the pipeline itself"
                )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Apply a pipeline chosen at random."""
        return self.pipelines[int(rng.choice(len(self.pipelines), p=self.prob))].apply(sample, rng)
