"""The last step of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

DEFAULT_META_KEYS = (
    "img_id",
    "img_path",
    "ori_shape",
    "img_shape",
    "scale_factor",
    "flip",
    "flip_direction",
)


@TRANSFORMS.register()
class PackDetInputs(Transform):
    """Set ignored instances apart and keep the meta data that the config names.

    Args:
        meta_keys: Keys of ``Sample.meta`` to keep; ``img_id``, ``img_path``, ``ori_shape``,
            ``img_shape`` and ``scale_factor`` are always kept.
    """

    def __init__(self, meta_keys: Sequence[str] = DEFAULT_META_KEYS) -> None:
        self.meta_keys = (*DEFAULT_META_KEYS[:5], *meta_keys)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Finish the sample."""
        sample.ignored_boxes = sample.boxes[sample.ignore_flags]
        if sample.ignore_flags.any():
            sample.keep(~sample.ignore_flags)
        sample.image = np.ascontiguousarray(sample.image)
        sample.meta = {key: sample.meta[key] for key in self.meta_keys if key in sample.meta}
        return sample
