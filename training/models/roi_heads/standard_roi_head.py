"""The RoI head of Faster R-CNN and Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.heads.dense_detections import DetectionTensors
from deploykit.training.models.roi_heads.base_roi_head import BaseRoIHead
from deploykit.training.models.roi_heads.roi_sampling import Proposals, RoITrainConfig
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets


@MODELS.register()
class StandardRoIHead(BaseRoIHead):
    """One box head, and optionally one mask head.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497; He et al., "Mask R-CNN", arXiv:1703.06870.

    Args:
        bbox_roi_extractor: Config of what crops features for the box head.
        bbox_head: Config of the box head.
        mask_roi_extractor: The same for the mask head; that of the box head by default.
        mask_head: Config of the mask head, or ``None``.
        shared_head: Must be ``None``.
        train_cfg: See ``RoITrainConfig``.
        test_cfg: See ``BaseRoIHead``.
        init_cfg: Must be ``None``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        bbox_roi_extractor: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        mask_roi_extractor: Mapping[str, Any] | None = None,
        mask_head: Mapping[str, Any] | None = None,
        shared_head: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(test_cfg, shared_head, init_cfg)
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        self.bbox_head = MODELS.build(bbox_head)
        self.mask_head = None if mask_head is None else MODELS.build(mask_head)
        if mask_head is not None:
            self.mask_roi_extractor = MODELS.build(mask_roi_extractor or bbox_roi_extractor)
        self.train_config = RoITrainConfig(train_cfg) if train_cfg else None

    def loss(
        self,
        feats: Sequence[Tensor],
        proposals: Proposals,
        targets: Sequence[Targets],
        limits: Tensor,
    ) -> dict[str, Tensor]:
        """See ``BaseRoIHead.loss``; ``loss_cls``, ``loss_bbox``, ``acc`` and ``loss_mask``."""
        config = self.train_config
        if config is None:
            raise ConfigError("training needs a train_cfg with an rcnn part")
        samples = config.sample(proposals, PaddedTargets.from_targets(targets))
        logits, deltas = self.bbox_head(self.bbox_roi_extractor(feats, samples.rois))
        losses: dict[str, Tensor] = self.bbox_head.loss(logits, deltas, samples, config.pos_weight)
        if self.mask_head is not None:
            crops = self.mask_roi_extractor(feats, samples.rois[samples.positive])
            losses |= self.mask_head.loss(self.mask_head(crops), samples, targets, config)
        return losses

    def predict_boxes(
        self, feats: Sequence[Tensor], proposals: Proposals, limits: Tensor
    ) -> DetectionTensors:
        """See ``BaseRoIHead.predict_boxes``."""
        shape = proposals.mask.shape
        logits, deltas = self.bbox_head(self.bbox_roi_extractor(feats, proposals.to_rois()))
        detections = self.bbox_head.predict_by_feat(
            proposals,
            logits.unflatten(0, shape),
            deltas.unflatten(0, shape),
            limits,
            self.test_config,
        )
        return cast(DetectionTensors, detections)

    def predict_masks(self, feats: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor | None:
        """See ``BaseRoIHead.predict_masks``."""
        if self.mask_head is None:
            return None
        logits = self.mask_head(self.mask_roi_extractor(feats, rois))
        return cast(Tensor, self.mask_head.of_class(logits, labels))
