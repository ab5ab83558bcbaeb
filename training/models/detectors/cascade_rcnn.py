"""Cascade R-CNN."""

from __future__ import annotations

from deploykit.training.models.detectors.two_stage import TwoStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN, and with a mask head Cascade Mask R-CNN.

    Source: Cai and Vasconcelos, "Cascade R-CNN", arXiv:1712.00726. Arguments are those of
    ``TwoStageDetector``; ``train_cfg.rcnn`` has one entry per stage.
    """
