"""What heads share whose anchors are assigned by adaptive training sample selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import Assignment
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.heads.anchor_head import AnchorHead, inside_images
from deploykit.training.models.heads.conv_tower import GROUP_NORM, conv_tower
from deploykit.training.models.heads.dense_detections import DenseMaps
from deploykit.training.models.layers.scale import Scale
from deploykit.training.models.losses.reduction import mean_over_workers
from deploykit.training.structures import Targets


@dataclass(frozen=True)
class AnchorTargets:
    """What the anchors of a batch are to predict.

    Args:
        anchors: float32 [P, 4], xyxy in pixels of the network input.
        labels: int64 [B, P], the number of classes for background.
        weights: float32 [B, P], of the class loss; 0 where nothing is trained.
        image: int64 [N], the image of each positive anchor.
        prior: int64 [N], the anchor.
        boxes: float32 [N, 4], the box that it is to predict.
        avg_factor: Scalar, the number of positive anchors, at least 1 per image, averaged over the
            processes of a distributed training.
    """

    anchors: Tensor
    labels: Tensor
    weights: Tensor
    image: Tensor
    prior: Tensor
    boxes: Tensor
    avg_factor: Tensor


class AdaptiveAnchorHead(AnchorHead):
    """Two towers of convolutions with norms; losses of all images and levels together.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        stacked_convs: Number of convolutions in each tower.
        conv_cfg: Type of the convolutions.
        norm_cfg: Config of the norm layers, or ``None``.
        **options: As in ``AnchorHead``.

    Raises:
        ConfigError: The class loss does not use a sigmoid, or another argument is not supported.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = GROUP_NORM,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        if stacked_convs < 1:
            raise ConfigError(f"{name}: stacked_convs must be at least 1, got {stacked_convs}")
        # Assigned before super().__init__, which calls _build_layers; plain values may be.
        self.stacked_convs = stacked_convs
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        super().__init__(num_classes, in_channels, **options)
        if not self.use_sigmoid_cls:
            raise ConfigError(f"{name}: loss_cls must have use_sigmoid=True")

    def loss_by_feat(
        self,
        outputs: DenseMaps,
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
            Scalars by name.

        Raises:
            ConfigError: The head was built without a ``train_cfg``.
        """
        if self.assigner is None:
            raise ConfigError("training needs a train_cfg with an assigner")
        # Half precision cannot hold pixel coordinates, nor sums over thousands of anchors.
        with torch.autocast(outputs[0][0].device.type, enabled=False):
            return self._losses(
                outputs, self._anchor_targets(outputs, targets, padded_sizes, image_sizes)
            )

    def _losses(self, outputs: DenseMaps, targets: AnchorTargets) -> dict[str, Tensor]:
        """Return the losses by name."""
        raise NotImplementedError

    def _anchor_targets(
        self,
        outputs: DenseMaps,
        targets: Sequence[Targets],
        padded_sizes: Tensor,
        image_sizes: Tensor,
    ) -> AnchorTargets:
        sizes = [(score.shape[2], score.shape[3]) for score in outputs[0]]
        anchors = self.prior_generator.grid_priors(sizes, outputs[0][0].device)
        valid = self.prior_generator.valid_flags(sizes, padded_sizes)
        if self.allowed_border >= 0:
            valid = valid & inside_images(anchors, image_sizes, self.allowed_border)
        padded = PaddedTargets.from_targets(targets)
        counts = [height * width * self.num_base_priors for height, width in sizes]
        assignment = self._assign(outputs, anchors, counts, padded, valid)
        sampling = self.sampler.sample(assignment)
        image, prior = torch.nonzero(sampling.positive, as_tuple=True)
        index = sampling.gt_index[image, prior]
        labels = torch.full_like(sampling.gt_index, self.num_classes)
        labels[image, prior] = padded.labels[image, index]
        return AnchorTargets(
            anchors,
            labels,
            sampling.positive * self.pos_weight + sampling.negative * 1.0,
            image,
            prior,
            padded.boxes[image, index],
            mean_over_workers(sampling.avg_factor.float()),
        )

    def _assign(
        self,
        outputs: DenseMaps,
        anchors: Tensor,
        level_sizes: Sequence[int],
        targets: PaddedTargets,
        valid: Tensor,
    ) -> Assignment:
        assignment: Assignment = self.assigner.assign(anchors, level_sizes, targets, valid)
        return assignment

    def _build_layers(self) -> None:
        self.cls_convs = self._tower()
        self.reg_convs = self._tower()
        self.scales = nn.ModuleList(Scale() for _ in self.prior_generator.strides)

    def _tower(self) -> nn.Sequential:
        return conv_tower(
            self.in_channels, self.feat_channels, self.stacked_convs, self.conv_cfg, self.norm_cfg
        )

    def _predictor(self, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
        """Return one of the last convolutions."""
        return nn.Conv2d(self.feat_channels, out_channels, kernel_size, padding=kernel_size // 2)
