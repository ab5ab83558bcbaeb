"""Head of region proposal networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.heads.anchor_head import NORMAL_INIT, AnchorHead, DenseOutputs
from deploykit.training.models.heads.dense_detections import (
    DenseTestConfig,
    DetectionTensors,
    gather_rows,
    suppress,
)
from deploykit.training.models.layers.conv_module import ConvModule
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets


@MODELS.register()
class RPNHead(AnchorHead):
    """Whether there is an object at every anchor, of whatever class, and its box.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497. Parameter names are those of
    MMDetection 3.x.

    Args:
        in_channels: Channels of the features.
        num_classes: Must be 1.
        init_cfg: How ``init_weights`` fills the weights.
        num_convs: Number of 3x3 convolutions before the predictions.
        **options: As in ``AnchorHead``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        init_cfg: InitConfig = NORMAL_INIT,
        num_convs: int = 1,
        **options: Any,
    ) -> None:
        if num_classes != 1 or num_convs < 1:
            raise ConfigError(
                f"RPNHead: num_classes must be 1 and num_convs at least 1, got {num_classes} and "
                f"{num_convs}"
            )
        # Assigned before super().__init__, which calls _build_layers; a plain value may be.
        self.num_convs = num_convs
        super().__init__(num_classes, in_channels, init_cfg=init_cfg, **options)

    def loss_by_feat(
        self,
        outputs: DenseOutputs,
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of predictions, whatever the classes of the objects.

        Args:
            outputs: What ``forward`` returned.
            targets: Ground truth per image.
            padded_sizes: See ``AnchorHead.loss_by_feat``.
            image_sizes: See ``AnchorHead.loss_by_feat``.

        Returns:
            Scalars ``loss_rpn_cls`` and ``loss_rpn_bbox``.
        """
        objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        losses = super().loss_by_feat(outputs, objects, padded_sizes, image_sizes)
        return {"loss_rpn_cls": losses["loss_cls"], "loss_rpn_bbox": losses["loss_bbox"]}

    def predict_by_feat(
        self, outputs: DenseOutputs, limits: Tensor, config: DenseTestConfig | None = None
    ) -> DetectionTensors:
        """Make proposals of predictions.

        Proposals of one level suppress each other, those of different levels do not. So each level
        is an image of its own in suppression: levels times 1,000 candidates compared with each
        other cost a fraction of all of them, and each row is short enough for any engine to sort.

        Args:
            outputs: What ``forward`` returned.
            limits: See ``AnchorHead.predict_by_feat``.
            config: Thresholds; those of ``test_cfg`` by default.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K]
            (descending), labels int32 [B, K] (all 0) and the number of proposals int32 [B]. Rows
            past that number are zero, with label -1.
        """
        config = self.test_config if config is None else config
        levels = self._candidates(outputs, config)
        boxes, scores = self._decode(levels, limits)
        sizes = [level.scores.shape[1] for level in levels]
        width = max(sizes) if all(isinstance(size, int) for size in sizes) else config.nms_pre
        if width is None:
            width = reduce(torch.sym_max, sizes)
        boxes, scores = _as_rows(boxes, sizes, width), _as_rows(scores, sizes, width)
        boxes, scores, _, _ = suppress(boxes, scores, scores.new_zeros(scores.shape).long(), config)
        return _merge(boxes, scores, len(levels), config.max_per_img)

    def _build_layers(self) -> None:
        channels = [self.in_channels] + [self.feat_channels] * self.num_convs
        self.rpn_conv: nn.Module
        if self.num_convs == 1:
            self.rpn_conv = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        else:
            activation: Mapping[str, Any] = {"type": "ReLU", "inplace": False}
            self.rpn_conv = nn.Sequential(
                *(
                    ConvModule(inputs, self.feat_channels, 3, padding=1, act_cfg=activation)
                    for inputs in channels[:-1]
                )
            )
        scores = self.num_base_priors * self.cls_out_channels
        self.rpn_cls = nn.Conv2d(self.feat_channels, scores, 1)
        self.rpn_reg = nn.Conv2d(self.feat_channels, self.num_base_priors * 4, 1)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.rpn_conv(feat))
        return self.rpn_cls(hidden), self.rpn_reg(hidden)


def _as_rows(values: Tensor, sizes: Sequence[int], width: int) -> Tensor:
    """Return [B, N, ...] of L levels, of these sizes, as [B * L, width, ...], padded with zeros."""
    padding = values.new_zeros((values.shape[0], width, *values.shape[2:]))
    levels = torch.split(values, list(sizes), dim=1)
    padded = [torch.cat((level, padding), dim=1)[:, :width] for level in levels]
    return torch.stack(padded, dim=1).flatten(0, 1)


def _merge(boxes: Tensor, scores: Tensor, levels: int, count: int) -> DetectionTensors:
    """Return the best proposals of all levels.

    Args:
        boxes: float32 [B * L, K, 4].
        scores: float32 [B * L, K], 0 in empty rows.
        levels: L.
        count: Number of proposals per image, at most L * K.
    """
    boxes = boxes.reshape(-1, levels * boxes.shape[1], 4)
    scores, index = scores.reshape(-1, levels * scores.shape[1]).topk(count, dim=1)
    found = scores > 0
    labels = torch.where(found, 0, -1).to(torch.int32)
    return gather_rows(boxes, index), scores, labels, found.sum(dim=1).to(torch.int32)
