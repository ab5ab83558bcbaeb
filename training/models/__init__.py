"""Detectors and their parts, with MMDetection's type, argument and parameter names.

Importing this package registers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.atss_assigner import ATSSAssigner
from deploykit.training.models.assigners.center_region_assigner import CenterRegionAssigner
from deploykit.training.models.assigners.dynamic_soft_label_assigner import (
    DynamicSoftLabelAssigner,
)
from deploykit.training.models.assigners.max_iou_assigner import MaxIoUAssigner
from deploykit.training.models.backbones.cspnext import CSPNeXt
from deploykit.training.models.backbones.resnet import ResNet, ResNetV1d, ResNeXt
from deploykit.training.models.coders.delta_xywh import DeltaXYWHBBoxCoder
from deploykit.training.models.coders.distance_point import DistancePointBBoxCoder
from deploykit.training.models.coders.tblr import TBLRBBoxCoder
from deploykit.training.models.data_preprocessor import DetDataPreprocessor
from deploykit.training.models.detectors.base import BaseDetector
from deploykit.training.models.detectors.cascade_rcnn import CascadeRCNN
from deploykit.training.models.detectors.dense import ATSS, FCOS, FOVEA, FSAF, GFL
from deploykit.training.models.detectors.fast_rcnn import FastRCNN
from deploykit.training.models.detectors.faster_rcnn import FasterRCNN
from deploykit.training.models.detectors.mask_rcnn import MaskRCNN
from deploykit.training.models.detectors.retinanet import RetinaNet
from deploykit.training.models.detectors.rpn import RPN
from deploykit.training.models.detectors.rtmdet import RTMDet
from deploykit.training.models.detectors.single_stage import SingleStageDetector
from deploykit.training.models.heads.anchor_head import AnchorHead
from deploykit.training.models.heads.atss_head import ATSSHead
from deploykit.training.models.heads.fcos_head import FCOSHead
from deploykit.training.models.heads.fovea_head import FoveaHead
from deploykit.training.models.heads.free_anchor_head import FreeAnchorRetinaHead
from deploykit.training.models.heads.fsaf_head import FSAFHead
from deploykit.training.models.heads.gfl_head import GFLHead
from deploykit.training.models.heads.retina_head import RetinaHead, RetinaSepBNHead
from deploykit.training.models.heads.rpn_head import RPNHead
from deploykit.training.models.heads.rtmdet_head import RTMDetHead, RTMDetSepBNHead
from deploykit.training.models.losses.cross_entropy_loss import CrossEntropyLoss
from deploykit.training.models.losses.distribution_focal_loss import DistributionFocalLoss
from deploykit.training.models.losses.focal_loss import FocalLoss
from deploykit.training.models.losses.ghm_loss import GHMC, GHMR
from deploykit.training.models.losses.iou_losses import CIoULoss, DIoULoss, GIoULoss, IoULoss
from deploykit.training.models.losses.l1_loss import L1Loss, SmoothL1Loss
from deploykit.training.models.losses.quality_focal_loss import QualityFocalLoss
from deploykit.training.models.necks.cspnext_pafpn import CSPNeXtPAFPN
from deploykit.training.models.necks.fpn import FPN
from deploykit.training.models.priors.anchor_generator import AnchorGenerator
from deploykit.training.models.priors.point_generator import MlvlPointGenerator
from deploykit.training.models.roi_heads.bbox_head import BBoxHead
from deploykit.training.models.roi_heads.cascade_roi_head import CascadeRoIHead
from deploykit.training.models.roi_heads.convfc_bbox_head import (
    ConvFCBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from deploykit.training.models.roi_heads.fcn_mask_head import FCNMaskHead
from deploykit.training.models.roi_heads.single_roi_extractor import SingleRoIExtractor
from deploykit.training.models.roi_heads.standard_roi_head import StandardRoIHead
from deploykit.training.models.samplers.pseudo_sampler import PseudoSampler
from deploykit.training.models.samplers.random_sampler import RandomSampler
from deploykit.training.registry import MODELS

__all__ = [
    "ATSS",
    "FCOS",
    "FOVEA",
    "FPN",
    "FSAF",
    "GFL",
    "GHMC",
    "GHMR",
    "RPN",
    "ATSSAssigner",
    "ATSSHead",
    "AnchorGenerator",
    "AnchorHead",
    "BBoxHead",
    "BaseDetector",
    "CIoULoss",
    "CSPNeXt",
    "CSPNeXtPAFPN",
    "CascadeRCNN",
    "CascadeRoIHead",
    "CenterRegionAssigner",
    "ConvFCBBoxHead",
    "CrossEntropyLoss",
    "DIoULoss",
    "DeltaXYWHBBoxCoder",
    "DetDataPreprocessor",
    "DistancePointBBoxCoder",
    "DistributionFocalLoss",
    "DynamicSoftLabelAssigner",
    "FCNMaskHead",
    "FCOSHead",
    "FSAFHead",
    "FastRCNN",
    "FasterRCNN",
    "FocalLoss",
    "FoveaHead",
    "FreeAnchorRetinaHead",
    "GFLHead",
    "GIoULoss",
    "IoULoss",
    "L1Loss",
    "MaskRCNN",
    "MaxIoUAssigner",
    "MlvlPointGenerator",
    "PseudoSampler",
    "QualityFocalLoss",
    "RPNHead",
    "RTMDet",
    "RTMDetHead",
    "RTMDetSepBNHead",
    "RandomSampler",
    "ResNeXt",
    "ResNet",
    "ResNetV1d",
    "RetinaHead",
    "RetinaNet",
    "RetinaSepBNHead",
    "Shared2FCBBoxHead",
    "Shared4Conv1FCBBoxHead",
    "SingleRoIExtractor",
    "SingleStageDetector",
    "SmoothL1Loss",
    "StandardRoIHead",
    "TBLRBBoxCoder",
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
