"""The RoI head of Cascade R-CNN and Cascade Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.heads.dense_detections import DetectionTensors
from deploykit.training.models.roi_heads.base_roi_head import BaseRoIHead
from deploykit.training.models.roi_heads.bbox_head import BBoxHead
from deploykit.training.models.roi_heads.roi_sampling import Proposals, RoITrainConfig, SampledRoIs
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets

# Mask probabilities closer to 0 or 1 than this have no logit in float32.
_SMALLEST_PROBABILITY = 1e-6

StageConfigs = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@MODELS.register()
class CascadeRoIHead(BaseRoIHead):
    """Several box heads in a row, each of which refines the boxes of the one before.

    Detections take the boxes of the last head and the scores of all heads' mean logits; masks are
    the mean of all mask heads.

    Source: Cai and Vasconcelos, "Cascade R-CNN", arXiv:1712.00726. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_stages: Number of box heads.
        stage_loss_weights: Factor of the losses of each stage.
        bbox_roi_extractor: Config of what crops features for the box heads, one or one per stage.
        bbox_head: Config of the box heads, one or one per stage.
        mask_roi_extractor: The same as ``bbox_roi_extractor`` for the mask heads, and the default.
        mask_head: Config of the mask heads, one or one per stage, or ``None``.
        shared_head: Must be ``None``.
        train_cfg: One ``RoITrainConfig`` per stage.
        test_cfg: See ``BaseRoIHead``.
        init_cfg: Must be ``None``.

    Raises:
        ConfigError: An argument is not supported, or there is not one of a kind per stage.
    """

    def __init__(
        self,
        num_stages: int,
        stage_loss_weights: Sequence[float],
        bbox_roi_extractor: StageConfigs,
        bbox_head: StageConfigs,
        mask_roi_extractor: StageConfigs | None = None,
        mask_head: StageConfigs | None = None,
        shared_head: Mapping[str, Any] | None = None,
        train_cfg: Sequence[Mapping[str, Any]] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__(test_cfg, shared_head, init_cfg)
        self.num_stages = num_stages
        self.stage_loss_weights = tuple(stage_loss_weights)
        self._check_count("stage_loss_weights", self.stage_loss_weights)
        self.bbox_roi_extractor = self._build("bbox_roi_extractor", bbox_roi_extractor)
        self.bbox_head = self._build("bbox_head", bbox_head)
        self.mask_head: nn.ModuleList | None = None
        if mask_head is not None:
            extractor = mask_roi_extractor or bbox_roi_extractor
            self.mask_roi_extractor = self._build("mask_roi_extractor", extractor)
            self.mask_head = self._build("mask_head", mask_head)
        self.train_configs = [RoITrainConfig(config) for config in train_cfg or ()]
        if self.train_configs:
            self._check_count("train_cfg.rcnn", self.train_configs)

    def loss(
        self,
        feats: Sequence[Tensor],
        proposals: Proposals,
        targets: Sequence[Targets],
        limits: Tensor,
    ) -> dict[str, Tensor]:
        """See ``BaseRoIHead.loss``; those of ``StandardRoIHead`` after ``s0.``, ``s1.``..."""
        if not self.train_configs:
            raise ConfigError("training needs a train_cfg with one rcnn part per stage")
        padded = PaddedTargets.from_targets(targets)
        losses: dict[str, Tensor] = {}
        for stage, config in enumerate(self.train_configs):
            samples = config.sample(proposals, padded)
            head = self._head(stage)
            logits, deltas = head(self.bbox_roi_extractor[stage](feats, samples.rois))
            own = head.loss(logits, deltas, samples, config.pos_weight)
            if self.mask_head is not None:
                crops = self.mask_roi_extractor[stage](feats, samples.rois[samples.positive])
                mask_head: Any = self.mask_head[stage]
                own |= mask_head.loss(mask_head(crops), samples, targets, config)
            weight = self.stage_loss_weights[stage]
            for name, value in own.items():
                losses[f"s{stage}.{name}"] = value * weight if "loss" in name else value
            if stage + 1 < self.num_stages:
                proposals = _refined(head, proposals, samples, logits, deltas, limits)
        return losses

    def predict_boxes(
        self, feats: Sequence[Tensor], proposals: Proposals, limits: Tensor
    ) -> DetectionTensors:
        """See ``BaseRoIHead.predict_boxes``."""
        shape = proposals.mask.shape
        all_logits = []
        for stage in range(self.num_stages):
            head = self._head(stage)
            logits, deltas = head(self.bbox_roi_extractor[stage](feats, proposals.to_rois()))
            logits, deltas = logits.unflatten(0, shape), deltas.unflatten(0, shape)
            all_logits.append(logits)
            if stage + 1 < self.num_stages:
                labels = logits[..., :-1].argmax(dim=-1)
                boxes = head.refine(proposals.boxes, deltas, labels, limits)
                proposals = Proposals(boxes, proposals.mask)
        logits = torch.stack(all_logits).mean(dim=0)
        return head.predict_by_feat(proposals, logits, deltas, limits, self.test_config)

    def predict_masks(self, feats: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor | None:
        """See ``BaseRoIHead.predict_masks``; the logits of the mean probability of all heads."""
        if self.mask_head is None:
            return None
        probabilities = []
        for extractor, head in zip(self.mask_roi_extractor, self.mask_head, strict=True):
            mask_head: Any = head
            logits = mask_head.of_class(mask_head(extractor(feats, rois)), labels)
            probabilities.append(logits.sigmoid())
        return torch.logit(torch.stack(probabilities).mean(dim=0), eps=_SMALLEST_PROBABILITY)

    def _head(self, stage: int) -> BBoxHead:
        return cast(BBoxHead, self.bbox_head[stage])

    def _build(self, name: str, configs: StageConfigs) -> nn.ModuleList:
        every = [configs] * self.num_stages if isinstance(configs, Mapping) else list(configs)
        self._check_count(name, every)
        return nn.ModuleList(MODELS.build(config) for config in every)

    def _check_count(self, name: str, values: Sequence[object]) -> None:
        if len(values) != self.num_stages or self.num_stages < 1:
            raise ConfigError(
                f"CascadeRoIHead: {name} must have one entry for each of the {self.num_stages} "
                f"stages, got {len(values)}"
            )


@torch.no_grad()
def _refined(
    head: BBoxHead,
    proposals: Proposals,
    samples: SampledRoIs,
    logits: Tensor,
    deltas: Tensor,
    limits: Tensor,
) -> Proposals:
    """Return the sampled proposals with the boxes that a stage makes of them.

    Boxes are those of the true class, or for background of the most likely one. Objects that were
    added to the proposals are left out; the next stage adds them again.
    """
    labels = torch.where(samples.positive, samples.gt_labels, logits[:, :-1].argmax(dim=1))
    own_limits = limits[samples.image, 0]
    refined = head.refine(samples.rois[:, 1:], deltas, labels, own_limits)
    kept = samples.proposal >= 0
    place = samples.image[kept], samples.proposal[kept]
    boxes, mask = torch.zeros_like(proposals.boxes), torch.zeros_like(proposals.mask)
    boxes[place], mask[place] = refined[kept], True
    return Proposals(boxes, mask)
