"""One-stage detectors that are a backbone, a pyramid and a head of their own."""

from __future__ import annotations

from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class FCOS(SingleStageDetector):
    """FCOS, which predicts distances to the sides of a box from every point in it.

    Source: Tian et al., "FCOS", arXiv:1904.01355. Arguments are those of ``SingleStageDetector``.
    """
