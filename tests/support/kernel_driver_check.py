"""Launches kernels through the genuine cuda-bindings on ``fake_libcuda.c``, which emulates them.

``LD_LIBRARY_PATH`` has to name the folder with the stand-in as ``libcuda.so.1``.

    python kernel_driver_check.py FOLDER
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import benchmark_nms
from deploykit.kernel_device import KernelDevice
from deploykit.plugins_trt import kernel_chain, nms_kernels
from deploykit.plugins_trt.host_emulation import HostDevice
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.plugins_trt.roi_align_kernels import RoIAlignParameters, roi_align_kernel
from deploykit.plugins_trt.roi_align_reference import multilevel_roi_align

driver = ctypes.CDLL("libcuda.so.1")
UNSIGNED = ctypes.POINTER(ctypes.c_uint)
LAUNCHER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, UNSIGNED, UNSIGNED, ctypes.c_void_p)
ROI_ALIGN = RoIAlignParameters((7, 7), 2, (0.25, 0.125), 16, True)
KERNELS = {
    kernel.name: kernel
    for kernel in (
        nms_kernels.sort_kernel("float32"),
        nms_kernels.gather_kernel("float32"),
        nms_kernels.mask_kernel(0.5),
        nms_kernels.scan_kernel("float32", 0.5, 20, nms_kernels.default_window(20)),
        roi_align_kernel(ROI_ALIGN, "float32"),
    )
}


def launcher(folder: Path) -> tuple[Any, list[str]]:
    """Return a function that emulates a launch, and where it notes the names of the kernels."""
    host, seen = HostDevice(folder), []

    def launch(name: bytes, grid: Any, block: Any, arguments: int) -> None:
        emulate = host._load(KERNELS[name.decode()])
        error = emulate(arguments, grid, block[0], 1)
        seen.append(error or name.decode())

    return LAUNCHER(launch), seen


def main(folder: Path) -> None:
    launch, seen = launcher(folder)
    driver.fake_launcher(launch)
    device = KernelDevice()
    rng = np.random.default_rng(0)
    corner, sides = rng.uniform(0, 100, (2, 300, 2)), rng.uniform(5, 40, (2, 300, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2).astype(np.float32)
    scores = rng.uniform(-0.2, 1, (2, 300)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 300))
    arrays = [device.upload(array) for array in (boxes, scores, labels.astype(np.int32))]
    scratch: dict[str, Any] = {}
    for _ in range(2):
        found = kernel_chain.batched_nms(device, *arrays, 0.5, 20, scratch=scratch)
    np.testing.assert_array_equal(
        device.download(found), batched_nms(boxes, scores, labels, 0.5, 20)
    )
    assert seen == 2 * ["nms_sort", "nms_gather", "nms_mask", "nms_scan"]

    stages = benchmark_nms._stages(device, scratch, 300, 0.5, 20)
    assert stages == dict.fromkeys(list(KERNELS)[:4], 1.0 / 20)

    features = [rng.normal(size=(2, 3, 16 >> i, 20 >> i)).astype(np.float32) for i in range(2)]
    rois = np.float32([[0, 1, 2, 30, 40], [1, 5, 5, 60, 50]])
    crops = kernel_chain.multilevel_roi_align(
        device, [device.upload(feature) for feature in features], device.upload(rois), ROI_ALIGN
    )
    expected = multilevel_roi_align(features, rois, (7, 7), 2, (0.25, 0.125), 16, True)
    np.testing.assert_allclose(device.download(crops), expected, rtol=2e-5, atol=2e-5)
    assert device.time(lambda: None, 3) == [1.0, 1.0, 1.0]

    del device, arrays, found, crops
    scratch.clear()
    gc.collect()
    assert [driver.fake_live(kind) for kind in range(8)] == [0] * 8
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
