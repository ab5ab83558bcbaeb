"""Boxes as distances from the centre of an anchor, in parts of its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class TBLRBBoxCoder:
    """Encode boxes as (top, bottom, left, right) distances from the centres of anchors.

    Distances are divided by the anchor's height or width, and by ``normalizer``.

    Source: Zhu et al., "Feature Selective Anchor-Free Module", arXiv:1903.00621, section 3.2.

    Args:
        normalizer: One divisor, or one of each distance.
        clip_border: Whether ``decode`` clips boxes when it gets limits.
        use_box_type: Accepted for compatibility; boxes are always tensors.

    Raises:
        ConfigError: The divisors are not one or four positive numbers.
    """

    encode_size = 4

    def __init__(
        self,
        normalizer: float | Sequence[float] = 4.0,
        clip_border: bool = True,
        use_box_type: bool = False,
    ) -> None:
        values = (normalizer,) * 4 if isinstance(normalizer, int | float) else tuple(normalizer)
        if len(values) != 4 or min(values) <= 0:
            raise ConfigError(
                f"TBLRBBoxCoder: normalizer must be one or four positive numbers, got {normalizer}"
            )
        self.normalizer = tuple(float(value) for value in values)
        self.clip_border = clip_border

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Return the distances to the sides of targets.

        Args:
            boxes: float32 [..., 4], xyxy, of positive width and height.
            targets: float32 [..., 4], xyxy.

        Returns:
            float32 [..., 4], (top, bottom, left, right).
        """
        center = (boxes[..., :2] + boxes[..., 2:]) / 2
        before, behind = center - targets[..., :2], targets[..., 2:] - center
        sides = (before[..., 1], behind[..., 1], before[..., 0], behind[..., 0])
        return torch.stack(sides, dim=-1) / self._units(boxes)

    def decode(self, boxes: Tensor, distances: Tensor, limits: Tensor | None = None) -> Tensor:
        """Return the boxes that lie around the centres of anchors.

        Args:
            boxes: float32 [..., 4], xyxy.
            distances: float32 [..., 4], (top, bottom, left, right).
            limits: float32, broadcastable to [..., 4]: (width, height, width, height) to clip to.

        Returns:
            float32 [..., 4], xyxy.
        """
        center = (boxes[..., :2] + boxes[..., 2:]) / 2
        x, y = center.unbind(dim=-1)
        top, bottom, left, right = (distances * self._units(boxes)).unbind(dim=-1)
        decoded = torch.stack((x - left, y - top, x + right, y + bottom), dim=-1)
        if limits is None or not self.clip_border:
            return decoded
        return torch.minimum(decoded.clamp(min=0), limits)

    def _units(self, boxes: Tensor) -> Tensor:
        """Return what distances are measured in, float32 [..., 4]."""
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(dim=-1)
        sizes = torch.stack((height, height, width, width), dim=-1)
        return sizes * sizes.new_tensor(self.normalizer)
