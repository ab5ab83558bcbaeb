"""Head of ATSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deploykit.training.models.heads.adaptive_anchor_head import (
    AdaptiveAnchorHead,
    AnchorTargets,
)
from deploykit.training.models.heads.dense_detections import (
    DenseMaps,
    DenseTestConfig,
    DetectionTensors,
    LevelPredictions,
    all_rows,
    best_predictions,
    prior_rows,
    suppress_scored,
)
from deploykit.training.models.heads.fcos_head import LOSS_CENTERNESS, centerness_of
from deploykit.training.models.losses.reduction import mean_over_workers
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS

ATSS_INIT: Mapping[str, Any] = {
    "type": "Normal",
    "layer": "Conv2d",
    "std": 0.01,
    "override": {"type": "Normal", "name": "atss_cls", "std": 0.01, "bias_prob": 0.01},
}


@MODELS.register()
class ATSSHead(AdaptiveAnchorHead):
    """Class scores, deltas and centerness at every anchor; one anchor per cell is enough.

    Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via
    Adaptive Training Sample Selection", arXiv:1912.02424. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        pred_kernel_size: Kernel size of the last convolutions.
        reg_decoded_bbox: Accepted for compatibility; the box loss always compares boxes.
        loss_centerness: Config of the loss of the centerness.
        init_cfg: How ``init_weights`` fills the weights.
        **options: As in ``AdaptiveAnchorHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pred_kernel_size: int = 3,
        reg_decoded_bbox: bool = True,
        loss_centerness: Mapping[str, Any] = LOSS_CENTERNESS,
        init_cfg: InitConfig = ATSS_INIT,
        **options: Any,
    ) -> None:
        # Assigned before super().__init__, which calls _build_layers; plain values may be.
        self.pred_kernel_size = pred_kernel_size
        super().__init__(
            num_classes,
            in_channels,
            reg_decoded_bbox=reg_decoded_bbox,
            init_cfg=init_cfg,
            **options,
        )
        self.loss_centerness = MODELS.build(loss_centerness)

    def predict_by_feat(
        self, outputs: DenseMaps, limits: Tensor, config: DenseTestConfig | None = None
    ) -> DetectionTensors:
        """See ``AnchorHead.predict_by_feat``; scores are multiplied with the centerness."""
        config = self.test_config if config is None else config
        levels = []
        for level, (score, pred, centerness) in enumerate(zip(*outputs, strict=True)):
            size = (score.shape[2], score.shape[3])
            levels.append(
                LevelPredictions(
                    prior_rows(score, self.cls_out_channels),
                    self.prior_generator.level_priors(level, size, score.device),
                    prior_rows(pred, 4),
                    prior_rows(centerness, 1).squeeze(2),
                )
            )
        best = best_predictions(levels, config)
        return suppress_scored(
            self.bbox_coder.decode(best.priors, best.offsets, limits), best, config
        )

    def _losses(self, outputs: DenseMaps, targets: AnchorTargets) -> dict[str, Tensor]:
        cls_scores, bbox_preds, centernesses = outputs
        image, prior = targets.image, targets.prior
        anchors = targets.anchors[prior]
        loss_cls = self.loss_cls(
            all_rows(cls_scores, self.cls_out_channels).flatten(0, 1),
            targets.labels.flatten(),
            targets.weights.flatten(),
            avg_factor=targets.avg_factor,
        )
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        sides = (centers - targets.boxes[:, :2], targets.boxes[:, 2:] - centers)
        centerness = centerness_of(torch.cat(sides, dim=1))
        weight = mean_over_workers(centerness.sum()).clamp(min=1.0)
        boxes = self.bbox_coder.decode(anchors, all_rows(bbox_preds, 4)[image, prior])
        loss_bbox = self.loss_bbox(boxes, targets.boxes, weight=centerness, avg_factor=1.0)
        loss_centerness = self.loss_centerness(
            all_rows(centernesses, 1)[image, prior, 0], centerness, avg_factor=targets.avg_factor
        )
        return {
            "loss_cls": loss_cls,
            "loss_bbox": loss_bbox / weight,
            "loss_centerness": loss_centerness,
        }

    def _build_layers(self) -> None:
        super()._build_layers()
        anchors, size = self.num_base_priors, self.pred_kernel_size
        self.atss_cls = self._predictor(anchors * self.cls_out_channels, size)
        self.atss_reg = self._predictor(anchors * 4, size)
        self.atss_centerness = self._predictor(anchors, size)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        reg_feat = self.reg_convs(feat)
        deltas = self.scales[level](self.atss_reg(reg_feat)).float()
        return self.atss_cls(self.cls_convs(feat)), deltas, self.atss_centerness(reg_feat)
