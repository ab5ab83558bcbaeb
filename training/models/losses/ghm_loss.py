"""Gradient harmonizing losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS


class _HarmonizedLoss(nn.Module):
    """Weighs examples by how rare gradients of their length are.

    Lengths from 0 to 1 are counted in bins. Every bin with an example counts alike.

    Args:
        bins: Number of bins.
        momentum: Share of the earlier counts in a moving average of them; 0: no average.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: Factor of the result.
        last_edge: Where the last bin ends.
    """

    # Heads call these losses for one level after the other, as MMDetection does.
    by_level = True

    def __init__(
        self, bins: int, momentum: float, reduction: str, loss_weight: float, last_edge: float
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if bins < 1 or not 0 <= momentum < 1:
            raise ConfigError(
                f"{name}: bins must be at least 1 and momentum from 0 to below 1, got {bins} and "
                f"{momentum}"
            )
        self.bins = bins
        self.momentum = momentum
        self.reduction = check_reduction(name, reduction)
        self.loss_weight = loss_weight
        edges = torch.arange(bins + 1).float() / bins
        edges[-1] = last_edge
        self.edges: Tensor
        self.acc_sum: Tensor
        self.register_buffer("edges", edges)
        if momentum > 0:
            self.register_buffer("acc_sum", torch.zeros(bins))

    @torch.no_grad()
    def _weights(self, length: Tensor, valid: Tensor, total: Tensor) -> Tensor:
        """Return the weight of each example, shaped as their gradients' lengths."""
        # The edges are those of half-open intervals, [low, high).
        place = torch.bucketize(length, self.edges, right=True) - 1
        valid = valid & (place >= 0) & (place < self.bins)
        counts = torch.bincount(place[valid], minlength=self.bins).to(length.dtype)
        filled = counts > 0
        if self.momentum > 0:
            average = self.momentum * self.acc_sum + (1 - self.momentum) * counts
            self.acc_sum.copy_(torch.where(filled, average, self.acc_sum))
            counts = self.acc_sum
        per_bin = torch.where(filled, total / counts.clamp(min=1e-12), 0.0)
        per_bin = per_bin / filled.sum().clamp(min=1)
        return torch.where(valid, per_bin[place.clamp(0, self.bins - 1)], 0.0)


@MODELS.register()
class GHMC(_HarmonizedLoss):
    """Binary cross-entropy per class, harmonized.

    Source: Li et al., "Gradient Harmonized Single-stage Detector", arXiv:1811.05181, section 3.

    Args:
        bins: Number of bins.
        momentum: Share of the earlier counts in a moving average of them; 0: no average.
        use_sigmoid: Must be ``True``.
        loss_weight: Factor of the result.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        if not use_sigmoid:
            raise ConfigError("GHMC needs use_sigmoid=True")
        super().__init__(bins, momentum, reduction, loss_weight, 1 + 1e-6)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 [N, C], logits.
            target: Labels int64 [N], with C for background, or 0 and 1 like ``pred``.
            weight: float32 [N] or [N, C]; what is not above 0 does not count.
            avg_factor: Accepted for compatibility; a mean divides by the number of what counts.

        Returns:
            A scalar, or float32 [N, C] for the reduction ``"none"``.
        """
        if target.dim() < pred.dim():
            target = target[:, None] == torch.arange(pred.shape[1], device=pred.device)
        if weight.dim() < pred.dim():
            weight = weight[:, None]
        truth = target.to(pred.dtype)
        valid = (weight > 0).expand_as(pred)
        total = valid.sum().clamp(min=1).to(pred.dtype)
        weights = self._weights((pred.detach().sigmoid() - truth).abs(), valid, total)
        loss = F.binary_cross_entropy_with_logits(pred, truth, reduction="none")
        factor = total if self.reduction == "mean" else None
        return self.loss_weight * reduce_loss(loss, weights, self.reduction, factor)


@MODELS.register()
class GHMR(_HarmonizedLoss):
    """Smoothed absolute difference, harmonized.

    Source: Li et al., "Gradient Harmonized Single-stage Detector", arXiv:1811.05181, section 3.3.

    Args:
        mu: How wide the difference is smoothed.
        bins: Number of bins.
        momentum: Share of the earlier counts in a moving average of them; 0: no average.
        loss_weight: Factor of the result.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(bins, momentum, reduction, loss_weight, 1e3)
        self.mu = mu

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 [N, 4].
            target: float32 [N, 4].
            weight: float32 [N, 4]; what is not above 0 does not count. ``None``: all 1.
            avg_factor: Accepted for compatibility; a mean divides by the sum of the weights.

        Returns:
            A scalar, or float32 [N, 4] for the reduction ``"none"``.
        """
        weight = torch.ones_like(pred) if weight is None else weight
        difference = pred - target
        smooth = (difference.square() + self.mu**2).sqrt()
        total = weight.sum().clamp(min=1)
        weights = self._weights((difference / smooth).abs().detach(), weight > 0, total)
        factor = total if self.reduction == "mean" else None
        return self.loss_weight * reduce_loss(smooth - self.mu, weights, self.reduction, factor)
