"""Detectors that propose regions and then look at each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.detectors.base import BaseDetector
from deploykit.training.models.detectors.single_stage import box_limits
from deploykit.training.models.heads.dense_detections import DenseTestConfig
from deploykit.training.models.roi_heads.roi_sampling import Proposals
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Batch


class TwoStageDetector(BaseDetector):
    """Backbone, optional neck, region proposal network and RoI head.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, or ``None``.
        rpn_head: Config of the head that proposes regions.
        roi_head: Config of the head that classifies them.
        train_cfg: ``rpn`` and ``rcnn`` for the heads, and ``rpn_proposal``: how proposals are made
            while training (by default as in ``test_cfg.rpn``).
        test_cfg: ``rpn`` and ``rcnn`` for the heads.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: Config of the initialisation of the whole.

    Raises:
        ConfigError: A head is missing.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        rpn_head: Mapping[str, Any] | None = None,
        roi_head: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if rpn_head is None or roi_head is None:
            raise ConfigError(f"{type(self).__name__} needs an rpn_head and a roi_head")
        training, testing = train_cfg or {}, test_cfg or {}
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        rpn = {"train_cfg": training.get("rpn"), "test_cfg": testing.get("rpn"), "num_classes": 1}
        self.rpn_head = MODELS.build({**rpn_head, **rpn})
        rcnn = {"train_cfg": training.get("rcnn"), "test_cfg": testing.get("rcnn")}
        self.roi_head = MODELS.build({**roi_head, **rcnn})
        self.proposal_config = DenseTestConfig.from_config(
            training.get("rpn_proposal") or testing.get("rpn")
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``BaseDetector.loss``; the losses of both stages."""
        feats = self.extract_feat(self.data_preprocessor(batch.images, batch.image_sizes))
        padded_sizes = self.data_preprocessor.padded_sizes(batch.image_sizes)
        outputs = self.rpn_head(feats)
        losses: dict[str, Tensor] = self.rpn_head.loss_by_feat(
            outputs, batch.targets, padded_sizes, batch.image_sizes
        )
        limits = box_limits(batch.images, batch.image_sizes)
        with torch.no_grad():
            boxes, _, _, counts = self.rpn_head.predict_by_feat(
                outputs, limits, self.proposal_config
            )
        proposals = Proposals.of_counts(boxes, counts)
        losses.update(self.roi_head.loss(feats, proposals, batch.targets, limits))
        return losses

    def predict(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """See ``BaseDetector.predict``."""
        feats = self.extract_feat(self.data_preprocessor(images, image_sizes))
        limits = box_limits(images, image_sizes)
        boxes, _, _, counts = self.rpn_head.predict(feats, limits)
        proposals = Proposals.of_counts(boxes, counts)
        return cast(tuple[Tensor, ...], self.roi_head.predict(feats, proposals, limits))
