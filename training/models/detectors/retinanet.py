"""RetinaNet."""

from __future__ import annotations

from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class RetinaNet(SingleStageDetector):
    """RetinaNet, a one-stage detector with anchors and focal loss.

    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002. Arguments are
    those of ``SingleStageDetector``.
    """
