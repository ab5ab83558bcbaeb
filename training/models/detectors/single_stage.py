"""Detectors with one stage: backbone, neck and a dense head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from deploykit.training.models.detectors.base import BaseDetector
from deploykit.training.models.heads.dense_detections import DetectionTensors
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Batch


@MODELS.register()
class SingleStageDetector(BaseDetector):
    """Backbone, optional neck and a head that predicts boxes at every place.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, or ``None``.
        bbox_head: Config of the head.
        train_cfg: Handed to the head.
        test_cfg: Handed to the head.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Config of the initialisation of the whole.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        bbox_head: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        head = {**(bbox_head or {}), "train_cfg": train_cfg, "test_cfg": test_cfg}
        self.bbox_head = MODELS.build(head)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``BaseDetector.loss``."""
        pixels = self.data_preprocessor(batch.images, batch.image_sizes)
        feats = self.extract_feat(pixels)
        padded_sizes = self.data_preprocessor.padded_sizes(batch.image_sizes)
        losses = self.bbox_head.loss(feats, batch.targets, padded_sizes, batch.image_sizes)
        return cast(dict[str, Tensor], losses)

    def predict(self, images: Tensor, image_sizes: Tensor | None = None) -> DetectionTensors:
        """See ``BaseDetector.predict``."""
        feats = self.extract_feat(self.data_preprocessor(images, image_sizes))
        limits = box_limits(images, image_sizes)
        return cast(DetectionTensors, self.bbox_head.predict(feats, limits))


def box_limits(images: Tensor, image_sizes: Tensor | None) -> Tensor:
    """Return what boxes are clipped to.

    Args:
        images: [B, H, W, 3].
        image_sizes: int32 [B, 2], (height, width) of the unpadded images, or ``None``.

    Returns:
        float32 [B, 1, 4] or [1, 1, 4], (width, height, width, height) in pixels.
    """
    if image_sizes is None:
        height = torch.scalar_tensor(images.shape[1], device=images.device)
        width = torch.scalar_tensor(images.shape[2], device=images.device)
        return torch.stack((width, height, width, height)).view(1, 1, 4)
    return image_sizes.flip(1).repeat(1, 2).float().unsqueeze(1)
