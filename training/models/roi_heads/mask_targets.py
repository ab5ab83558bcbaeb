"""What the mask head is trained towards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from deploykit.errors import DatasetError
from deploykit.training.structures import Targets


def mask_targets(
    rois: Tensor,
    gt_index: Tensor,
    targets: Sequence[Targets],
    size: tuple[int, int],
    soft: bool = False,
) -> Tensor:
    """Crop the masks of objects to regions and resize them.

    Masks are sampled by RoIAlign, as MMDetection samples bitmaps.

    Args:
        rois: float32 [R, 5], (image, x1, y1, x2, y2), in order of the images.
        gt_index: int64 [R], index of the object in its image.
        targets: Ground truth per image, with masks.
        size: (height, width) of the result.
        soft: Return the covered fraction of each cell, instead of rounding it.

    Returns:
        float32 [R, height, width], 0 to 1.

    Raises:
        DatasetError: The images have no masks.
    """
    crops = [rois.new_zeros((0, *size))]
    for image, target in enumerate(targets):
        own = rois[:, 0] == image
        if target.masks is None:
            raise DatasetError(
                "training masks needs a data set with masks, and LoadAnnotations with "
                "with_mask=True in the train pipeline"
            )
        height, width = target.masks.shape[1:]
        limits = rois.new_tensor([width, height, width, height])
        boxes = torch.minimum(rois[own, 1:].clamp(min=0), limits)
        # Each mask is an image of its own to RoIAlign, so that none is copied per region.
        regions = torch.cat((gt_index[own, None].to(boxes.dtype), boxes), dim=1)
        masks = target.masks[:, None].to(boxes.dtype)
        crops.append(roi_align(masks, regions, size, 1.0, 0, True)[:, 0])
    result = torch.cat(crops)
    return result if soft else (result >= 0.5).to(result.dtype)
