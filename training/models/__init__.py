"""Detectors and their parts, with MMDetection's type, argument and parameter names.

Importing this package registers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.dynamic_soft_label_assigner import (
    DynamicSoftLabelAssigner,
)
from deploykit.training.models.backbones.cspnext import CSPNeXt
from deploykit.training.models.coders.distance_point import DistancePointBBoxCoder
from deploykit.training.models.data_preprocessor import DetDataPreprocessor
from deploykit.training.models.detectors.base import BaseDetector
from deploykit.training.models.detectors.rtmdet import RTMDet
from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.models.heads.rtmdet_head import RTMDetHead, RTMDetSepBNHead
from deploykit.training.models.losses.giou_loss import GIoULoss
from deploykit.training.models.losses.quality_focal_loss import QualityFocalLoss
from deploykit.training.models.necks.cspnext_pafpn import CSPNeXtPAFPN
from deploykit.training.models.priors.point_generator import MlvlPointGenerator
from deploykit.training.registry import MODELS

__all__ = [
    "BaseDetector",
    "CSPNeXt",
    "CSPNeXtPAFPN",
    "DetDataPreprocessor",
    "DistancePointBBoxCoder",
    "DynamicSoftLabelAssigner",
    "GIoULoss",
    "MlvlPointGenerator",
    "QualityFocalLoss",
    "RTMDet",
    "RTMDetHead",
    "RTMDetSepBNHead",
    "SingleStageDetector",
    "build_detector",
]


def build_detector(model_cfg: Mapping[str, Any]) -> BaseDetector:
    """Build a detector from the ``model`` of a config.

    The weights are those that PyTorch's layers start with; call ``init_weights()`` before training
    from scratch, or load a checkpoint.

    Args:
        model_cfg: A dict with ``type`` (``"RTMDet"``...) and its arguments.

    Raises:
        ConfigError: A type is unknown, arguments do not fit, or the type is not a detector.
    """
    model = MODELS.build(model_cfg)
    if not isinstance(model, BaseDetector):
        raise ConfigError(
            f"model.type must be a detector (for example 'RTMDet'), got '{model_cfg['type']}'"
        )
    return model
