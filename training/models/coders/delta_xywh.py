"""Boxes as shifts and scalings of reference boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.registry import TASK_UTILS

WH_RATIO_CLIP = 16 / 1000


@TASK_UTILS.register()
class DeltaXYWHBBoxCoder:
    """Encode boxes as (dx, dy, dw, dh) relative to anchors or proposals.

    ``dx`` and ``dy`` move the centre, in widths and heights of the reference box; ``dw`` and ``dh``
    are logarithms of the scaling. All are shifted by ``target_means`` and divided by
    ``target_stds``.

    Source: Girshick et al., "Rich feature hierarchies for accurate object detection and semantic
    segmentation", arXiv:1311.2524, appendix C.

    Args:
        target_means: Mean of each delta.
        target_stds: Standard deviation of each delta.
        clip_border: Whether ``decode`` clips boxes when it gets limits.
        add_ctr_clamp: Bound the movement of the centre by ``ctr_clamp`` (as YOLOF does), and the
            scaling from above only.
        ctr_clamp: Largest movement of the centre in pixels.
        use_box_type: Accepted for compatibility; boxes are always tensors.

    Raises:
        ConfigError: The means or deviations are not four numbers, or a deviation is not positive.
    """

    encode_size = 4

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        clip_border: bool = True,
        add_ctr_clamp: bool = False,
        ctr_clamp: float = 32,
        use_box_type: bool = False,
    ) -> None:
        self.means = tuple(float(value) for value in target_means)
        self.stds = tuple(float(value) for value in target_stds)
        if len(self.means) != 4 or len(self.stds) != 4 or min(self.stds) <= 0:
            raise ConfigError(
                "DeltaXYWHBBoxCoder: target_means and target_stds must be four numbers each, the "
                f"latter positive, got {list(target_means)} and {list(target_stds)}"
            )
        self.clip_border = clip_border
        self.add_ctr_clamp = add_ctr_clamp
        self.ctr_clamp = ctr_clamp
        self._is_scaled = any(self.means) or any(value != 1.0 for value in self.stds)

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Return the deltas that turn boxes into their targets.

        Args:
            boxes: float32 [..., 4], xyxy, of positive width and height.
            targets: float32 [..., 4], xyxy, of positive width and height.

        Returns:
            float32 [..., 4], (dx, dy, dw, dh).
        """
        boxes, targets = boxes.float(), targets.float()
        size = boxes[..., 2:] - boxes[..., :2]
        target_size = targets[..., 2:] - targets[..., :2]
        center = (boxes[..., :2] + boxes[..., 2:]) * 0.5
        target_center = (targets[..., :2] + targets[..., 2:]) * 0.5
        shift = (target_center - center) / size
        deltas = torch.cat((shift, torch.log(target_size / size)), dim=-1)
        if not self._is_scaled:
            return deltas
        return (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)

    def decode(
        self,
        boxes: Tensor,
        deltas: Tensor,
        limits: Tensor | None = None,
        wh_ratio_clip: float = WH_RATIO_CLIP,
    ) -> Tensor:
        """Return the boxes that deltas make of reference boxes.

        For class-wise deltas [..., C, 4] give boxes [..., 1, 4].

        Args:
            boxes: float32, broadcastable to the shape of ``deltas``, xyxy.
            deltas: float32 [..., 4], (dx, dy, dw, dh).
            limits: float32, broadcastable to ``deltas``: (width, height, width, height) to clip to.
            wh_ratio_clip: Width and height change by no more than this factor or its inverse.

        Returns:
            float32 [..., 4], xyxy.
        """
        if self._is_scaled:
            deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        center = (boxes[..., :2] + boxes[..., 2:]) * 0.5
        size = boxes[..., 2:] - boxes[..., :2]
        shift, log_scale = size * deltas[..., :2], deltas[..., 2:]
        largest = abs(math.log(wh_ratio_clip))
        if self.add_ctr_clamp:
            shift = shift.clamp(min=-self.ctr_clamp, max=self.ctr_clamp)
            log_scale = log_scale.clamp(max=largest)
        else:
            log_scale = log_scale.clamp(min=-largest, max=largest)
        center = center + shift
        half = size * log_scale.exp() * 0.5
        decoded = torch.cat((center - half, center + half), dim=-1)
        if limits is None or not self.clip_border:
            return decoded
        return torch.minimum(decoded.clamp(min=0), limits)
