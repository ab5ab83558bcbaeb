"""Batched NMS and RoIAlign as chains of kernel launches, on a GPU or emulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from deploykit.plugins_trt import nms_kernels
from deploykit.plugins_trt.kernel import Kernel, Launch
from deploykit.plugins_trt.roi_align_kernels import (
    DEFAULT_CHANNELS,
    RoIAlignParameters,
    roi_align_kernel,
    roi_align_launch,
)


class DeviceArray(Protocol):
    """An array in the memory of a device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> Any:
        """Element type; ``str`` of it is numpy's name."""


class Device(Protocol):
    """Memory and kernel launches, in order."""

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """Allocate an array."""

    def launch(self, kernel: Kernel, launch: Launch, tensors: Mapping[str, Any]) -> None:
        """Run a kernel on the arrays that it names."""


def batched_nms(
    device: Device,
    boxes: DeviceArray,
    scores: DeviceArray,
    labels: DeviceArray,
    iou_threshold: float,
    max_out: int,
    window: int | None = None,
    scratch: dict[str, Any] | None = None,
) -> Any:
    """Run batched NMS; see ``nms_reference.batched_nms``.

    Args:
        device: Where the arrays are.
        boxes: float32 or float16 [B, N, 4], xyxy.
        scores: float32 or float16 [B, N].
        labels: int32 [B, N].
        iou_threshold: Overlap above which the worse box is dropped.
        max_out: Number of results per image.
        window: How many of the best candidates are compared in parallel; None: by ``max_out``.
        scratch: Arrays of an earlier call with arguments of the same sizes, to use again; filled
            when empty.

    Returns:
        int32 [B, max_out] on the device, indices into N by falling score, -1 after the last one.
    """
    window = nms_kernels.default_window(max_out) if window is None else window
    batch, candidates = boxes.shape[:2]
    sizes = nms_kernels.NmsSizes(batch, candidates, window)
    tensors: dict[str, Any] = {} if scratch is None else scratch
    if not tensors:
        shapes = {**sizes.shapes, "indices": (boxes.shape[0], max_out)}
        for name, shape in shapes.items():
            tensors[name] = device.empty(shape, nms_kernels.SCRATCH_DTYPES[name])
    tensors.update(boxes=boxes, scores=scores, labels=labels)
    box_type = str(boxes.dtype)
    scan = nms_kernels.scan_kernel(box_type, iou_threshold, max_out, window)
    device.launch(nms_kernels.sort_kernel(str(scores.dtype)), sizes.sort_launch(), tensors)
    device.launch(nms_kernels.gather_kernel(box_type), sizes.gather_launch(), tensors)
    mask_launch = nms_kernels.mask_launch(sizes.batch, sizes.span)
    device.launch(nms_kernels.mask_kernel(iou_threshold), mask_launch, tensors)
    device.launch(scan, sizes.scan_launch(), tensors)
    return tensors["indices"]


def multilevel_roi_align(
    device: Device,
    features: Sequence[DeviceArray],
    rois: DeviceArray,
    parameters: RoIAlignParameters,
    channels_per_block: int = DEFAULT_CHANNELS,
) -> Any:
    """Run multi-level RoIAlign; see ``roi_align_reference.multilevel_roi_align``.

    Args:
        device: Where the arrays are.
        features: float32 or float16 [B, C, H_i, W_i] per level, finest first.
        rois: float32 [R, 5], (image, x1, y1, x2, y2) in pixels of the network input.
        parameters: Of the operator.
        channels_per_block: How many channels a block of threads computes for its region.

    Returns:
        Like the features, [R, C, height, width], on the device.
    """
    dtype = str(features[0].dtype)
    shape = (rois.shape[0], features[0].shape[1], *parameters.output_size)
    crops = device.empty(shape, dtype)
    tensors: dict[str, Any] = {"rois": rois, "crops": crops}
    tensors.update({f"feature_{level}": feature for level, feature in enumerate(features)})
    kernel = roi_align_kernel(parameters, dtype, channels_per_block)
    shapes = [feature.shape for feature in features]
    device.launch(kernel, roi_align_launch(shape[0], shapes, channels_per_block), tensors)
    return crops
