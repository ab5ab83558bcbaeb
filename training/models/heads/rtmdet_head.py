"""Heads of RTMDet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.dynamic_soft_label_assigner import (
    DynamicSoftLabelAssigner,
)
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.heads.dense_detections import (
    DenseTestConfig,
    DetectionTensors,
    gather_rows,
    suppress,
    top_candidates,
)
from deploykit.training.models.layers.conv_module import ConvModule, conv_type
from deploykit.training.models.layers.normalization import NORM_LAYERS
from deploykit.training.models.layers.scale import Scale
from deploykit.training.models.losses.quality_focal_loss import soft_targets
from deploykit.training.models.losses.reduction import mean_over_workers
from deploykit.training.models.weight_init import (
    bias_for_probability,
    constant_init,
    normal_init,
)
from deploykit.training.registry import MODELS, TASK_UTILS
from deploykit.training.structures import Targets

POINTS: Mapping[str, Any] = {"type": "MlvlPointGenerator", "offset": 0, "strides": (8, 16, 32)}
CODER: Mapping[str, Any] = {"type": "DistancePointBBoxCoder"}
LOSS_CLS: Mapping[str, Any] = {"type": "QualityFocalLoss", "beta": 2.0, "loss_weight": 1.0}
LOSS_BBOX: Mapping[str, Any] = {"type": "GIoULoss", "loss_weight": 2.0}
GROUP_NORM: Mapping[str, Any] = {"type": "GN", "num_groups": 32, "requires_grad": True}
BATCH_NORM: Mapping[str, Any] = {"type": "BN", "momentum": 0.03, "eps": 0.001}


@MODELS.register()
class RTMDetHead(nn.Module):
    """Anchor-free head: class scores and distances to the box sides at every point.

    All levels share one stack of convolutions; ``RTMDetSepBNHead`` is the variant that RTMDet's
    released models use. Source: "RTMDet", arXiv:2212.07784. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        with_objectness: Add a branch whose sigmoid is averaged (geometrically) with the scores.
        act_cfg: Config of the activations.
        pred_kernel_size: Kernel size of the last convolutions.
        stacked_convs: Number of convolutions before them.
        feat_channels: Channels of those.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers.
        anchor_generator: Config of the point generator.
        bbox_coder: Config of the box coder.
        loss_cls: Config of the class loss.
        loss_bbox: Config of the box loss.
        reg_decoded_bbox: Accepted for compatibility; the loss always compares decoded boxes.
        loss_centerness: Accepted for compatibility; there is no such branch.
        train_cfg: ``assigner`` and ``pos_weight``; ``allowed_border`` must be negative.
        test_cfg: See ``DenseTestConfig``.
        init_cfg: Accepted for compatibility; the weights are initialised as the paper's code does.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        with_objectness: bool = True,
        act_cfg: Mapping[str, Any] | None = None,
        pred_kernel_size: int = 3,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] = GROUP_NORM,
        anchor_generator: Mapping[str, Any] = POINTS,
        bbox_coder: Mapping[str, Any] = CODER,
        loss_cls: Mapping[str, Any] = LOSS_CLS,
        loss_bbox: Mapping[str, Any] = LOSS_BBOX,
        reg_decoded_bbox: bool = True,
        loss_centerness: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"RTMDet head: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.with_objectness = with_objectness
        self.pred_kernel_size = pred_kernel_size
        self.stacked_convs = stacked_convs
        self.feat_channels = feat_channels
        self.prior_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.assigner: DynamicSoftLabelAssigner | None = None
        self.pos_weight = 1.0
        if train_cfg:
            self._read_train_config(train_cfg)
        self.test_config = DenseTestConfig.from_config(test_cfg)
        self._conv_options: dict[str, Any] = {
            "conv_cfg": conv_cfg,
            "norm_cfg": norm_cfg,
            "act_cfg": {"type": "ReLU"} if act_cfg is None else act_cfg,
        }
        self._build_layers()

    def init_weights(self) -> None:
        """Fill the weights: small normal noise, and class scores that start at 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                normal_init(module, std=0.01)
            elif isinstance(module, NORM_LAYERS):
                constant_init(module, 1.0)
        for predictor in self._score_layers():
            normal_init(predictor, std=0.01, bias=bias_for_probability(0.01))

    def forward(self, feats: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Predict scores and distances at every point.

        Args:
            feats: float32 [B, in_channels, H_i, W_i] per level.

        Returns:
            Class logits float32 [B, num_classes, H_i, W_i] per level, and distances from the point
            to the left, top, right and bottom side float32 [B, 4, H_i, W_i] in pixels.
        """
        levels = [self._forward_level(level, feat) for level, feat in enumerate(feats)]
        return tuple(level[0] for level in levels), tuple(level[1] for level in levels)

    def loss(
        self,
        feats: Sequence[Tensor],
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            feats: float32 [B, in_channels, H_i, W_i] per level.
            targets: Ground truth per image.
            padded_sizes: int [B, 2], (height, width) in pixels, padded to the preprocessor's
                divisor; points beyond are not trained.
            image_sizes: int [B, 2], the same before that padding; not needed here.

        Returns:
            Scalars ``loss_cls`` and ``loss_bbox``, each divided by the sum of the IoUs of the
            positive points (at least 1), averaged over the processes of a distributed training.

        Raises:
            ConfigError: The head was built without a ``train_cfg``.
        """
        if self.assigner is None:
            raise ConfigError("training needs model.train_cfg with an assigner")
        cls_scores, bbox_preds = self(feats)
        # Half precision cannot hold pixel coordinates, nor sums over thousands of points.
        with torch.autocast(feats[0].device.type, enabled=False):
            sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
            priors = self.prior_generator.grid_priors(sizes, feats[0].device)
            logits = torch.cat([score.flatten(2) for score in cls_scores], dim=2).float()
            distances = torch.cat([pred.flatten(2) for pred in bbox_preds], dim=2).float()
            boxes = self.bbox_coder.decode(priors[:, :2], distances.transpose(1, 2))
            valid = self.prior_generator.valid_flags(sizes, padded_sizes)
            padded = PaddedTargets.from_targets(targets)
            return self._loss_of_points(logits, boxes, priors, valid, padded)

    def predict(self, feats: Sequence[Tensor], limits: Tensor) -> DetectionTensors:
        """Detect objects.

        Args:
            feats: float32 [B, in_channels, H_i, W_i] per level.
            limits: float32 [B or 1, 1, 4], (width, height, width, height) in pixels that boxes are
                clipped to.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K],
            labels int32 [B, K] and the number of detections int32 [B].
        """
        cls_scores, bbox_preds = self(feats)
        logits, labels, points, distances = [], [], [], []
        for level, (score, pred) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
            best, label, location = top_candidates(score.float(), self.test_config.nms_pre)
            size = (score.shape[2], score.shape[3])
            grid = self.prior_generator.level_points(level, size, score.device)
            logits.append(best)
            labels.append(label)
            points.append(grid[location])
            distances.append(gather_rows(pred.float().flatten(2).transpose(1, 2), location))
        boxes = self.bbox_coder.decode(torch.cat(points, 1), torch.cat(distances, 1), limits)
        scores = torch.cat(logits, 1).sigmoid()
        return suppress(boxes, scores, torch.cat(labels, 1), self.test_config)

    def _read_train_config(self, train_cfg: Mapping[str, Any]) -> None:
        known = {"assigner", "sampler", "allowed_border", "pos_weight", "debug"}
        if not known >= train_cfg.keys() or train_cfg.get("sampler") or "assigner" not in train_cfg:
            raise ConfigError(
                "RTMDet: train_cfg must have an 'assigner' and may have allowed_border, pos_weight "
                f"and debug, got {sorted(train_cfg)}"
            )
        if train_cfg.get("allowed_border", -1) >= 0:
            raise ConfigError("RTMDet: train_cfg.allowed_border must be -1")
        self.assigner = TASK_UTILS.build(train_cfg["assigner"])
        weight = train_cfg.get("pos_weight", -1)
        self.pos_weight = float(weight) if weight > 0 else 1.0

    def _stack(self, conv: type[nn.Module] = ConvModule) -> nn.ModuleList:
        return nn.ModuleList(
            conv(
                self.in_channels if index == 0 else self.feat_channels,
                self.feat_channels,
                3,
                padding=1,
                **self._conv_options,
            )
            for index in range(self.stacked_convs)
        )

    def _predictor(self, out_channels: int) -> nn.Conv2d:
        size = self.pred_kernel_size
        return nn.Conv2d(self.feat_channels, out_channels, size, padding=size // 2)

    def _build_layers(self) -> None:
        self.cls_convs = self._stack()
        self.reg_convs = self._stack()
        self.rtm_cls: Any = self._predictor(self.num_classes)
        self.rtm_reg: Any = self._predictor(4)
        if self.with_objectness:
            self.rtm_obj: Any = self._predictor(1)
        self.scales = nn.ModuleList(Scale() for _ in self.prior_generator.strides)

    def _score_layers(self) -> list[nn.Module]:
        return [self.rtm_cls, self.rtm_obj] if self.with_objectness else [self.rtm_cls]

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        cls_feat = _in_sequence(self.cls_convs, feat)
        reg_feat = _in_sequence(self.reg_convs, feat)
        score = self.rtm_cls(cls_feat)
        if self.with_objectness:
            score = _with_objectness(score, self.rtm_obj(reg_feat))
        distance = self.scales[level](self.rtm_reg(reg_feat).exp()).float()
        return score, distance * self.prior_generator.strides[level]

    def _loss_of_points(
        self, logits: Tensor, boxes: Tensor, priors: Tensor, valid: Tensor, targets: PaddedTargets
    ) -> dict[str, Tensor]:
        """Compute the losses from logits [B, C, P], boxes [B, P, 4] and what the priors are."""
        assigner = cast(DynamicSoftLabelAssigner, self.assigner)
        assignment = assigner.assign(logits.detach(), boxes.detach(), priors, targets, valid)
        image, point = torch.nonzero(assignment.gt_index >= 0, as_tuple=True)
        gt_index = assignment.gt_index[image, point]
        overlap = assignment.overlap[image, point]
        labels = torch.full_like(assignment.gt_index, self.num_classes)
        labels[image, point] = targets.labels[image, gt_index]
        weights = valid.float()
        weights[image, point] = self.pos_weight
        factor = mean_over_workers(overlap.sum()).clamp(min=1.0)
        soft = soft_targets(labels, assignment.overlap, self.num_classes)
        loss_cls = self.loss_cls(logits, soft, weights, avg_factor=1.0)
        loss_bbox = self.loss_bbox(
            boxes[image, point], targets.boxes[image, gt_index], overlap, avg_factor=1.0
        )
        return {"loss_cls": loss_cls / factor, "loss_bbox": loss_bbox / factor}


@MODELS.register()
class RTMDetSepBNHead(RTMDetHead):
    """RTMDet's head with convolutions shared by the levels and batch norms of their own.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        share_conv: Whether the levels share the weights of the stacked convolutions.
        use_depthwise: Whether those are depthwise separable (then nothing is shared).
        norm_cfg: Config of the norm layers.
        act_cfg: Config of the activations.
        pred_kernel_size: Kernel size of the last convolutions.
        exp_on_reg: Whether distances are predicted as logarithms.
        **options: As in ``RTMDetHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        share_conv: bool = True,
        use_depthwise: bool = False,
        norm_cfg: Mapping[str, Any] = BATCH_NORM,
        act_cfg: Mapping[str, Any] | None = None,
        pred_kernel_size: int = 1,
        exp_on_reg: bool = False,
        **options: Any,
    ) -> None:
        if share_conv and use_depthwise:
            raise ConfigError("RTMDetSepBNHead: share_conv and use_depthwise exclude each other")
        # Assigned before super().__init__, which calls _build_layers; plain values may be.
        self.share_conv = share_conv
        self.use_depthwise = use_depthwise
        self.exp_on_reg = exp_on_reg
        super().__init__(
            num_classes,
            in_channels,
            norm_cfg=norm_cfg,
            act_cfg={"type": "SiLU"} if act_cfg is None else act_cfg,
            pred_kernel_size=pred_kernel_size,
            **options,
        )

    def _build_layers(self) -> None:
        conv = conv_type(self.use_depthwise)
        levels = range(self.prior_generator.num_levels)
        self.cls_convs = nn.ModuleList(self._stack(conv) for _ in levels)
        self.reg_convs = nn.ModuleList(self._stack(conv) for _ in levels)
        self.rtm_cls = nn.ModuleList(self._predictor(self.num_classes) for _ in levels)
        self.rtm_reg = nn.ModuleList(self._predictor(4) for _ in levels)
        if self.with_objectness:
            self.rtm_obj = nn.ModuleList(self._predictor(1) for _ in levels)
        if self.share_conv:
            for stacks in (self.cls_convs, self.reg_convs):
                first, *others = (cast(nn.ModuleList, stack) for stack in stacks)
                for stack in others:
                    for layer, shared in zip(stack, first, strict=True):
                        layer.conv = shared.conv

    def _score_layers(self) -> list[nn.Module]:
        return list(chain(self.rtm_cls, self.rtm_obj if self.with_objectness else ()))

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        cls_feat = _in_sequence(self.cls_convs[level], feat)
        reg_feat = _in_sequence(self.reg_convs[level], feat)
        score = self.rtm_cls[level](cls_feat)
        if self.with_objectness:
            score = _with_objectness(score, self.rtm_obj[level](reg_feat))
        distance = self.rtm_reg[level](reg_feat)
        if self.exp_on_reg:
            distance = distance.exp()
        return score, distance * self.prior_generator.strides[level]


def _in_sequence(layers: nn.Module, x: Tensor) -> Tensor:
    """Run a ``ModuleList`` as if it were a ``Sequential``."""
    for layer in cast(nn.ModuleList, layers):
        x = layer(x)
    return x


def _with_objectness(score: Tensor, objectness: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of the geometric mean of two sigmoids.

    Through the logarithm, so that the gradient of the square root stays finite near zero.
    """
    mean = torch.exp((F.logsigmoid(score) + F.logsigmoid(objectness)) / 2)
    return torch.log(mean.clamp(min=eps) / (1 - mean).clamp(min=eps))
