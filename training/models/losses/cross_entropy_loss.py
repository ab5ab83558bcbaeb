"""Cross-entropy over classes, per class, and of masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.losses.reduction import check_reduction, reduce_loss
from deploykit.training.registry import MODELS

# What PyTorch's cross-entropy ignores when it is told nothing.
_NO_INDEX = -100


@MODELS.register()
class CrossEntropyLoss(nn.Module):
    """Cross-entropy of logits and labels, in one of three forms.

    By default softmax over the classes. With ``use_sigmoid`` the classes are independent of each
    other. With ``use_mask`` the logits are masks per class, of which that of the label is compared.

    Args:
        use_sigmoid: Binary cross-entropy per class.
        use_mask: Binary cross-entropy per pixel of the labelled class's mask.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; masks need ``"mean"``.
        class_weight: Weight of each class (of its positive term for ``use_sigmoid``).
        ignore_index: Label that adds nothing.
        loss_weight: Factor of the result.
        avg_non_ignore: A mean without ``avg_factor`` divides by what is not ignored.

    Raises:
        ConfigError: The arguments contradict each other.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = "mean",
        class_weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__()
        if use_sigmoid and use_mask:
            raise ConfigError("CrossEntropyLoss: use_sigmoid and use_mask exclude each other")
        if use_mask and (reduction != "mean" or ignore_index is not None):
            raise ConfigError("CrossEntropyLoss: use_mask needs reduction='mean', no ignore_index")
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.reduction = check_reduction("CrossEntropyLoss", reduction)
        self.class_weight = None if class_weight is None else [float(w) for w in class_weight]
        self.ignore_index = _NO_INDEX if ignore_index is None else ignore_index
        self.loss_weight = loss_weight
        self.avg_non_ignore = avg_non_ignore

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: float32 logits: [N, C, ...]; for ``use_sigmoid`` [N, C] or like ``target``; for
                ``use_mask`` [N, C, H, W].
            target: Labels int64 [N, ...]. For ``use_sigmoid`` either labels int64 [N], where C and
                more mean background, or targets like ``pred``, where negative ones count nothing.
                For ``use_mask`` masks float32 [N, H, W].
            weight: float32, one per label or one per element of ``pred``; not for ``use_mask``.
            avg_factor: What a mean divides by, instead of the number of elements.
            label: int64 [N], the class of each mask, for ``use_mask``; not needed where C is 1.

        Returns:
            A scalar; for the reduction ``"none"`` a loss per label, or per element of ``pred`` for
            ``use_sigmoid``.
        """
        class_weight = None if self.class_weight is None else pred.new_tensor(self.class_weight)
        if self.use_mask:
            return self.loss_weight * _mask_loss(pred, target, label, class_weight)
        if self.use_sigmoid:
            target, valid = self._binary_targets(pred, target)
            if weight is None:
                weight = valid
            else:
                weight = (weight[:, None] if weight.dim() < pred.dim() else weight) * valid
            loss = F.binary_cross_entropy_with_logits(
                pred, target, pos_weight=class_weight, reduction="none"
            )
        else:
            loss = F.cross_entropy(
                pred, target, class_weight, ignore_index=self.ignore_index, reduction="none"
            )
            valid = (target != self.ignore_index).to(loss.dtype)
        if avg_factor is None and self.avg_non_ignore and self.reduction == "mean":
            avg_factor = valid.expand_as(loss).sum()
        return self.loss_weight * reduce_loss(loss, weight, self.reduction, avg_factor)

    def _binary_targets(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets like ``pred``, and 1 where they count (broadcastable to them)."""
        valid = (target >= 0) & (target != self.ignore_index)
        if target.dim() == pred.dim():
            return target.to(pred.dtype), valid.to(pred.dtype)
        classes = torch.arange(pred.shape[1], device=pred.device)
        one_hot = (target[:, None] == classes) & valid[:, None]
        return one_hot.to(pred.dtype), valid[:, None].to(pred.dtype)


def _mask_loss(
    pred: Tensor, target: Tensor, label: Tensor | None, class_weight: Tensor | None
) -> Tensor:
    """Return the mean binary cross-entropy of the masks of the given classes; 0 for no masks."""
    if label is None:
        label = torch.zeros(len(pred), dtype=torch.int64, device=pred.device)
    chosen = pred[torch.arange(len(pred), device=pred.device), label]
    loss = F.binary_cross_entropy_with_logits(
        chosen, target.to(pred.dtype), weight=class_weight, reduction="none"
    )
    return reduce_loss(loss, None, "mean")
