"""Distribution focal loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


@MODELS.register()
class DistributionFocalLoss(nn.Module):
    """Cross-entropy with the two whole numbers around a target, weighted by their nearness.

    Source: Li et al., "Generalized Focal Loss", arXiv:2006.04388, equation 6.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = check_reduction("DistributionFocalLoss", reduction)
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
            pred: float32 [N, n + 1], logits of the numbers 0 to n.
            target: float32 [N], from 0 to less than n.
            weight: float32 [N], or ``None``.
            avg_factor: What a mean divides by, instead of N.

        Returns:
            A scalar, or float32 [N] for the reduction ``"none"``.
        """
        below = target.long()
        share = target - below.to(target.dtype)
        loss = (1 - share) * F.cross_entropy(pred, below, reduction="none")
        loss = loss + share * F.cross_entropy(pred, below + 1, reduction="none")
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)
