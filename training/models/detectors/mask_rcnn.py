"""Mask R-CNN."""

from __future__ import annotations

from deploykit.training.models.detectors.two_stage import TwoStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class MaskRCNN(TwoStageDetector):
    """Mask R-CNN, Faster R-CNN with a mask head.

    Source: He et al., "Mask R-CNN", arXiv:1703.06870. Arguments are those of ``TwoStageDetector``.
    """
