"""Focal loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


@MODELS.register()
class FocalLoss(nn.Module):
    """Binary cross-entropy per class that counts easy examples less.

    ``-alpha_t * (1 - p_t) ** gamma * log(p_t)`` with ``p_t`` the probability given to the truth.

    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002, equation 5.

    Args:
        use_sigmoid: Must be ``True``.
        gamma: Exponent of the weighting.
        alpha: Weight of positive examples; that of negative ones is ``1 - alpha``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
        activated: Predictions are probabilities and not logits.

    Raises:
        ConfigError: ``use_sigmoid`` is ``False``.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ConfigError("FocalLoss needs use_sigmoid=True")
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
        self.reduction = check_reduction("FocalLoss", reduction)
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 [N, C].
            target: Labels int64 [N], with C for background, or 0 and 1 like ``pred``.
            weight: float32 [N] or [N, C], or ``None``.
            avg_factor: What a mean divides by, instead of the number of elements.

        Returns:
            A scalar, or float32 [N, C] for the reduction ``"none"``.
        """
        if target.dim() < pred.dim():
            positive = target[:, None] == torch.arange(pred.shape[1], device=pred.device)
        else:
            positive = target > 0
        alpha = torch.where(positive, self.alpha, 1 - self.alpha)
        if self.activated:
            missed = torch.where(positive, 1 - pred, pred)
            entropy = F.binary_cross_entropy(pred, positive.to(pred.dtype), reduction="none")
        else:
            # The logit of what the truth is denied: 1 - p_t is its sigmoid, -log(p_t) its softplus.
            logit = torch.where(positive, -pred, pred)
            missed, entropy = logit.sigmoid(), F.softplus(logit)
        loss = alpha * missed.pow(self.gamma) * entropy
        if weight is not None and weight.dim() < loss.dim():
            weight = weight[:, None]
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)
