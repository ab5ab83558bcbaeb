"""Region proposals on their way through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.errors import ConfigError
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Pipeline, Transform
from deploykit.training.registry import TRANSFORMS


@TRANSFORMS.register()
class LoadProposals(Transform):
    """Take proposals from the record; the transforms after this one move them with the image.

    Args:
        num_max_proposals: At most so many, the best by score; all by default.

    Raises:
        ConfigError: The number is not positive, or (when called) the data set has no proposals.
    """

    def __init__(self, num_max_proposals: int | None = None) -> None:
        if num_max_proposals is not None and num_max_proposals < 1:
            raise ConfigError(
                f"LoadProposals: num_max_proposals must be at least 1, got {num_max_proposals}"
            )
        self.num_max_proposals = num_max_proposals

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Set the proposals."""
        table = sample.record.proposals
        if table is None:
            raise ConfigError("LoadProposals needs a data set with a proposal_file")
        sample.proposals = table[: self.num_max_proposals, :4]
        return sample


@TRANSFORMS.register()
class ProposalBroadcaster(Transform):
    """Apply transforms to an image with proposals.

    Transforms move proposals by themselves, within this one or not; it is for MMDetection's
    configs, and makes sure that there are proposals.

    Args:
        transforms: Transforms, as config dicts or objects.

    Raises:
        ConfigError: A transform keeps a cache, or (when called) no proposals were loaded.
    """

    def __init__(self, transforms: Sequence[Any] = ()) -> None:
        self.pipeline = Pipeline(transforms)
        if self.pipeline.stateful:
            raise ConfigError("ProposalBroadcaster: images with proposals cannot be mixed")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Apply the transforms in order."""
        if sample.proposals is None:
            raise ConfigError("ProposalBroadcaster: put LoadProposals before it")
        return self.pipeline.apply(sample, rng)
