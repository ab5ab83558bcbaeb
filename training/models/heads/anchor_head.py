"""Heads that predict relative to anchor boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.heads.dense_detections import (
    DenseMaps,
    DenseTestConfig,
    DetectionTensors,
    all_rows,
    gather_rows,
    prior_rows,
    suppress,
    top_pairs,
)
from deploykit.training.models.samplers.sampling import Sampling
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS, TASK_UTILS
from deploykit.training.structures import Targets

ANCHORS: Mapping[str, Any] = {
    "type": "AnchorGenerator",
    "scales": (8, 16, 32),
    "ratios": (0.5, 1.0, 2.0),
    "strides": (4, 8, 16, 32, 64),
}
CODER: Mapping[str, Any] = {"type": "DeltaXYWHBBoxCoder"}
LOSS_CLS: Mapping[str, Any] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
LOSS_BBOX: Mapping[str, Any] = {"type": "SmoothL1Loss", "beta": 1.0 / 9.0}
NORMAL_INIT: Mapping[str, Any] = {"type": "Normal", "layer": "Conv2d", "std": 0.01}

# Per level: class scores [B, A * C, H, W] and box deltas [B, A * 4, H, W]; some heads add to them.
DenseOutputs = DenseMaps


@dataclass(frozen=True)
class Candidates:
    """The most promising predictions of one level, k per image.

    Args:
        scores: float32 [B, k], logits where the head uses a sigmoid, else probabilities.
        labels: int64 [B, k], classes.
        anchors: float32 [B, k, 4], xyxy in pixels of the network input.
        deltas: float32 [B, k, 4], relative to the anchors.
    """

    scores: Tensor
    labels: Tensor
    anchors: Tensor
    deltas: Tensor


@MODELS.register()
class AnchorHead(nn.Module):
    """Class scores and box deltas for every anchor, from one 1x1 convolution each.

    ``RetinaHead`` and ``RPNHead`` put layers before them. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        feat_channels: Channels of the layers that heads of this kind put before the last ones.
        anchor_generator: Config of the anchor generator.
        bbox_coder: Config of the box coder.
        reg_decoded_bbox: Compare boxes in the box loss, and not deltas.
        loss_cls: Config of the class loss; ``use_sigmoid`` decides between independent classes and
            a softmax with background as the last class.
        loss_bbox: Config of the box loss.
        train_cfg: ``assigner``, and optionally ``sampler`` (all priors by default),
            ``allowed_border`` (anchors that reach further beyond the image, in pixels, are not
            trained; negative: all are) and ``pos_weight`` (weight of positive anchors in the class
            loss, 1 if it is not positive).
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
        anchor_generator: Mapping[str, Any] = ANCHORS,
        bbox_coder: Mapping[str, Any] = CODER,
        reg_decoded_bbox: bool = False,
        loss_cls: Mapping[str, Any] = LOSS_CLS,
        loss_bbox: Mapping[str, Any] = LOSS_BBOX,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = NORMAL_INIT,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(
                f"{type(self).__name__}: num_classes must be at least 1, got {num_classes}"
            )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feat_channels = feat_channels
        self.use_sigmoid_cls = bool(loss_cls.get("use_sigmoid", False))
        self.cls_out_channels = num_classes if self.use_sigmoid_cls else num_classes + 1
        self.reg_decoded_bbox = reg_decoded_bbox
        self.prior_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.assigner: Any = None
        self.sampler: Any = None
        self.allowed_border = -1.0
        self.pos_weight = 1.0
        if train_cfg:
            self._read_train_config(train_cfg)
        self.test_config = DenseTestConfig.from_config(test_cfg)
        self.init_cfg = init_cfg
        counts = set(self.prior_generator.num_base_priors)
        if len(counts) != 1:
            raise ConfigError(
                f"{type(self).__name__}: every level must have the same number of anchors per cell"
            )
        self.num_base_priors: int = counts.pop()
        self._build_layers()

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "head")

    def forward(self, feats: Sequence[Tensor]) -> DenseOutputs:
        """Predict scores and deltas for every anchor.

        Args:
            feats: float32 [B, in_channels, H_i, W_i] per level.

        Returns:
            Class logits float32 [B, A * C, H_i, W_i] per level, and deltas float32
            [B, A * 4, H_i, W_i] per level, for A anchors per cell.
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
        return self.loss_by_feat(self(feats), targets, padded_sizes, image_sizes)

    def loss_by_feat(
        self,
        outputs: DenseOutputs,
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of predictions.

        Args:
            outputs: What ``forward`` returned.
            targets: Ground truth per image.
            padded_sizes: int [B, 2], (height, width) of the images in pixels, padded to the
                preprocessor's divisor; anchors of cells beyond are not trained.
            image_sizes: int [B, 2], the same before that padding.

        Returns:
            Scalars ``loss_cls`` and ``loss_bbox``, each divided by the sampler's ``avg_factor``.

        Raises:
            ConfigError: The head was built without a ``train_cfg``.
        """
        if self.assigner is None:
            raise ConfigError("training needs a train_cfg with an assigner")
        cls_scores, bbox_preds = outputs
        # Half precision cannot hold pixel coordinates, nor sums over thousands of anchors.
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
            anchors = self.prior_generator.grid_priors(sizes, cls_scores[0].device)
            logits = all_rows(cls_scores, self.cls_out_channels)
            deltas = all_rows(bbox_preds, 4)
            valid = self.prior_generator.valid_flags(sizes, padded_sizes)
            if self.allowed_border >= 0:
                valid = valid & inside_images(anchors, image_sizes, self.allowed_border)
            padded = PaddedTargets.from_targets(targets)
            sampling = self.sampler.sample(self.assigner.assign(anchors, padded, valid))
            counts = [height * width * self.num_base_priors for height, width in sizes]
            return {
                "loss_cls": self._class_loss(logits, padded, sampling, counts),
                "loss_bbox": self._box_loss(deltas, anchors, padded, sampling, counts),
            }

    def predict(self, feats: Sequence[Tensor], limits: Tensor) -> DetectionTensors:
        """Detect objects; see ``predict_by_feat``."""
        return self.predict_by_feat(self(feats), limits)

    def predict_by_feat(
        self, outputs: DenseOutputs, limits: Tensor, config: DenseTestConfig | None = None
    ) -> DetectionTensors:
        """Make detections of predictions.

        Args:
            outputs: What ``forward`` returned.
            limits: float32 [B or 1, 1, 4], (width, height, width, height) in pixels that boxes are
                clipped to.
            config: Thresholds; those of ``test_cfg`` by default.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K],
            labels int32 [B, K] and the number of detections int32 [B].
        """
        config = self.test_config if config is None else config
        levels = self._candidates(outputs, config)
        boxes, scores = self._decode(levels, limits)
        labels = torch.cat([level.labels for level in levels], dim=1)
        return suppress(boxes, scores, labels, config)

    def _candidates(self, outputs: DenseOutputs, config: DenseTestConfig) -> list[Candidates]:
        """Return the best ``nms_pre`` (anchor, class) pairs of each level."""
        levels = []
        for level, (score, pred) in enumerate(zip(*outputs, strict=True)):
            rows = prior_rows(score, self.cls_out_channels)
            if not self.use_sigmoid_cls:
                rows = rows.softmax(dim=-1)[..., :-1]
            best, labels, location = top_pairs(rows, config.nms_pre)
            size = (score.shape[2], score.shape[3])
            anchors = self.prior_generator.level_priors(level, size, score.device)
            deltas = gather_rows(prior_rows(pred, 4), location)
            levels.append(Candidates(best, labels, anchors[location], deltas))
        return levels

    def _decode(self, levels: Sequence[Candidates], limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes float32 [B, N, 4] and scores float32 [B, N] of all levels."""
        boxes = self.bbox_coder.decode(
            torch.cat([level.anchors for level in levels], dim=1),
            torch.cat([level.deltas for level in levels], dim=1),
            limits,
        )
        scores = torch.cat([level.scores for level in levels], dim=1)
        return boxes, scores.sigmoid() if self.use_sigmoid_cls else scores

    def _build_layers(self) -> None:
        self.conv_cls = nn.Conv2d(self.in_channels, self.num_base_priors * self.cls_out_channels, 1)
        self.conv_reg = nn.Conv2d(self.in_channels, self.num_base_priors * 4, 1)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        return self.conv_cls(feat), self.conv_reg(feat)

    def _class_loss(
        self,
        logits: Tensor,
        targets: PaddedTargets,
        sampling: Sampling,
        level_sizes: Sequence[int],
    ) -> Tensor:
        """Return the class loss of logits float32 [B, P, C]."""
        labels = targets.labels.new_full(logits.shape[:2], self.num_classes)
        if targets.labels.shape[1]:
            own = targets.labels.gather(1, sampling.gt_index.clamp(min=0))
            labels = torch.where(sampling.positive, own, labels)
        weights = sampling.positive * self.pos_weight + sampling.negative * 1.0
        parts = [(logits, labels, weights)]
        if getattr(self.loss_cls, "by_level", False):
            split = (torch.split(values, list(level_sizes), dim=1) for values in parts[0])
            parts = list(zip(*split, strict=True))
        losses = [
            self.loss_cls(
                part.flatten(0, 1), own.flatten(), weight.flatten(), avg_factor=sampling.avg_factor
            )
            for part, own, weight in parts
        ]
        return torch.stack(losses).sum()

    def _box_loss(
        self,
        deltas: Tensor,
        anchors: Tensor,
        targets: PaddedTargets,
        sampling: Sampling,
        level_sizes: Sequence[int],
    ) -> Tensor:
        """Return the box loss of deltas float32 [B, P, 4] over the positive anchors."""
        image, prior = torch.nonzero(sampling.positive, as_tuple=True)
        pred, own = deltas[image, prior], anchors[prior]
        boxes = targets.boxes[image, sampling.gt_index[image, prior]]
        if self.reg_decoded_bbox:
            pred = self.bbox_coder.decode(own, pred)
        else:
            boxes = self.bbox_coder.encode(own, boxes)
        parts = [(pred, boxes)]
        if getattr(self.loss_bbox, "by_level", False):
            ends = torch.tensor(level_sizes, device=prior.device).cumsum(0)
            level = torch.bucketize(prior, ends, right=True)
            parts = [(pred[level == i], boxes[level == i]) for i in range(len(level_sizes))]
        losses = [self.loss_bbox(part, own, avg_factor=sampling.avg_factor) for part, own in parts]
        return torch.stack(losses).sum()

    def _read_train_config(self, train_cfg: Mapping[str, Any]) -> None:
        name = type(self).__name__
        known = {"assigner", "sampler", "allowed_border", "pos_weight", "debug"}
        if not known >= train_cfg.keys() or "assigner" not in train_cfg:
            raise ConfigError(
                f"{name}: train_cfg must have an 'assigner' and may have sampler, allowed_border, "
                f"pos_weight and debug, got {sorted(train_cfg)}"
            )
        self.assigner = TASK_UTILS.build(train_cfg["assigner"])
        self.sampler = TASK_UTILS.build(train_cfg.get("sampler") or {"type": "PseudoSampler"})
        if self.sampler.add_gt_as_proposals:
            raise ConfigError(
                f"{name}: objects cannot be proposals where the proposals are anchors; set "
                "add_gt_as_proposals=False in the sampler"
            )
        self.allowed_border = train_cfg.get("allowed_border", -1)
        weight = train_cfg.get("pos_weight", -1)
        self.pos_weight = float(weight) if weight > 0 else 1.0


def inside_images(anchors: Tensor, image_sizes: Tensor, border: float) -> Tensor:
    """Tell which anchors lie within images.

    Args:
        anchors: float32 [P, 4], xyxy in pixels.
        image_sizes: int [B, 2], (height, width) in pixels.
        border: How far anchors may reach beyond, in pixels.

    Returns:
        bool [B, P].
    """
    height, width = (image_sizes[:, i, None] + border for i in range(2))
    x1, y1, x2, y2 = anchors.unbind(dim=1)
    return (x1 >= -border) & (y1 >= -border) & (x2 < width) & (y2 < height)
