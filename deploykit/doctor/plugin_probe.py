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


def scene() -> dict[str, Any]:
    """Return inputs of both operators by name: 2 x 1000 boxes, 16 regions, two feature maps."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (2, 1000, 2)).astype(np.float32)
    boxes = np.concatenate((corner, corner + rng.uniform(5, 60, corner.shape)), 2).astype("f4")
    images = np.repeat([[0.0], [1.0]], 8, 0)
    return {
        "boxes": boxes,
        "scores": rng.uniform(0, 1, (2, 1000)).astype(np.float32),
        "labels": rng.integers(0, 3, (2, 1000)),
        "rois": np.concatenate((images, boxes[:, :8].reshape(16, 4)), 1).astype(np.float32),
        "feature0": rng.normal(0, 1, (2, 8, 64, 64)).astype(np.float32),
        "feature1": rng.normal(0, 1, (2, 8, 32, 32)).astype(np.float32),
    }


def compare_with_references(device: Any) -> str:
    """Run the kernels of both operators on a device and compare them with numpy.

    Args:
        device: A ``deploykit.kernel_device.KernelDevice``, or an emulated one.

    Returns:
        What was compared, in words.

    Raises:
        BackendError: A result is wrong.
    """
    inputs = scene()
    given = {name: device.upload(array) for name, array in inputs.items() if name != "labels"}
    labels = device.upload(inputs["labels"].astype(np.int32))
    indices = kernel_chain.batched_nms(
        device, given["boxes"], given["scores"], labels, IOU_THRESHOLD, MAX_OUT
    )
    maps = [given["feature0"], given["feature1"]]
    crops = kernel_chain.multilevel_roi_align(device, maps, given["rois"], REGIONS)
    check_results(inputs, device.download(indices), device.download(crops))
    return "NMS of 2 x 1000 boxes and RoIAlign of 16 regions equal their references"


def check_results(inputs: dict[str, Any], indices: Any, crops: Any) -> None:
    """Compare results for the inputs of ``scene`` with numpy.

    Raises:
        BackendError: A result is wrong.
    """
    boxes, scores, labels = (inputs[name] for name in ("boxes", "scores", "labels"))
    expected = nms_reference.batched_nms(boxes, scores, labels, IOU_THRESHOLD, MAX_OUT)
    if not np.array_equal(indices, expected):
        wrong = int((indices != expected).sum())
        raise BackendError(f"NMS on the GPU differs from its reference in {wrong} places")
    features = [inputs["feature0"], inputs["feature1"]]
    error = float(np.abs(crops - _reference_crops(features, inputs["rois"])).max())
    if not error < 1e-4:
        raise BackendError(f"RoIAlign on the GPU is off its reference by {error:.2g}")


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
