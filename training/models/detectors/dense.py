"""One-stage detectors that are a backbone, a pyramid and a head of their own."""

from __future__ import annotations

from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.registry import MODELS


@MODELS.register()
class ATSS(SingleStageDetector):
    """ATSS, which chooses the anchors to train by the statistics of each object.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection", arXiv:1912.02424. Arguments are those of
    ``SingleStageDetector``.
    """


@MODELS.register()
class FCOS(SingleStageDetector):
    """FCOS, which predicts distances to the sides of a box from every point in it.

    Source: Tian et al., "FCOS", arXiv:1904.01355. Arguments are those of ``SingleStageDetector``.
    """


@MODELS.register()
class GFL(SingleStageDetector):
    """GFL, which scores classes by the quality of boxes and predicts distributions of their sides.

    Source: Li et al., "Generalized Focal Loss", arXiv:2006.04388. Arguments are those of
    ``SingleStageDetector``.
    """


@MODELS.register()
class FOVEA(SingleStageDetector):
    """FoveaBox, whose objects are predicted by the cells in their middle.

    Source: Kong et al., "FoveaBox: Beyond Anchor-based Object Detector", arXiv:1904.03797.
    Arguments are those of ``SingleStageDetector``.
    """


@MODELS.register()
class FSAF(SingleStageDetector):
    """FSAF, whose objects are trained at the level of the pyramid that predicts them best.

    Source: Zhu et al., "Feature Selective Anchor-Free Module for Single-Shot Object Detection",
    arXiv:1903.00621. Arguments are those of ``SingleStageDetector``.
    """
