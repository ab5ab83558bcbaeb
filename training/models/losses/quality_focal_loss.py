"""Quality focal loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


@MODELS.register()
class QualityFocalLoss(nn.Module):
    """Binary cross-entropy towards a soft target, weighted by the distance from it.

    ``|target - p| ** beta * BCE(p, target)`` with ``p = sigmoid(pred)``; the target of the labelled
    class is the quality (IoU) of the box, that of every other class is 0.

    Source: Li et al., "Generalized Focal Loss", arXiv:2006.04388, equation 4.

    Args:
        use_sigmoid: Must be ``True``.
        beta: Exponent of the weighting.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
        activated: Whether predictions are probabilities already; must be ``False``.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid or activated:
            raise ConfigError("QualityFocalLoss needs use_sigmoid=True and activated=False")
        self.beta = beta
        self.reduction = check_reduction("QualityFocalLoss", reduction)
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor | tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 [N, C, ...], logits.
            target: Either float32 like ``pred``, the soft target of every class; or labels
                int64 [N, ...], with C or more for background, and qualities float32 [N, ...].
            weight: float32 [N, ...], or ``None``.
            avg_factor: What a mean divides by, instead of the number of elements.

        Returns:
            A scalar, or float32 [N, ...] (summed over the classes) for the reduction ``"none"``.
        """
        if isinstance(target, tuple):
            target = soft_targets(*target, num_classes=pred.shape[1])
        distance = (target - pred.sigmoid()).abs()
        entropy = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
        loss = (entropy * distance.pow(self.beta)).sum(dim=1)
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)


def soft_targets(labels: Tensor, qualities: Tensor, num_classes: int) -> Tensor:
    """Return the target of every class: the quality at the label, 0 elsewhere.

    Args:
        labels: int64 [N, ...]; values outside [0, num_classes) are background.
        qualities: float32 [N, ...].
        num_classes: C.

    Returns:
        float32 [N, C, ...].
    """
    shape = (labels.shape[0], num_classes, *labels.shape[1:])
    foreground = (labels >= 0) & (labels < num_classes)
    index = torch.where(foreground, labels, 0).unsqueeze(1)
    values = torch.where(foreground, qualities, 0.0).unsqueeze(1)
    return qualities.new_zeros(shape).scatter_(1, index, values)
