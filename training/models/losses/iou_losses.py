"""Losses of boxes by how much they overlap their targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.box_overlaps import (
    aligned_iou,
    complete_iou,
    distance_iou,
    generalized_iou,
)
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS

IOU_MODES = ("linear", "square", "log")


class _OverlapLoss(nn.Module):
    """What the losses of this family share.

    Args:
        eps: Smallest area to divide by.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def __init__(
        self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.eps = eps
        self.reduction = check_reduction(type(self).__name__, reduction)
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 [N, 4], xyxy.
            target: float32 [N, 4], xyxy.
            weight: float32 [N], or [N, 4] to be averaged over the sides, or ``None``.
            avg_factor: What a mean divides by, instead of N.

        Returns:
            A scalar, or float32 [N] for the reduction ``"none"``.
        """
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(dim=-1)
        loss = self._per_box(pred.float(), target.float())
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)

    def _per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return float32 [N]."""
        raise NotImplementedError


@MODELS.register()
class IoULoss(_OverlapLoss):
    """``-log(IoU)``, ``1 - IoU`` or ``1 - IoU ** 2``.

    Source: Yu et al., "UnitBox", arXiv:1608.01471.

    Args:
        linear: The same as ``mode="linear"``.
        eps: Smallest IoU.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
        mode: ``"log"``, ``"linear"`` or ``"square"``.

    Raises:
        ConfigError: The mode is unknown.
    """

    def __init__(
        self,
        linear: bool = False,
        eps: float = 1e-6,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        mode: str = "log",
    ) -> None:
        super().__init__(eps, reduction, loss_weight)
        if mode not in IOU_MODES:
            raise ConfigError(f"IoULoss: mode must be one of {IOU_MODES}, got {mode!r}")
        self.mode = "linear" if linear else mode

    def _per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        iou = aligned_iou(pred, target).clamp(min=self.eps)
        if self.mode == "log":
            return -torch.log(iou)
        return 1 - (iou if self.mode == "linear" else iou.square())


@MODELS.register()
class GIoULoss(_OverlapLoss):
    """``1 - GIoU``.

    Source: Rezatofighi et al., "Generalized Intersection over Union", arXiv:1902.09630.

    Args:
        eps: Smallest area to divide by.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def _per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        return 1 - generalized_iou(pred, target, self.eps)


@MODELS.register()
class DIoULoss(_OverlapLoss):
    """``1 - DIoU``.

    Source: Zheng et al., "Distance-IoU Loss", arXiv:1911.08287.

    Args:
        eps: Added to what is divided by.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def _per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        return 1 - distance_iou(pred, target, self.eps)


@MODELS.register()
class CIoULoss(_OverlapLoss):
    """``1 - CIoU``.

    Source: Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference",
    arXiv:2005.03572.

    Args:
        eps: Added to what is divided by.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def _per_box(self, pred: Tensor, target: Tensor) -> Tensor:
        return 1 - complete_iou(pred, target, self.eps)
