"""Head of FSAF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND, IGNORED
from deploykit.training.models.heads.anchor_head import (
    LOSS_BBOX,
    LOSS_CLS,
    DenseOutputs,
    inside_images,
)
from deploykit.training.models.heads.dense_detections import all_rows
from deploykit.training.models.heads.retina_head import RetinaHead
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets, objects_of_images

# Boxes that are trained have an area.
LEAST_DISTANCE = 1e-4
# The loss of an object at a level where nothing predicts it.
ABSENT = 1e6
# Distances begin positive, as those below zero are cut off.
FSAF_INIT: Mapping[str, Any] = {
    "type": "Normal",
    "layer": "Conv2d",
    "std": 0.01,
    "override": [
        {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
        {"type": "Normal", "name": "retina_reg", "std": 0.01, "bias": 0.25},
    ],
}


@MODELS.register()
class FSAFHead(RetinaHead):
    """The anchor-free branch of FSAF: an object is trained at the level that predicts it best.

    Source: Zhu et al., "Feature Selective Anchor-Free Module for Single-Shot Object Detection",
    arXiv:1903.00621.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        score_threshold: Accepted for compatibility; of a statistic that is not computed.
        loss_cls: Config of the class loss.
        loss_bbox: Config of the box loss, which must give a value per box.
        init_cfg: How ``init_weights`` fills the weights.
        **options: As in ``RetinaHead``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        score_threshold: float | None = None,
        loss_cls: Mapping[str, Any] = LOSS_CLS,
        loss_bbox: Mapping[str, Any] = LOSS_BBOX,
        init_cfg: InitConfig = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            loss_cls={**loss_cls, "reduction": "none"},
            loss_bbox={**loss_bbox, "reduction": "none"},
            init_cfg=FSAF_INIT if init_cfg is None else init_cfg,
            **options,
        )
        if not self.use_sigmoid_cls or not self.reg_decoded_bbox or self.num_base_priors != 1:
            raise ConfigError(
                "FSAFHead: loss_cls must have use_sigmoid=True, reg_decoded_bbox must be True and "
                "there must be one anchor per cell"
            )

    def loss_by_feat(
        self,
        outputs: DenseOutputs,
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of predictions; see ``AnchorHead.loss_by_feat``.

        Returns:
            Scalars ``loss_cls`` and ``loss_bbox``, divided by the number of positive anchors at the
            chosen levels, or where there is none by the number of negative ones.
        """
        if self.assigner is None:
            raise ConfigError("training needs a train_cfg with an assigner")
        cls_scores, bbox_preds = outputs
        with torch.autocast(cls_scores[0].device.type, enabled=False):
            sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
            anchors = self.prior_generator.grid_priors(sizes, cls_scores[0].device)
            valid = self.prior_generator.valid_flags(sizes, padded_sizes)
            if self.allowed_border >= 0:
                valid = valid & inside_images(anchors, image_sizes, self.allowed_border)
            index, weights = self._assign(anchors, targets, valid)
            image, prior = torch.nonzero(index >= 0, as_tuple=True)
            labels, boxes = objects_of_images(targets, image, index[image, prior])
            all_labels = torch.full_like(index, self.num_classes)
            all_labels[image, prior] = labels
            loss_cls = self.loss_cls(
                all_rows(cls_scores, self.num_classes).flatten(0, 1),
                all_labels.flatten(),
                weights.flatten(0, 1),
            ).unflatten(0, index.shape)
            distances = all_rows(bbox_preds, 4)[image, prior].clamp(min=LEAST_DISTANCE)
            loss_bbox = self.loss_bbox(self.bbox_coder.decode(anchors[prior], distances), boxes)
            counts = torch.tensor([height * width for height, width in sizes])
            levels = torch.arange(len(sizes)).repeat_interleave(counts).to(prior.device)[prior]
            total = (loss_cls[image, prior].sum(dim=1) + loss_bbox).detach()
            chosen = _at_best_level(targets, image, index[image, prior], levels, total)
            # Where another level was chosen, the object's class alone is not trained.
            others = torch.zeros_like(loss_cls, dtype=torch.bool)
            others[image[~chosen], prior[~chosen], labels[~chosen]] = True
            positive = chosen.sum()
            negative = (index == BACKGROUND).sum(dim=1).clamp(min=1).sum()
            factor = torch.where(positive > 0, positive, negative)
            return {
                "loss_cls": loss_cls.masked_fill(others, 0.0).sum() / factor,
                "loss_bbox": (loss_bbox * chosen).sum() / factor,
            }

    def _assign(
        self, anchors: Tensor, targets: Sequence[Targets], valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the object of each anchor int64 [B, P], and class weights float32 [B, P, C]."""
        index = torch.full(valid.shape, IGNORED, device=valid.device)
        weights = anchors.new_zeros(*valid.shape, self.num_classes)
        for image, (target, mask) in enumerate(zip(targets, valid, strict=True)):
            assignment = self.assigner.assign(anchors[mask], target)
            own = anchors.new_zeros(len(assignment.gt_index), self.num_classes)
            own[assignment.gt_index == BACKGROUND] = 1.0
            own[assignment.gt_index >= 0] = self.pos_weight
            place, number = torch.nonzero(assignment.shadowed, as_tuple=True)
            own[place, target.labels[number]] = 0.0
            index[image, mask] = assignment.gt_index
            weights[image, mask] = own
        return index, weights

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        scores, distances = super()._forward_level(level, feat)
        return scores, distances.relu()


def _at_best_level(
    targets: Sequence[Targets], image: Tensor, index: Tensor, levels: Tensor, loss: Tensor
) -> Tensor:
    """Return bool [N]: whether an anchor is at the level where its object's mean loss is least."""
    counts = torch.tensor([len(target.boxes) for target in targets], device=image.device)
    number = (counts.cumsum(0) - counts)[image] + index
    num_levels = int(levels.max()) + 1 if len(levels) else 1
    place = levels * int(counts.sum()) + number
    size = num_levels * int(counts.sum())
    sums = loss.new_zeros(size).index_add_(0, place, loss)
    times = loss.new_zeros(size).index_add_(0, place, torch.ones_like(loss))
    means = torch.where(times > 0, sums / times.clamp(min=1), ABSENT).view(num_levels, -1)
    return means.argmin(dim=0)[number] == levels if len(levels) else levels == 0
