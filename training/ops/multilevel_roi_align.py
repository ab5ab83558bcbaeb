"""``deploykit::multilevel_roi_align``: RoIAlign from the pyramid level that fits each region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align


@torch.library.custom_op("deploykit::multilevel_roi_align", mutates_args=())
def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: Sequence[int],
    sampling_ratio: int,
    spatial_scales: Sequence[float],
    finest_scale: int,
    aligned: bool,
) -> Tensor:
    """Crop regions out of feature pyramids and resize them to one size.

    A region comes from the level ``floor(log2(sqrt(w * h) / finest_scale + 1e-6))``, cut off at the
    first and the last one, and is sampled there by RoIAlign with averaging. Computed in float32.
    A side that ends before it starts has length 0; regions that are not finite give zeros.

    Source: He et al., "Mask R-CNN", arXiv:1703.06870, for RoIAlign; Lin et al., "Feature Pyramid
    Networks", arXiv:1612.03144, equation 1, for the level, with MMDetection's rounding.

    Args:
        features: float [B, C, H_i, W_i] per level, finest first.
        rois: float32 [R, 5], (image, x1, y1, x2, y2) in pixels of the network input.
        output_size: (height, width) of the result.
        sampling_ratio: Samples per bin and axis; 0: as many as the bin has feature cells, rounded
            up.
        spatial_scales: Feature cells per pixel, one per level.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.
        aligned: Cell centres lie at half coordinates, as in Detectron2 and MMDetection.

    Returns:
        Like the features, [R, C, height, width]. Differentiable in the features.
    """
    rois, levels = _prepare(rois, len(features), finest_scale)
    shape = (len(rois), features[0].shape[1], *output_size)
    output = features[0].new_zeros(shape)
    for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        index = (levels == level).nonzero().squeeze(1)
        if len(index):
            crops = roi_align(
                feature.float(), rois[index], list(output_size), scale, sampling_ratio, aligned
            )
            output[index] = crops.to(output.dtype)
    return output


def roi_levels(rois: Tensor, num_levels: int, finest_scale: int) -> Tensor:
    """Return the pyramid level of each region, int64 [R], for ``rois`` float32 [R, 5]."""
    sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0)
    size = torch.sqrt(sides[:, 0] * sides[:, 1])
    level = torch.log2(size / finest_scale + 1e-6).floor().nan_to_num(0.0)
    return level.clamp(0, num_levels - 1).long()


def _prepare(rois: Tensor, num_levels: int, finest_scale: int) -> tuple[Tensor, Tensor]:
    """Return regions that the kernels can take, and their levels, -1 for those to be left out.

    The kernels allocate by the number of samples, which is garbage for negative or infinite sides.
    """
    levels = roi_levels(rois, num_levels, finest_scale)
    levels = torch.where(rois.isfinite().all(dim=1), levels, -1)
    return torch.cat((rois[:, :3], torch.maximum(rois[:, 1:3], rois[:, 3:])), dim=1), levels


@multilevel_roi_align.register_fake
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: Sequence[int],
    sampling_ratio: int,
    spatial_scales: Sequence[float],
    finest_scale: int,
    aligned: bool,
) -> Tensor:
    return features[0].new_empty((rois.shape[0], features[0].shape[1], *output_size))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, ctx.output_size, ctx.sampling_ratio = inputs[:4]
    ctx.spatial_scales, ctx.finest_scale, ctx.aligned = inputs[4:]
    ctx.shapes = [tuple(feature.shape) for feature in features]
    ctx.dtypes = [feature.dtype for feature in features]
    ctx.save_for_backward(rois)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    rois, levels = _prepare(rois, len(ctx.shapes), ctx.finest_scale)
    gradients = []
    for level, (shape, scale) in enumerate(zip(ctx.shapes, ctx.spatial_scales, strict=True)):
        index = (levels == level).nonzero().squeeze(1)
        own = torch.ops.torchvision._roi_align_backward(
            gradient[index].float().contiguous(),
            rois[index],
            scale,
            *ctx.output_size,
            *shape,
            ctx.sampling_ratio,
            ctx.aligned,
        )
        gradients.append(own.to(ctx.dtypes[level]))
    return gradients, None, None, None, None, None, None


multilevel_roi_align.register_autograd(_backward, setup_context=_save_for_backward)
