"""What heads share that predict boxes at points instead of from anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.heads.conv_tower import conv_tower
from deploykit.training.models.heads.dense_detections import (
    DenseMaps,
    DenseTestConfig,
    DetectionTensors,
    LevelPredictions,
    best_predictions,
    prior_rows,
    suppress_scored,
)
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS, TASK_UTILS
from deploykit.training.structures import Targets

CODER: Mapping[str, Any] = {"type": "DistancePointBBoxCoder"}
FOCAL_LOSS: Mapping[str, Any] = {
    "type": "FocalLoss",
    "use_sigmoid": True,
    "gamma": 2.0,
    "alpha": 0.25,
    "loss_weight": 1.0,
}
IOU_LOSS: Mapping[str, Any] = {"type": "IoULoss", "loss_weight": 1.0}
# Class scores start at 0.01, so that the background does not swamp the first steps.
CLASS_INIT: Mapping[str, Any] = {
    "type": "Normal",
    "layer": "Conv2d",
    "std": 0.01,
    "override": {"type": "Normal", "name": "conv_cls", "std": 0.01, "bias_prob": 0.01},
}


class AnchorFreeHead(nn.Module):
    """Class scores and distances to the sides of a box at every point, shared by all levels.

    Subclasses have further outputs, and losses. Parameter names are those of MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        feat_channels: Channels of the stacked convolutions.
        stacked_convs: Number of convolutions before the last ones.
        strides: Stride of each level.
        dcn_on_last_conv: Make the last of the stacked convolutions deformable.
        conv_bias: Whether stacked convolutions have a bias; ``"auto"``: only without a norm.
        loss_cls: Config of the class loss; must use a sigmoid.
        loss_bbox: Config of the box loss.
        bbox_coder: Config of the box coder.
        conv_cfg: Type of the stacked convolutions.
        norm_cfg: Config of the norm layers, or ``None``.
        train_cfg: Accepted for compatibility; what is trained does not depend on it.
        test_cfg: See ``DenseTestConfig``.
        init_cfg: How ``init_weights`` fills the weights.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        dcn_on_last_conv: bool = False,
        conv_bias: bool | Literal["auto"] = "auto",
        loss_cls: Mapping[str, Any] = FOCAL_LOSS,
        loss_bbox: Mapping[str, Any] = IOU_LOSS,
        bbox_coder: Mapping[str, Any] = CODER,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = CLASS_INIT,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if num_classes < 1 or stacked_convs < 0:
            raise ConfigError(
                f"{name}: num_classes must be at least 1 and stacked_convs not negative, got "
                f"{num_classes} and {stacked_convs}"
            )
        if not loss_cls.get("use_sigmoid", False):
            raise ConfigError(f"{name}: loss_cls must have use_sigmoid=True")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feat_channels = feat_channels if stacked_convs else in_channels
        self.stacked_convs = stacked_convs
        self.strides = tuple(strides)
        self.prior_generator = TASK_UTILS.build(
            {"type": "MlvlPointGenerator", "strides": self.strides}
        )
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.test_config = DenseTestConfig.from_config(test_cfg)
        self.init_cfg = init_cfg
        self._tower_options: dict[str, Any] = {
            "conv_cfg": conv_cfg,
            "norm_cfg": norm_cfg,
            "bias": conv_bias,
            "last_conv_cfg": {"type": "DCNv2"} if dcn_on_last_conv else None,
        }
        self._build_layers()

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "head")

    def forward(self, feats: Sequence[Tensor]) -> DenseMaps:
        """Predict scores and distances at every point.

        Args:
            feats: float32 [B, in_channels, H_i, W_i] per level.

        Returns:
            Class logits float32 [B, num_classes, H_i, W_i] per level, and distances from the point
            to the left, top, right and bottom side float32 [B, 4, H_i, W_i] per level in pixels;
            then what else the head predicts.
        """
        levels = [self._forward_level(level, feat) for level, feat in enumerate(feats)]
        return tuple(zip(*levels, strict=True))

    def loss(
        self,
        feats: Sequence[Tensor],
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; see ``loss_by_feat``."""
        outputs = self(feats)
        # Half precision cannot hold pixel coordinates, nor sums over thousands of points.
        with torch.autocast(feats[0].device.type, enabled=False):
            return self.loss_by_feat(outputs, targets)

    def loss_by_feat(self, outputs: DenseMaps, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the losses of predictions.

        Args:
            outputs: What ``forward`` returned.
            targets: Ground truth per image.

        Returns:
            Scalars by name.
        """
        raise NotImplementedError

    def predict(self, feats: Sequence[Tensor], limits: Tensor) -> DetectionTensors:
        """Detect objects; see ``predict_by_feat``."""
        return self.predict_by_feat(self(feats), limits)

    def predict_by_feat(self, outputs: DenseMaps, limits: Tensor) -> DetectionTensors:
        """Make detections of predictions.

        Args:
            outputs: What ``forward`` returned: scores, distances and optionally the logits of a
                quality float32 [B, 1, H_i, W_i] per level.
            limits: float32 [B or 1, 1, 4], (width, height, width, height) in pixels that boxes are
                clipped to.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K],
            labels int32 [B, K] and the number of detections int32 [B].
        """
        levels = []
        for level, (score, pred, *quality) in enumerate(zip(*outputs, strict=True)):
            size = (score.shape[2], score.shape[3])
            levels.append(
                LevelPredictions(
                    prior_rows(score, self.num_classes),
                    self._level_priors(level, size, score.device),
                    prior_rows(pred, 4),
                    prior_rows(quality[0], 1).squeeze(2) if quality else None,
                )
            )
        best = best_predictions(levels, self.test_config)
        boxes = self._decode(best.priors, best.offsets, limits)
        return suppress_scored(boxes, best, self.test_config)

    def _level_priors(self, level: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """Return what ``_decode`` has to know of the points of a level, float32 [N, D]."""
        points: Tensor = self.prior_generator.level_points(level, size, device)
        return points

    def _decode(self, priors: Tensor, offsets: Tensor, limits: Tensor) -> Tensor:
        """Return boxes float32 [B, K, 4] of priors [B, K, D] and predictions [B, K, 4]."""
        boxes: Tensor = self.bbox_coder.decode(priors, offsets, limits)
        return boxes

    def _build_layers(self) -> None:
        self.cls_convs = self._tower()
        self.reg_convs = self._tower()
        self.conv_cls = nn.Conv2d(self.feat_channels, self.num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(self.feat_channels, 4, 3, padding=1)

    def _tower(self) -> nn.Sequential:
        return conv_tower(
            self.in_channels, self.feat_channels, self.stacked_convs, **self._tower_options
        )

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError
