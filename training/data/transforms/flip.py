"""Random mirroring."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from deploykit.errors import ConfigError
from deploykit.training.data import boxes as box_ops
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

_CV_CODES = {"horizontal": 1, "vertical": 0, "diagonal": -1}


@TRANSFORMS.register()
class RandomFlip(Transform):
    """Mirror the image with its boxes and masks.

    Args:
        prob: Probability of a flip, shared equally by the directions, or one probability per
            direction.
        direction: ``"horizontal"``, ``"vertical"``, ``"diagonal"`` (both at once), or a list.

    Raises:
        ConfigError: Probabilities or directions that make no sense.
    """

    def __init__(
        self, prob: float | Sequence[float], direction: str | Sequence[str] = "horizontal"
    ) -> None:
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        for each in self.directions:
            if each not in _CV_CODES:
                raise ConfigError(
                    f"RandomFlip: direction must be one of {', '.join(_CV_CODES)}, got {each!r}"
                )
        if isinstance(prob, int | float):
            shares = [prob / max(len(self.directions), 1)] * len(self.directions)
        else:
            shares = list(prob)
        if (
            len(shares) != len(self.directions)
            or not shares
            or min(shares) < 0
            or sum(shares) > 1 + 1e-9
        ):
            raise ConfigError(
                f"RandomFlip: prob must be within 0..1, or one such number per direction with a "
                f"sum of at most 1; got prob={prob!r} for {len(self.directions)} direction(s)"
            )
        self.thresholds = np.cumsum(shares)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Flip in a direction drawn at random, or not at all."""
        chosen = int(np.searchsorted(self.thresholds, rng.random(), side="right"))
        direction = self.directions[chosen] if chosen < len(self.directions) else None
        sample.meta["flip"] = direction is not None
        sample.meta["flip_direction"] = direction
        return sample if direction is None else flip_sample(sample, direction)


def flip_sample(sample: Sample, direction: str) -> Sample:
    """Mirror a sample; it is changed.

    Args:
        sample: The sample.
        direction: ``"horizontal"``, ``"vertical"`` or ``"diagonal"``.
    """
    height, width = sample.size
    sample.set_image(cv2.flip(sample.image, _CV_CODES[direction]))
    sample.move_boxes(lambda boxes: box_ops.flip(boxes, height, width, direction))
    if sample.masks is not None:
        sample.masks = sample.masks.flip(direction)
    return sample
