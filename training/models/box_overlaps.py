"""Intersection over union of boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas, [...], of xyxy boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the IoU of every box with every other box.

    Args:
        boxes: float32 [..., M, 4], xyxy.
        others: float32 [..., N, 4], xyxy.
        eps: Smallest union to divide by.

    Returns:
        float32 [..., M, N].
    """
    # One coordinate at a time keeps the innermost dimension long, which is several times faster
    # than [..., M, N, 2] tensors.
    x1, y1, x2, y2 = (boxes[..., :, None, i] for i in range(4))
    u1, v1, u2, v2 = (others[..., None, :, i] for i in range(4))
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    overlap = width * height
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - overlap
    return overlap / union.clamp(min=eps)


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the generalised IoU of boxes in pairs.

    Source: Rezatofighi et al., "Generalized Intersection over Union", arXiv:1902.09630.

    Args:
        boxes: float32 [..., 4], xyxy.
        others: float32 [..., 4], xyxy.
        eps: Smallest area to divide by.

    Returns:
        float32 [...], from -1 to 1.
    """
    (low, high), (other_low, other_high) = boxes.split(2, dim=-1), others.split(2, dim=-1)
    inner = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
    outer = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0)
    overlap = inner[..., 0] * inner[..., 1]
    hull = (outer[..., 0] * outer[..., 1]).clamp(min=eps)
    union = (box_area(boxes) + box_area(others) - overlap).clamp(min=eps)
    return overlap / union - (hull - union) / hull
