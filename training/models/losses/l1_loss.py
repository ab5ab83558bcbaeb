"""Absolute and smoothed absolute differences."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


@MODELS.register()
class L1Loss(nn.Module):
    """Absolute difference.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = check_reduction("L1Loss", reduction)
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
            pred: float32 [...].
            target: float32 like ``pred``.
            weight: float32, broadcastable to ``pred``, or ``None``.
            avg_factor: What a mean divides by, instead of the number of elements.

        Returns:
            A scalar, or float32 like ``pred`` for the reduction ``"none"``.
        """
        loss = (pred - target).abs()
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)


@MODELS.register()
class SmoothL1Loss(nn.Module):
    """Absolute difference, quadratic where it is below ``beta``.

    Source: Girshick, "Fast R-CNN", arXiv:1504.08083, equation 3.

    Args:
        beta: Where the two parts meet.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.

    Raises:
        ConfigError: ``beta`` is not positive.
    """

    def __init__(
        self, beta: float = 1.0, reduction: str = "mean", loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ConfigError(f"SmoothL1Loss: beta must be positive, got {beta}")
        self.beta = beta
        self.reduction = check_reduction("SmoothL1Loss", reduction)
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; arguments and result are those of ``L1Loss``."""
        loss = F.smooth_l1_loss(pred, target, beta=self.beta, reduction="none")
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)
