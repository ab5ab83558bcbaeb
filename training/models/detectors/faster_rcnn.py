"""Faster R-CNN."""

from __future__ import annotations

from deploykit.training.models.detectors.two_stage import TwoStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class FasterRCNN(TwoStageDetector):
    """Faster R-CNN, a two-stage detector whose proposals are learned along.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497. Arguments are those of
    ``TwoStageDetector``.
    """
