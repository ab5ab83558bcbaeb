"""Generalised IoU loss."""

from __future__ import annotations

from torch import Tensor, nn

from deploykit.training.models.box_overlaps import generalized_iou
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


@MODELS.register()
class GIoULoss(nn.Module):
    """``1 - GIoU`` of predicted boxes and their targets.

    Source: Rezatofighi et al., "Generalized Intersection over Union", arXiv:1902.09630.

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
        self.reduction = check_reduction("GIoULoss", reduction)
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
        loss = 1 - generalized_iou(pred.float(), target.float(), self.eps)
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)
