"""Head of GFL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.box_overlaps import aligned_iou
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
from deploykit.training.models.losses.reduction import mean_over_workers
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS

CODER: Mapping[str, Any] = {"type": "DistancePointBBoxCoder"}
LOSS_DFL: Mapping[str, Any] = {"type": "DistributionFocalLoss", "loss_weight": 0.25}
GFL_INIT: Mapping[str, Any] = {
    "type": "Normal",
    "layer": "Conv2d",
    "std": 0.01,
    "override": {"type": "Normal", "name": "gfl_cls", "std": 0.01, "bias_prob": 0.01},
}


class Integral(nn.Module):
    """The expected value of numbers whose distribution is predicted.

    Args:
        reg_max: The numbers are 0 to ``reg_max``.
    """

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.project: Tensor
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, logits: Tensor) -> Tensor:
        """Return float32 [..., 4] of logits [..., 4 * (reg_max + 1)]."""
        width = self.project.shape[0]
        probabilities = logits.reshape(*logits.shape[:-1], 4, width).softmax(dim=-1)
        return torch.matmul(probabilities, self.project[:, None]).squeeze(-1)


@MODELS.register()
class GFLHead(AdaptiveAnchorHead):
    """Scores that are also qualities of boxes, and distributions of the distances to their sides.

    Source: Li et al., "Generalized Focal Loss", arXiv:2006.04388. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        loss_dfl: Config of the loss of the distributions.
        bbox_coder: Config of the box coder, from the centres of anchors.
        reg_max: Largest distance, in strides.
        init_cfg: How ``init_weights`` fills the weights.
        **options: As in ``AdaptiveAnchorHead``.

    Raises:
        ConfigError: There are several anchors per cell, or strides differ between the axes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss_dfl: Mapping[str, Any] = LOSS_DFL,
        bbox_coder: Mapping[str, Any] = CODER,
        reg_max: int = 16,
        init_cfg: InitConfig = GFL_INIT,
        **options: Any,
    ) -> None:
        # Assigned before super().__init__, which calls _build_layers; plain values may be.
        self.reg_max = reg_max
        super().__init__(
            num_classes, in_channels, bbox_coder=bbox_coder, init_cfg=init_cfg, **options
        )
        strides = self.prior_generator.strides
        if self.num_base_priors != 1 or any(width != height for width, height in strides):
            raise ConfigError(
                "GFLHead: there must be one anchor per cell and equal strides of both axes, got "
                f"{self.num_base_priors} anchors and strides {strides}"
            )
        self.integral = Integral(reg_max)
        self.loss_dfl = MODELS.build(loss_dfl)

    def predict_by_feat(
        self, outputs: DenseMaps, limits: Tensor, config: DenseTestConfig | None = None
    ) -> DetectionTensors:
        """See ``AnchorHead.predict_by_feat``."""
        config = self.test_config if config is None else config
        levels = []
        for level, (score, pred) in enumerate(zip(*outputs, strict=True)):
            size = (score.shape[2], score.shape[3])
            anchors = self.prior_generator.level_priors(level, size, score.device)
            stride = self.prior_generator.strides[level][0]
            levels.append(
                LevelPredictions(
                    prior_rows(score, self.cls_out_channels),
                    _with_stride(_centers(anchors), float(stride)),
                    prior_rows(pred, 4 * (self.reg_max + 1)),
                )
            )
        best = best_predictions(levels, config)
        distances = self.integral(best.offsets) * best.priors[..., 2:]
        boxes = self.bbox_coder.decode(best.priors[..., :2], distances, limits)
        return suppress_scored(boxes, best, config)

    def _losses(self, outputs: DenseMaps, targets: AnchorTargets) -> dict[str, Tensor]:
        cls_scores, bbox_preds = outputs
        image, prior = targets.image, targets.prior
        logits = all_rows(cls_scores, self.cls_out_channels)
        distributions = all_rows(bbox_preds, 4 * (self.reg_max + 1))[image, prior]
        strides = torch.cat(
            [
                logits.new_full((score.shape[2] * score.shape[3], 1), float(stride))
                for score, (stride, _) in zip(cls_scores, self.prior_generator.strides, strict=True)
            ]
        )[prior]
        # In strides from here on.
        centers, wanted = _centers(targets.anchors[prior]) / strides, targets.boxes / strides
        boxes = self.bbox_coder.decode(centers, self.integral(distributions))
        weights = logits.detach()[image, prior].sigmoid().amax(dim=1)
        quality = torch.zeros_like(targets.weights)
        quality[image, prior] = aligned_iou(boxes.detach(), wanted)
        loss_cls = self.loss_cls(
            logits.flatten(0, 1),
            (targets.labels.flatten(), quality.flatten()),
            weight=targets.weights.flatten(),
            avg_factor=targets.avg_factor,
        )
        factor = mean_over_workers(weights.sum()).clamp(min=1.0)
        loss_bbox = self.loss_bbox(boxes, wanted, weight=weights, avg_factor=1.0)
        loss_dfl = self.loss_dfl(
            distributions.reshape(-1, self.reg_max + 1),
            self.bbox_coder.encode(centers, wanted, self.reg_max).reshape(-1),
            weight=weights[:, None].expand(-1, 4).reshape(-1),
            avg_factor=4.0,
        )
        return {
            "loss_cls": loss_cls,
            "loss_bbox": loss_bbox / factor,
            "loss_dfl": loss_dfl / factor,
        }

    def _build_layers(self) -> None:
        super()._build_layers()
        self.gfl_cls = self._predictor(self.cls_out_channels)
        self.gfl_reg = self._predictor(4 * (self.reg_max + 1))

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        distributions = self.scales[level](self.gfl_reg(self.reg_convs(feat))).float()
        return self.gfl_cls(self.cls_convs(feat)), distributions


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _with_stride(points: Tensor, stride: float) -> Tensor:
    return torch.cat((points, torch.full_like(points[:, :1], stride)), dim=1)
