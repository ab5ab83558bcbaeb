"""Load time, first call and memory of a model, measured in a process of its own.

In a process that holds several models their costs cannot be told apart: libraries are loaded once,
and allocators share what they keep. So ``probe`` runs this module as a program, which loads one
model, detects, and prints what that cost.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from deploykit.errors import BackendError, DeploykitError

_CALLS = 10
_MARK = "fresh process: "

RunPython = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class ModelRequest:
    """Which model to load, and how.

    Args:
        path: The artefact.
        batch_size: Images per call.
        input_size: (height, width) of the network input, or ``None`` for the model's own.
        image_size: (height, width) of the images that are fed.
        device: Device as ``Detector`` takes it.
        num_threads: Threads of the network and of OpenCV, or ``None``.
    """

    path: str
    batch_size: int
    input_size: tuple[int, int] | None
    image_size: tuple[int, int]
    device: str = "auto"
    num_threads: int | None = None


@dataclass(frozen=True)
class FreshProcess:
    """What a model costs in a process of its own.

    Args:
        load_seconds: ``Detector(path)``, the import of the inference engine included.
        first_call_seconds: The first detection.
        baseline_mib: Resident memory before loading (interpreter, numpy, OpenCV, deploykit).
        loaded_mib: Resident memory after loading.
        peak_mib: Highest resident memory up to the end of ten detections.
        device_mib: Growth of the memory in use on the GPU over the same time, or ``None``.
    """

    load_seconds: float
    first_call_seconds: float
    baseline_mib: float | None
    loaded_mib: float | None
    peak_mib: float | None
    device_mib: int | None

    @property
    def model_mib(self) -> float | None:
        """What loading and running the model added to the resident memory at its peak, in MiB."""
        if self.peak_mib is None or self.baseline_mib is None:
            return None
        return self.peak_mib - self.baseline_mib


def probe(request: ModelRequest, run: RunPython | None = None) -> FreshProcess:
    """Measure a model in a process of its own.

    Args:
        request: The model.
        run: Runs Python with the given arguments; for tests.

    Raises:
        BackendError: The model cannot be loaded or fails.
    """
    arguments = ["-m", "deploykit.benchmark.fresh_process", json.dumps(dataclasses.asdict(request))]
    result = (run or _run_python)(arguments)
    for line in result.stdout.splitlines():
        if line.startswith(_MARK):
            return FreshProcess(**json.loads(line.removeprefix(_MARK)))
    lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    raise BackendError(f"measuring {request.path} in a process of its own failed: {lines[-1]}")


def _run_python(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  (our own interpreter and module)
        [sys.executable, *arguments], capture_output=True, text=True, check=False
    )


def measure_here(request: ModelRequest) -> FreshProcess:
    """Load the model in this process, detect, and return what that cost."""
    import cv2

    from deploykit.benchmark.machine import gpu_memory_used_mib
    from deploykit.benchmark.memory import peak_resident_mib, resident_mib
    from deploykit.benchmark.workload_images import artificial_images
    from deploykit.proposals import stand_in_proposals
    from deploykit.runtimes.detector import Detector

    if request.num_threads is not None:
        cv2.setNumThreads(request.num_threads)
    images = artificial_images(1, request.image_size) * request.batch_size
    gpu = int(request.device.partition(":")[2] or 0)
    gpu_before = gpu_memory_used_mib(gpu)
    baseline = resident_mib()
    start = perf_counter()
    with Detector(
        request.path,
        device=request.device,
        input_size=request.input_size,
        num_threads=request.num_threads,
    ) as detector:
        opened = perf_counter()
        loaded = resident_mib()
        stand_ins = stand_in_proposals(detector.spec.input, images)
        for call in range(_CALLS):
            prepared = detector.prepare(images, *stand_ins)
            outputs = detector.backend.infer(*prepared.inputs)
            detector.finish(outputs, prepared)
            if call == 0:
                first = perf_counter() - opened
        on_gpu = not detector.backend.device.startswith("cpu")
        gpu_after = gpu_memory_used_mib(gpu) if on_gpu else None
        return FreshProcess(
            load_seconds=opened - start,
            first_call_seconds=first,
            baseline_mib=baseline,
            loaded_mib=loaded,
            peak_mib=peak_resident_mib(),
            device_mib=None if gpu_before is None or gpu_after is None else gpu_after - gpu_before,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement that ``probe`` asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("request")
    request = json.loads(parser.parse_args(argv).request)
    for key in ("input_size", "image_size"):
        request[key] = None if request[key] is None else tuple(request[key])
    try:
        found = measure_here(ModelRequest(**request))
    except DeploykitError as error:
        print(error, file=sys.stderr)
        return 2
    print(_MARK + json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
