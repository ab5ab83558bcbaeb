"""Boxes as distances from a point to the four sides."""

from __future__ import annotations

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class DistancePointBBoxCoder:
    """Encode boxes as (left, top, right, bottom) distances from a point.

    Args:
        clip_border: Whether ``decode`` clips boxes when it gets limits.
        use_box_type: Accepted for compatibility; boxes are always plain tensors.
    """

    def __init__(self, clip_border: bool = True, use_box_type: bool = False) -> None:
        if use_box_type:
            raise ConfigError("DistancePointBBoxCoder: use_box_type=True is not supported")
        self.clip_border = clip_border

    def encode(
        self, points: Tensor, boxes: Tensor, max_dis: float | None = None, eps: float = 0.1
    ) -> Tensor:
        """Return the distances from points to the sides of boxes.

        Args:
            points: float32 [..., 2], (x, y).
            boxes: float32 [..., 4], xyxy.
            max_dis: Clip distances to [0, max_dis - eps], if given.
            eps: See ``max_dis``.

        Returns:
            float32 [..., 4], (left, top, right, bottom).
        """
        distances = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)
        return distances if max_dis is None else distances.clamp(min=0, max=max_dis - eps)

    def decode(self, points: Tensor, distances: Tensor, limits: Tensor | None = None) -> Tensor:
        """Return the boxes that lie around points at the given distances.

        Args:
            points: float32 [..., 2], (x, y).
            distances: float32 [..., 4], (left, top, right, bottom).
            limits: float32, broadcastable to [..., 4]: (width, height, width, height) to clip to.

        Returns:
            float32 [..., 4], xyxy.
        """
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)
        if limits is None or not self.clip_border:
            return boxes
        return torch.minimum(boxes.clamp(min=0), limits)
