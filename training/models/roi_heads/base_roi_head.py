"""What RoI heads have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.heads.dense_detections import DenseTestConfig, DetectionTensors
from deploykit.training.models.roi_heads.roi_sampling import Proposals
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.structures import Targets


class BaseRoIHead(nn.Module, ABC):
    """The second stage of a detector: from proposals to detections and losses.

    Args:
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` (see ``DenseTestConfig``), and
            ``mask_thr_binary``, which must be 0.5.
        shared_head: Must be ``None``.
        init_cfg: Must be ``None``; each part has its own.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self, test_cfg: Mapping[str, Any] | None, shared_head: object, init_cfg: InitConfig
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if shared_head is not None or init_cfg is not None:
            raise ConfigError(f"{name}: shared_head and init_cfg are not supported")
        options = dict(test_cfg or {})
        if options.pop("mask_thr_binary", 0.5) != 0.5:
            raise ConfigError("test_cfg.rcnn.mask_thr_binary must be 0.5, where masks are cut off")
        self.test_config = DenseTestConfig.from_config(options)

    def init_weights(self) -> None:
        """Fill the weights of all parts, each in its own way."""
        for module in self.modules():
            init = getattr(module, "init_weights", None)
            if module is not self and init is not None:
                init()

    @abstractmethod
    def loss(
        self,
        feats: Sequence[Tensor],
        proposals: Proposals,
        targets: Sequence[Targets],
        limits: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            feats: float [B, C, H_i, W_i] per level.
            proposals: What the first stage found.
            targets: Ground truth per image.
            limits: float32 [B, 1, 4], (width, height, width, height) of the images in pixels.

        Returns:
            Scalars.

        Raises:
            ConfigError: The head was built without a ``train_cfg``.
        """

    def predict(
        self, feats: Sequence[Tensor], proposals: Proposals, limits: Tensor
    ) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            feats: float [B, C, H_i, W_i] per level.
            proposals: What the first stage found.
            limits: float32 [B or 1, 1, 4], (width, height, width, height) in pixels that boxes are
                clipped to.

        Returns:
            Boxes float32 [B, K, 4] (xyxy in pixels of the network input), scores float32 [B, K],
            labels int32 [B, K] and the number of detections int32 [B]; with a mask head also mask
            logits of the labelled class float32 [B, K, h, w], each in the frame of its box.
        """
        detections = self.predict_boxes(feats, proposals, limits)
        boxes, _, labels, counts = detections
        found = Proposals.of_counts(boxes, counts)
        masks = self.predict_masks(feats, found.to_rois(), labels.flatten().long())
        if masks is None:
            return detections
        masks = masks.view(*labels.shape, *masks.shape[1:])
        return *detections, torch.where(found.mask[:, :, None, None], masks, 0.0)

    @abstractmethod
    def predict_boxes(
        self, feats: Sequence[Tensor], proposals: Proposals, limits: Tensor
    ) -> DetectionTensors:
        """Return the first four results of ``predict``."""

    @abstractmethod
    def predict_masks(self, feats: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor | None:
        """Return mask logits of regions, or ``None`` without a mask head.

        Args:
            feats: float [B, C, H_i, W_i] per level.
            rois: float32 [R, 5], (image, x1, y1, x2, y2).
            labels: int64 [R], the class whose mask is wanted; negative ones count as 0.

        Returns:
            float32 [R, h, w].
        """
