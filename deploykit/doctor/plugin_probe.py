"""Whether the kernels of the plugins compile and, on a GPU, compute what they should."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploykit.errors import BackendError
from deploykit.plugins_trt import kernel_chain, nms_kernels, nms_reference, roi_align_reference
from deploykit.plugins_trt.nvrtc import ARCHITECTURES, compile_ptx
from deploykit.plugins_trt.roi_align_kernels import RoIAlignParameters, roi_align_kernel

IOU_THRESHOLD, MAX_OUT = 0.5, 100
REGIONS = RoIAlignParameters((7, 7), 0, (0.25, 0.125), 56, True)


def compile_kernels(architecture: int = ARCHITECTURES[0]) -> int:
    """Compile every kernel in float32 and float16, and return how many that were.

    Raises:
        MissingDependencyError: cuda-bindings or NVRTC is missing.
        BackendError: A kernel does not compile.
    """
    kernels = [nms_kernels.mask_kernel(IOU_THRESHOLD)]
    for dtype in ("float32", "float16"):
        window = nms_kernels.default_window(MAX_OUT)
        kernels += [
            nms_kernels.sort_kernel(dtype),
            nms_kernels.gather_kernel(dtype),
            nms_kernels.scan_kernel(dtype, IOU_THRESHOLD, MAX_OUT, window),
            roi_align_kernel(REGIONS, dtype),
        ]
    for kernel in kernels:
        compile_ptx(kernel, architecture)
    return len(kernels)


def compare_with_references(device: Any) -> str:
    """Run both operators on a device and compare them with numpy.

    Args:
        device: A ``deploykit.kernel_device.KernelDevice``, or an emulated one.

    Returns:
        What was compared, in words.

    Raises:
        BackendError: A result is wrong.
    """
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (2, 1000, 2)).astype(np.float32)
    boxes = np.concatenate((corner, corner + rng.uniform(5, 60, corner.shape)), 2).astype("f4")
    scores = rng.uniform(0, 1, (2, 1000)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 1000)).astype(np.int32)
    inputs = [device.upload(array) for array in (boxes, scores, labels)]
    indices = kernel_chain.batched_nms(
        device, inputs[0], inputs[1], inputs[2], IOU_THRESHOLD, MAX_OUT
    )
    kept = device.download(indices)
    expected = nms_reference.batched_nms(
        boxes, scores, labels.astype(np.int64), IOU_THRESHOLD, MAX_OUT
    )
    if not np.array_equal(kept, expected):
        wrong = int((kept != expected).sum())
        raise BackendError(f"NMS on the GPU differs from its reference in {wrong} of {kept.size}")
    features = [rng.normal(0, 1, (2, 8, 64 >> i, 64 >> i)).astype(np.float32) for i in range(2)]
    rois = np.concatenate((np.repeat([[0.0], [1.0]], 8, 0), boxes[:, :8].reshape(16, 4)), 1)
    rois = rois.astype(np.float32)
    maps = [device.upload(array) for array in features]
    crops = device.download(
        kernel_chain.multilevel_roi_align(device, maps, device.upload(rois), REGIONS)
    )
    error = float(np.abs(crops - _reference_crops(features, rois)).max())
    if not error < 1e-4:
        raise BackendError(f"RoIAlign on the GPU is off its reference by {error:.2g}")
    return f"NMS of 2 x 1000 boxes and RoIAlign of {len(rois)} regions equal their references"


def _reference_crops(features: list[Any], rois: Any) -> Any:
    return roi_align_reference.multilevel_roi_align(
        features,
        rois,
        REGIONS.output_size,
        REGIONS.sampling_ratio,
        REGIONS.spatial_scales,
        REGIONS.finest_scale,
        REGIONS.aligned,
    )
