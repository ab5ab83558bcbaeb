"""Intersection over union of boxes."""

from __future__ import annotations

import math

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
    overlap = _pairwise_intersection(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :]
    return overlap / union.sub_(overlap).clamp_(min=eps)


def pairwise_iof(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return how much of every box is covered by every other box.

    Args:
        boxes: float32 [..., M, 4], xyxy; intersections are divided by their areas.
        others: float32 [..., N, 4], xyxy.
        eps: Smallest area to divide by.

    Returns:
        float32 [..., M, N], intersection over foreground.
    """
    area = box_area(boxes).clamp(min=eps)
    return _pairwise_intersection(boxes, others) / area[..., :, None]


def aligned_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the IoU of boxes in pairs.

    Args:
        boxes: float32 [..., 4], xyxy.
        others: float32 [..., 4], xyxy.
        eps: Smallest union to divide by.

    Returns:
        float32 [...], from 0 to 1.
    """
    overlap = _intersection(boxes, others)
    return overlap / (box_area(boxes) + box_area(others) - overlap).clamp(min=eps)


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
    overlap = _intersection(boxes, others)
    outer = _hull_size(boxes, others)
    hull = (outer[..., 0] * outer[..., 1]).clamp(min=eps)
    union = (box_area(boxes) + box_area(others) - overlap).clamp(min=eps)
    return overlap / union - (hull - union) / hull


def distance_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the IoU of boxes in pairs, less the squared distance of their centres.

    The distance is measured against the diagonal of the smallest box around both.

    Source: Zheng et al., "Distance-IoU Loss", arXiv:1911.08287.

    Args:
        boxes: float32 [..., 4], xyxy.
        others: float32 [..., 4], xyxy.
        eps: Added to what is divided by.

    Returns:
        float32 [...], from -1 to 1.
    """
    return _offset_iou(boxes, others, eps) - _center_distance(boxes, others, eps)


def complete_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Return the distance IoU of boxes in pairs, less a penalty for unlike aspect ratios.

    The penalty counts only for pairs whose IoU is above 0.5.

    Source: Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference",
    arXiv:2005.03572.

    Args:
        boxes: float32 [..., 4], xyxy.
        others: float32 [..., 4], xyxy.
        eps: Added to what is divided by.

    Returns:
        float32 [...], from -1 to 1.
    """
    iou = _offset_iou(boxes, others, eps)
    angle, other_angle = (
        torch.atan((box[..., 2] - box[..., 0]) / (box[..., 3] - box[..., 1] + eps))
        for box in (boxes, others)
    )
    unlikeness = (4 / math.pi**2) * (other_angle - angle).square()
    with torch.no_grad():
        # Without the bound, equal boxes would be 0 / 0.
        share = unlikeness / (1 - iou + unlikeness).clamp(min=torch.finfo(iou.dtype).tiny)
        share = torch.where(iou > 0.5, share, 0.0)
    return (iou - _center_distance(boxes, others, eps) - share * unlikeness).clamp(-1.0, 1.0)


def _pairwise_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    # One coordinate at a time keeps the innermost dimension long, which is several times faster
    # than [..., M, N, 2] tensors. In place, because large tensors cost more than the arithmetic.
    x1, y1, x2, y2 = (boxes[..., :, None, i] for i in range(4))
    u1, v1, u2, v2 = (others[..., None, :, i] for i in range(4))
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    return width.mul_(height)


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _hull_size(boxes: Tensor, others: Tensor) -> Tensor:
    """Return [..., 2], width and height of the smallest box around both."""
    low = torch.minimum(boxes[..., :2], others[..., :2])
    high = torch.maximum(boxes[..., 2:], others[..., 2:])
    return (high - low).clamp(min=0)


def _offset_iou(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    overlap = _intersection(boxes, others)
    return overlap / (box_area(boxes) + box_area(others) - overlap + eps)


def _center_distance(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    """Return the squared distance of the centres over the squared diagonal of the hull."""
    offset = (others[..., :2] + others[..., 2:]) - (boxes[..., :2] + boxes[..., 2:])
    diagonal = _hull_size(boxes, others).square().sum(dim=-1) + eps
    return offset.square().sum(dim=-1) / 4 / diagonal
