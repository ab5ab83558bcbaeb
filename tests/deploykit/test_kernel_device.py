"""Kernels launched without TensorRT: on a stand-in for the driver here, and on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import BackendError
from deploykit.plugins_trt import kernel_chain
from deploykit.plugins_trt.nms_reference import batched_nms
from deploykit.plugins_trt.roi_align_kernels import CHANNEL_CHOICES, RoIAlignParameters

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_launches_reach_the_driver_as_the_kernels_expect_them(tmp_path):
    compiler = shutil.which("gcc") or pytest.skip("needs a C compiler")
    library = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library]
    subprocess.run([*command, SUPPORT / "fake_libcuda.c", "-lpthread"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(SUPPORT)}
    result = subprocess.run(
        [sys.executable, SUPPORT / "kernel_driver_check.py", tmp_path / "kernels"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0 and result.stdout == "done\n", result.stdout + result.stderr


@pytest.fixture(scope="module")
def gpu():
    from deploykit.kernel_device import KernelDevice

    try:
        return KernelDevice()
    except BackendError as error:
        pytest.skip(str(error))


def nms_on(gpu, boxes, scores, labels, threshold, max_out, window=None):
    arrays = [gpu.upload(array) for array in (boxes, scores, labels.astype(np.int32))]
    return gpu.download(kernel_chain.batched_nms(gpu, *arrays, threshold, max_out, window))


def crowd(rng, images, candidates, dtype):
    extent = rng.choice([100.0, 400.0, 1300.0])
    corner = rng.uniform(0, extent, (images, candidates, 2))
    sides = rng.uniform(0, extent / 5, (images, candidates, 2))
    boxes = np.concatenate([corner, corner + sides], axis=2).astype(dtype)
    scores = rng.uniform(-0.1, 1, (images, candidates)).astype(dtype)
    if rng.random() < 0.5:
        scores = scores.round(2)
    return boxes, scores, rng.integers(0, rng.choice([1, 80]), (images, candidates))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nms_on_a_gpu_equals_brute_force(gpu, dtype):
    rng = np.random.default_rng(0)
    for candidates in [1, 63, 64, 65, 257, 1000, 2047, 2048, 2049, 5000] * 2:
        scene = crowd(rng, int(rng.integers(1, 4)), candidates, dtype)
        for max_out, window in ((100, None), (100, 256), (300, 1024)):
            found = nms_on(gpu, *scene, 0.5, max_out, window)
            boxes, scores, labels = scene
            expected = batched_nms(
                boxes.astype(np.float32), scores.astype(np.float32), labels, 0.5, max_out
            )
            np.testing.assert_array_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("candidates", [1000, 10_000, 80_000])
def test_nms_on_a_gpu_equals_torchvision(gpu, candidates):
    import torch
    from torchvision.ops import nms

    rng = np.random.default_rng(candidates)
    for threshold in (0.3, 0.5, 0.7):
        boxes, scores, _ = crowd(rng, 1, candidates, "float32")
        scores = rng.permutation(candidates).astype(np.float32)[None] + 1  # without ties
        max_out = min(candidates, 2000)
        threshold = float(np.float32(threshold))
        found = nms_on(gpu, boxes, scores, np.zeros((1, candidates), int), threshold, max_out)[0]
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            tensors = torch.from_numpy(boxes[0]).to(device), torch.from_numpy(scores[0]).to(device)
            expected = nms(*tensors, threshold)[:max_out].cpu().numpy()
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert (found[len(expected) :] == -1).all()


@pytest.mark.gpu
def test_nms_on_a_gpu_gives_the_same_bits_every_time(gpu):
    scene = crowd(np.random.default_rng(1), 4, 20_000, "float32")
    first = nms_on(gpu, *scene, 0.5, 300)
    for _ in range(50):
        np.testing.assert_array_equal(nms_on(gpu, *scene, 0.5, 300), first)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("side", "ratio", "aligned"), [(7, 0, True), (14, 2, True), (7, 2, False)])
def test_roi_align_on_a_gpu_equals_torchvision(gpu, dtype, side, ratio, aligned):
    import torch

    from deploykit.training.ops.multilevel_roi_align import multilevel_roi_align

    rng = np.random.default_rng(side)
    scales = (0.25, 0.125, 0.0625, 0.03125)
    parameters = RoIAlignParameters((side, side), ratio, scales, 56, aligned)
    features = [rng.normal(size=(2, 40, 200 >> i, 264 >> i)).astype(dtype) for i in range(4)]
    corner, sides = rng.uniform(-50, 800, (400, 2)), np.exp(rng.uniform(0, 7, (400, 2)))
    image = rng.integers(0, 2, (400, 1))
    rois = np.concatenate([image, corner, corner + sides], axis=1).astype(np.float32)
    expected = multilevel_roi_align(
        [torch.from_numpy(feature.astype(np.float32)) for feature in features],
        torch.from_numpy(rois),
        (side, side),
        ratio,
        scales,
        56,
        aligned,
    ).numpy()
    arrays = [gpu.upload(feature) for feature in features]
    for channels in CHANNEL_CHOICES:
        crops = kernel_chain.multilevel_roi_align(
            gpu, arrays, gpu.upload(rois), parameters, channels
        )
        tolerance = 2e-3 if dtype == "float16" else 1e-4
        wrong = np.abs(gpu.download(crops) - expected) > tolerance * (1 + np.abs(expected))
        # A sample on the edge of the map, or a bin on the edge of one sample more, may fall
        # either way; such regions are a few in a thousand.
        assert wrong.any(axis=(1, 2, 3)).mean() < 0.01
