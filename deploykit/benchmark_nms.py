"""Times batched NMS of ``plugins_trt`` against ``torchvision.ops.nms`` on a GPU.

    python -m deploykit.benchmark_nms --boxes 1000 10000

Ours is replayed as a CUDA graph, as in an engine. The two take turns, so that a change of the GPU's
clock hits both. A time is from the call until the result is complete, with the host's share.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from deploykit.errors import DeploykitError, ParityError
from deploykit.kernel_device import KernelDevice
from deploykit.optional_imports import import_optional
from deploykit.plugins_trt import nms_kernels
from deploykit.plugins_trt.kernel import Kernel, Launch
from deploykit.plugins_trt.kernel_chain import batched_nms

_LAUNCHES_PER_STAGE = 20


@dataclass(frozen=True)
class NmsTiming:
    """How long NMS of one image takes.

    Args:
        boxes: Candidates.
        survivors: What is left of them.
        max_out: Results asked for; torchvision always gives all.
        ours: Milliseconds (p50, p99).
        torchvision: Milliseconds (p50, p99).
        stages: Milliseconds per kernel.
    """

    boxes: int
    survivors: int
    max_out: int
    ours: tuple[float, float]
    torchvision: tuple[float, float]
    stages: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times as fast as torchvision ours is, by the median."""
        return self.torchvision[0] / self.ours[0]


def crowd(boxes: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return boxes of an image as a dense head gives them: several around each object.

    Args:
        boxes: How many.
        seed: Of the random numbers.

    Returns:
        float32 [1, N, 4], xyxy, and float32 [1, N], scores without ties.
    """
    rng = np.random.default_rng(seed)
    objects = max(boxes // 10, 1)
    centre = rng.uniform(0, 1300, (objects, 2))
    size = np.exp(rng.uniform(np.log(16), np.log(400), (objects, 2)))
    chosen = rng.integers(0, objects, boxes)
    middle = centre[chosen] + rng.normal(0, 0.1, (boxes, 2)) * size[chosen]
    half = size[chosen] * np.exp(rng.normal(0, 0.15, (boxes, 2))) / 2
    corners = np.concatenate([middle - half, middle + half], axis=1)
    scores = (rng.permutation(boxes) + 1) / (boxes + 1)
    return corners.astype(np.float32)[None], scores.astype(np.float32)[None]


def time_nms(
    device: KernelDevice, boxes: int, max_out: int, threshold: float, rounds: int
) -> NmsTiming:
    """Time both on one image.

    Args:
        device: The GPU.
        boxes: Candidates.
        max_out: Results of ours.
        threshold: IoU above which the worse box is dropped.
        rounds: How often each is timed.

    Raises:
        ParityError: The results differ.
    """
    torch: Any = import_optional("torch", "train", "Comparing with torchvision")
    nms: Any = import_optional("torchvision.ops", "train", "Comparing with torchvision").nms
    corners, scores = crowd(boxes)
    threshold = float(np.float32(threshold))
    labels = np.zeros((1, boxes), np.int32)
    inputs = device.upload(corners), device.upload(scores), device.upload(labels)
    scratch: dict[str, Any] = {}
    ours = device.record(lambda: batched_nms(device, *inputs, threshold, max_out, scratch=scratch))
    ours()
    found = device.download(scratch["indices"])[0]
    tensors = torch.from_numpy(corners[0]).cuda(), torch.from_numpy(scores[0]).cuda()
    expected = nms(*tensors, threshold)
    kept = min(len(expected), max_out)
    if (
        not np.array_equal(found[:kept], expected[:kept].cpu().numpy())
        or (found[kept:] != -1).any()
    ):
        raise ParityError(f"NMS of {boxes} boxes differs from torchvision's")

    def replay() -> None:
        ours()
        device.synchronize()

    def call_torchvision() -> None:
        nms(*tensors, threshold)
        torch.cuda.synchronize()

    times = _take_turns((replay, call_torchvision), rounds)
    first, second = (tuple(np.percentile(one, (50, 99)).tolist()) for one in times)
    stages = _stages(device, scratch, boxes, threshold, max_out)
    return NmsTiming(boxes, len(expected), max_out, first, second, stages)


def _take_turns(calls: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Return the milliseconds of each call in each round."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 10):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter_ns()
            call()
            if number >= 10:  # the first are warm-up
                own.append((time.perf_counter_ns() - start) / 1e6)
    return times


def _stages(
    device: KernelDevice, tensors: dict[str, Any], boxes: int, threshold: float, max_out: int
) -> dict[str, float]:
    """Return the milliseconds of each kernel alone, by the GPU's clock."""
    window = nms_kernels.default_window(max_out)
    sizes = nms_kernels.NmsSizes(1, boxes, window)
    kernels: list[tuple[Kernel, Launch]] = [
        (nms_kernels.sort_kernel("float32"), sizes.sort_launch()),
        (nms_kernels.gather_kernel("float32"), sizes.gather_launch()),
        (nms_kernels.mask_kernel(threshold), nms_kernels.mask_launch(1, sizes.span)),
        (
            nms_kernels.scan_kernel("float32", threshold, max_out, window),
            sizes.scan_launch(),
        ),
    ]
    stages = {}
    for kernel, launch in kernels:
        replay = device.record(partial(_repeat, device, kernel, launch, tensors))
        replay()
        stages[kernel.name] = float(np.median(device.time(replay, 20))) / _LAUNCHES_PER_STAGE
    return stages


def _repeat(device: KernelDevice, kernel: Kernel, launch: Launch, tensors: dict[str, Any]) -> None:
    for _ in range(_LAUNCHES_PER_STAGE):
        device.launch(kernel, launch, tensors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print a line per number of boxes.

    Args:
        arguments: Of the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser("python -m deploykit.benchmark_nms", description=__doc__)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--max-out", type=int, help="results per image (default: all boxes)")
    parser.add_argument("--iou-threshold", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args(arguments)
    try:
        device = KernelDevice(given.device)
        timings = [
            time_nms(device, boxes, given.max_out or boxes, given.iou_threshold, given.rounds)
            for boxes in given.boxes
        ]
    except DeploykitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        rows = [asdict(timing) | {"ratio": timing.ratio} for timing in timings]
        print(json.dumps({"device": device.gpu.name, "timings": rows}, indent=2))
        return 0
    print(f"{device.gpu.name}, milliseconds, p50 (p99)")
    for timing in timings:
        ours, theirs = timing.ours, timing.torchvision
        parts = ", ".join(f"{name} {value:.4f}" for name, value in timing.stages.items())
        print(
            f"{timing.boxes} boxes, {timing.survivors} survivors, {timing.max_out} asked for: ours "
            f"{ours[0]:.3f} ({ours[1]:.3f}), torchvision {theirs[0]:.3f} ({theirs[1]:.3f}), "
            f"{timing.ratio:.2f} times as fast; kernels: {parts}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
