"""The batch that travels from the data loader to a model's ``loss``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Targets:
    """Ground truth of one image.

    Args:
        boxes: float32 [N, 4], xyxy in pixels of the network input.
        labels: int64 [N], class indices.
        ignored_boxes: float32 [M, 4], regions where detections count neither way (crowds).
        masks: uint8 [N, H, W] bitmaps in pixels of the (padded) network input, if loaded.
    """

    boxes: Tensor
    labels: Tensor
    ignored_boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    masks: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Return the targets on ``device``."""
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.ignored_boxes.to(device, non_blocking=non_blocking),
            None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
        )


def objects_of_images(
    targets: Sequence[Targets], image: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Look up objects of a batch.

    Args:
        targets: Ground truth per image.
        image: int64 [N].
        index: int64 [N], the object in its image.

    Returns:
        Labels int64 [N] and boxes float32 [N, 4].
    """
    counts = torch.tensor([len(target.boxes) for target in targets], device=image.device)
    place = (counts.cumsum(0) - counts)[image] + index
    labels = torch.cat([target.labels for target in targets])[place]
    return labels, torch.cat([target.boxes for target in targets])[place]


@dataclass
class Batch:
    """Images of one training or validation step with what is known about them.

    Args:
        images: uint8 or float32 [B, H, W, 3], RGB, not normalised, padded at the bottom and right
            to a common size (the model's data preprocessor normalises and pads exactly).
        image_sizes: int32 [B, 2], (height, width) of each image before that padding.
        targets: Ground truth per image; empty for inference.
        metas: Per image: ``img_id``, ``img_path``, ``ori_shape`` (h, w), ``img_shape`` (h, w),
            ``scale_factor`` (w, h) and whatever else the pipeline's ``meta_keys`` name.
        proposals: float32 [B, P, 4], xyxy in pixels of the network input, if the pipeline loads
            them; P is the largest number among the images, rows without area are empty.
    """

    images: Tensor
    image_sizes: Tensor
    targets: list[Targets]
    metas: list[dict[str, Any]]
    proposals: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``; the metas stay on the host."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.image_sizes.to(device, non_blocking=non_blocking),
            [target.to(device, non_blocking) for target in self.targets],
            self.metas,
            None
            if self.proposals is None
            else self.proposals.to(device, non_blocking=non_blocking),
        )
