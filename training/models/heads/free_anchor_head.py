"""Head of FreeAnchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.box_overlaps import pairwise_iou
from deploykit.training.models.heads.anchor_head import LOSS_BBOX, DenseOutputs
from deploykit.training.models.heads.dense_detections import all_rows
from deploykit.training.models.heads.retina_head import RetinaHead
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets

EPS = 1e-12


@MODELS.register()
class FreeAnchorRetinaHead(RetinaHead):
    """RetinaNet's head, which learns which of an object's anchors are to predict it.

    An object has a bag of the anchors that overlap it most, of which at least one must predict it
    well. Anchors whose predicted box hits an object need not be background.

    Source: Zhang et al., "FreeAnchor: Learning to Match Anchors for Visual Object Detection",
    arXiv:1909.02466.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        pre_anchor_topk: Anchors in a bag.
        bbox_thr: IoU above which a predicted box may have hit an object.
        gamma: Exponent of the focal loss of the background.
        alpha: Weight of the objects; that of the background is ``1 - alpha``.
        loss_bbox: Config of the box loss.
        **options: As in ``RetinaHead``.

    Raises:
        ConfigError: The class loss does not use a sigmoid, or another argument is not supported.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pre_anchor_topk: int = 50,
        bbox_thr: float = 0.6,
        gamma: float = 2.0,
        alpha: float = 0.5,
        loss_bbox: Mapping[str, Any] = LOSS_BBOX,
        **options: Any,
    ) -> None:
        per_number = {**loss_bbox, "reduction": "none"}
        super().__init__(num_classes, in_channels, loss_bbox=per_number, **options)
        if not self.use_sigmoid_cls:
            raise ConfigError("FreeAnchorRetinaHead: loss_cls must have use_sigmoid=True")
        self.pre_anchor_topk = pre_anchor_topk
        self.bbox_thr = bbox_thr
        self.gamma = gamma
        self.alpha = alpha

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
            padded_sizes: Not needed here, every anchor takes part.
            image_sizes: Likewise.

        Returns:
            Scalars ``positive_bag_loss``, averaged over the objects, and ``negative_bag_loss``,
            averaged over the anchors in their bags.
        """
        cls_scores, bbox_preds = outputs
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
            anchors = self.prior_generator.grid_priors(sizes, cls_scores[0].device)
            scores = all_rows(cls_scores, self.cls_out_channels).sigmoid()
            deltas = all_rows(bbox_preds, 4)
            count = sum(len(target.boxes) for target in targets)
            # The sum of nothing keeps a gradient, of zeros.
            positive = deltas.sum() * 0
            negative = []
            for image, target in enumerate(targets):
                if len(target.boxes):
                    bags = self._bag_loss(scores[image], deltas[image], anchors, target)
                    positive = positive + bags.sum()
                hit = self._hit_probability(deltas[image], anchors, target)
                background = (scores[image] * (1 - hit)).clamp(min=EPS, max=1 - EPS)
                entropy = F.binary_cross_entropy(
                    background, torch.zeros_like(background), reduction="none"
                )
                negative.append((background**self.gamma * entropy).sum())
            in_bags = max(1, count * self.pre_anchor_topk)
            return {
                "positive_bag_loss": positive / max(1, count),
                "negative_bag_loss": (1 - self.alpha) * torch.stack(negative).sum() / in_bags,
            }

    def _bag_loss(self, scores: Tensor, deltas: Tensor, anchors: Tensor, target: Targets) -> Tensor:
        """Return float32 [G], how badly the best anchors of each object predict it."""
        overlaps = pairwise_iou(target.boxes, anchors)
        size = min(self.pre_anchor_topk, len(anchors))
        bag = overlaps.topk(size, dim=1, sorted=False).indices  # [G, size]
        own = anchors[bag]
        wanted = self.bbox_coder.encode(own, target.boxes[:, None].expand_as(own))
        class_probability = scores[bag, target.labels[:, None]]
        box_probability = torch.exp(-self.loss_bbox(deltas[bag], wanted).sum(dim=-1))
        probability = class_probability * box_probability
        # The mean that is nearly the maximum once an anchor is sure of itself.
        weight = 1 / (1 - probability).clamp(min=EPS)
        weight = weight / weight.sum(dim=1, keepdim=True)
        best = (weight * probability).sum(dim=1)
        return self.alpha * F.binary_cross_entropy(best, torch.ones_like(best), reduction="none")

    @torch.no_grad()
    def _hit_probability(self, deltas: Tensor, anchors: Tensor, target: Targets) -> Tensor:
        """Return float32 [P, C], how surely each predicted box is an object of a class."""
        hit = deltas.new_zeros(len(anchors), self.cls_out_channels)
        if len(target.boxes) == 0:
            return hit
        overlaps = pairwise_iou(target.boxes, self.bbox_coder.decode(anchors, deltas))
        greatest = overlaps.amax(dim=1, keepdim=True).clamp(min=self.bbox_thr + EPS)
        share = ((overlaps - self.bbox_thr) / (greatest - self.bbox_thr)).clamp(min=0, max=1)
        labels = target.labels.expand(len(anchors), -1)
        return hit.scatter_reduce_(1, labels, share.t().contiguous(), "amax")
