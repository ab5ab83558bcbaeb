"""Box head of the second stage: classes of regions, and better boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.heads.dense_detections import (
    DenseTestConfig,
    DetectionTensors,
    suppress,
)
from deploykit.training.models.losses.accuracy import accuracy
from deploykit.training.models.roi_heads.roi_sampling import Proposals, SampledRoIs
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS, TASK_UTILS

CODER: Mapping[str, Any] = {
    "type": "DeltaXYWHBBoxCoder",
    "clip_border": True,
    "target_means": (0.0, 0.0, 0.0, 0.0),
    "target_stds": (0.1, 0.1, 0.2, 0.2),
}
LOSS_CLS: Mapping[str, Any] = {"type": "CrossEntropyLoss", "use_sigmoid": False}
LOSS_BBOX: Mapping[str, Any] = {"type": "SmoothL1Loss", "beta": 1.0}
LINEAR: Mapping[str, Any] = {"type": "Linear"}
PREDICTOR_INIT: tuple[Mapping[str, Any], ...] = (
    {"type": "Normal", "std": 0.01, "override": {"name": "fc_cls"}},
    {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
)


@MODELS.register()
class BBoxHead(nn.Module):
    """Class scores and box deltas of regions, by one fully connected layer each.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497. Parameter names are those of
    MMDetection 3.x.

    Args:
        with_avg_pool: Average the features of a region first.
        with_cls: Must be ``True``.
        with_reg: Must be ``True``.
        roi_feat_size: Side, or height and width, of the features of a region.
        in_channels: Channels of the features.
        num_classes: Number of classes, without background.
        bbox_coder: Config of the box coder.
        predict_box_type: Must be ``"hbox"``.
        reg_class_agnostic: One box for all classes, instead of one per class.
        reg_decoded_bbox: Compare boxes in the box loss, and not deltas.
        reg_predictor_cfg: Must be ``dict(type="Linear")``.
        cls_predictor_cfg: Must be ``dict(type="Linear")``.
        loss_cls: Config of the class loss, a softmax with background as the last class.
        loss_bbox: Config of the box loss.
        init_cfg: How ``init_weights`` fills the weights.

    Raises:
        ConfigError: An argument is not supported.
    """

    default_init: tuple[Mapping[str, Any], ...] = PREDICTOR_INIT

    def __init__(
        self,
        with_avg_pool: bool = False,
        with_cls: bool = True,
        with_reg: bool = True,
        roi_feat_size: int | tuple[int, int] = 7,
        in_channels: int = 256,
        num_classes: int = 80,
        bbox_coder: Mapping[str, Any] = CODER,
        predict_box_type: str = "hbox",
        reg_class_agnostic: bool = False,
        reg_decoded_bbox: bool = False,
        reg_predictor_cfg: Mapping[str, Any] = LINEAR,
        cls_predictor_cfg: Mapping[str, Any] = LINEAR,
        loss_cls: Mapping[str, Any] = LOSS_CLS,
        loss_bbox: Mapping[str, Any] = LOSS_BBOX,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not (with_cls and with_reg) or predict_box_type != "hbox":
            raise ConfigError(
                f"{name}: with_cls and with_reg must be True and predict_box_type 'hbox', got "
                f"{with_cls}, {with_reg} and {predict_box_type!r}"
            )
        for predictor in (reg_predictor_cfg, cls_predictor_cfg):
            if dict(predictor) != LINEAR:
                raise ConfigError(
                    f"{name}: predictors must be dict(type='Linear'), got {dict(predictor)!r}"
                )
        if loss_cls.get("use_sigmoid", False):
            raise ConfigError(f"{name}: loss_cls must be a softmax loss, with use_sigmoid=False")
        size = (roi_feat_size,) * 2 if isinstance(roi_feat_size, int) else tuple(roi_feat_size)
        self.roi_feat_area = size[0] * size[1]
        self.with_avg_pool = with_avg_pool
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.reg_class_agnostic = reg_class_agnostic
        self.reg_decoded_bbox = reg_decoded_bbox
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.init_cfg = self.default_init if init_cfg is None else init_cfg
        cls_channels, reg_channels = self._build_layers()
        self.fc_cls = nn.Linear(cls_channels, num_classes + 1)
        self.fc_reg = nn.Linear(reg_channels, 4 if reg_class_agnostic else 4 * num_classes)

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "box head")

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Classify regions and predict their boxes.

        Args:
            crops: float [R, in_channels, h, w], features of the regions.

        Returns:
            Class logits [R, C + 1], background last, and deltas [R, C * 4], or [R, 4] where they
            do not depend on the class.
        """
        flat = self._flatten(crops)
        return self.fc_cls(flat), self.fc_reg(flat)

    def loss(
        self, logits: Tensor, deltas: Tensor, samples: SampledRoIs, pos_weight: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the losses of predictions for sampled regions.

        Args:
            logits: [R, C + 1], see ``forward``.
            deltas: [R, C * 4] or [R, 4].
            samples: The regions and their ground truth.
            pos_weight: Weight of positive regions in the class loss.

        Returns:
            Scalars ``loss_cls`` and ``loss_bbox``, each divided by the number of regions, and
            ``acc``, the percentage of regions that are classified correctly.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, deltas = logits.float(), deltas.float()
            labels = samples.labels(self.num_classes)
            weights = torch.where(samples.positive, pos_weight, 1.0)
            count = max(1, len(samples))
            own = self._of_class(deltas, samples.gt_labels)[samples.positive]
            rois, boxes = samples.rois[samples.positive, 1:], samples.gt_boxes[samples.positive]
            if self.reg_decoded_bbox:
                own = self.bbox_coder.decode(rois, own)
            else:
                boxes = self.bbox_coder.encode(rois, boxes)
            return {
                "loss_cls": self.loss_cls(logits, labels, weights, avg_factor=count),
                "acc": accuracy(logits, labels),
                "loss_bbox": self.loss_bbox(own, boxes, avg_factor=count),
            }

    def refine(self, boxes: Tensor, deltas: Tensor, labels: Tensor, limits: Tensor) -> Tensor:
        """Return the boxes that the deltas of given classes make of regions.

        Args:
            boxes: float32 [..., 4], the regions, xyxy.
            deltas: [..., C * 4] or [..., 4].
            labels: int64 [...], classes, without background.
            limits: float32, broadcastable to ``boxes``: (width, height, width, height) to clip to.

        Returns:
            float32 [..., 4], xyxy.
        """
        own = self._of_class(deltas.float(), labels)
        return cast(Tensor, self.bbox_coder.decode(boxes, own, limits))

    def predict_by_feat(
        self,
        proposals: Proposals,
        logits: Tensor,
        deltas: Tensor,
        limits: Tensor,
        config: DenseTestConfig,
    ) -> DetectionTensors:
        """Make detections of predictions.

        Args:
            proposals: The regions.
            logits: [B, P, C + 1].
            deltas: [B, P, C * 4] or [B, P, 4].
            limits: float32 [B or 1, 1, 4], (width, height, width, height) in pixels that boxes are
                clipped to.
            config: Thresholds.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K],
            labels int32 [B, K] and the number of detections int32 [B].
        """
        scores = logits.float().softmax(dim=-1)[..., :-1]
        batch, count, _ = proposals.boxes.shape
        scores, labels = scores.topk(self._classes_per_region(config.score_thr), dim=2)
        own = deltas.float().view(batch, count, -1, 4)
        if not self.reg_class_agnostic:
            own = own.gather(2, labels.unsqueeze(-1).expand(-1, -1, -1, 4))
        boxes = self.bbox_coder.decode(proposals.boxes.unsqueeze(2), own, limits.unsqueeze(2))
        boxes = boxes.expand(-1, -1, labels.shape[2], -1)
        scores = torch.where(proposals.mask.unsqueeze(-1), scores, 0.0)
        return suppress(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1), config)

    def _classes_per_region(self, score_thr: float) -> int:
        """Return how many classes of one region can score higher than a threshold.

        Scores of a region add up to 1, so that is a bound which loses nothing.
        """
        return self.num_classes if score_thr <= 0 else min(self.num_classes, int(1 / score_thr) + 1)

    def _of_class(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Return the deltas [..., 4] of one class per region."""
        if self.reg_class_agnostic:
            return deltas
        index = (labels * 4).unsqueeze(-1) + torch.arange(4, device=labels.device)
        return deltas.gather(-1, index)

    def _build_layers(self) -> tuple[int, int]:
        """Add the layers before the predictors; return the inputs of ``fc_cls`` and ``fc_reg``."""
        channels = self.in_channels * (1 if self.with_avg_pool else self.roi_feat_area)
        return channels, channels

    def _flatten(self, crops: Tensor) -> Tensor:
        """Return [R, channels], pooled if the head does that."""
        return crops.mean(dim=(2, 3)) if self.with_avg_pool else crops.flatten(1)
