"""Share of correct classifications."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the percentage of rows whose highest logit is that of the label.

    Args:
        logits: float32 [N, C].
        labels: int64 [N].

    Returns:
        Scalar float32, 0 to 100; 0 when there are no rows.
    """
    correct = (logits.argmax(dim=1) == labels).float().sum()
    return correct * (100.0 / max(1, len(labels)))
