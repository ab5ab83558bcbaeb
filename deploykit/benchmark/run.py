"""Open the models, measure every workload, collect the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

from deploykit.benchmark.fresh_process import FreshProcess, ModelRequest, probe
from deploykit.benchmark.machine import Machine, describe_machine
from deploykit.benchmark.report import BenchmarkReport, ModelIdentity, ModelResult, WorkloadResult
from deploykit.benchmark.timing import Clock, ImageCycle, MeasurementPlan, Progress, measure
from deploykit.benchmark.workload_images import artificial_images, describe_images
from deploykit.errors import UsageError
from deploykit.image_io import BgrImage
from deploykit.proposals import stand_in_proposals

if TYPE_CHECKING:
    from deploykit.runtimes.detector import Detector

Size = tuple[int, int]
OpenDetector = Callable[[Path, "Size | None"], "Detector"]
Probe = Callable[[ModelRequest], FreshProcess]


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure.

    Args:
        models: The artefacts; the first is what the others are compared with.
        batch_sizes: Images per call.
        input_sizes: (height, width) of network inputs; ``None`` stands for each model's own.
        device: Device as ``Detector`` takes it.
        num_threads: Threads of each network on the CPU; the engine's default if ``None``.
        plan: How long to measure.
        fresh_processes: Whether load time and memory are measured, each in a process of its own.
    """

    models: tuple[Path, ...]
    batch_sizes: tuple[int, ...] = (1,)
    input_sizes: tuple[Size | None, ...] = (None,)
    device: str = "auto"
    num_threads: int | None = None
    plan: MeasurementPlan = field(default_factory=MeasurementPlan)
    fresh_processes: bool = True

    def open(self, path: Path, input_size: Size | None) -> Detector:
        """Open one of the models."""
        from deploykit.runtimes.detector import Detector

        return Detector(
            path, device=self.device, input_size=input_size, num_threads=self.num_threads
        )


def run_benchmark(
    request: BenchmarkRequest,
    images: Sequence[BgrImage] | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock = perf_counter_ns,
    open_detector: OpenDetector | None = None,
    probe_model: Probe = probe,
    machine: Machine | None = None,
) -> BenchmarkReport:
    """Measure models side by side.

    Args:
        request: What to measure.
        images: Decoded BGR uint8 [H, W, 3] images; artificial ones by default.
        progress: Called with what is being done and the fraction of the workload that is done.
        clock: Monotonic clock in nanoseconds.
        open_detector: How to open a model at an input size; ``request.open`` by default.
        probe_model: How to measure a model in a process of its own.
        machine: Description of the machine; of this one by default.

    Raises:
        UsageError: There is no model, or a model does not take a batch or input size.
        BackendError: A model cannot be loaded or fails.
        SpecError: A model carries no spec.
    """
    if not request.models:
        raise UsageError("a benchmark needs at least one model")
    machine = machine or describe_machine(request.num_threads)
    artificial = images is None
    images = artificial_images() if images is None else images
    names = short_names(request.models)
    workloads = []
    for input_size in request.input_sizes:
        with ExitStack() as stack:
            opened = [
                stack.enter_context((open_detector or request.open)(path, input_size))
                for path in request.models
            ]
            for name, detector in zip(names, opened, strict=True):
                _check_batch_sizes(name, detector, request.batch_sizes)
            detectors = list(zip(names, opened, strict=True))
            for batch_size in request.batch_sizes:
                workloads.append(
                    _measure_workload(
                        request,
                        detectors,
                        images,
                        batch_size,
                        input_size,
                        progress=progress,
                        clock=clock,
                        probe_model=probe_model,
                    )
                )
    return BenchmarkReport(
        tuple(workloads), describe_images(images, artificial), artificial, machine, request.plan
    )


def _measure_workload(
    request: BenchmarkRequest,
    detectors: list[tuple[str, Detector]],
    images: Sequence[BgrImage],
    batch_size: int,
    input_size: Size | None,
    *,
    progress: Progress | None,
    clock: Clock,
    probe_model: Probe,
) -> WorkloadResult:
    fresh: list[FreshProcess | None] = [None] * len(detectors)
    if request.fresh_processes:
        largest = max((image.shape[:2] for image in images), key=lambda size: size[0] * size[1])
        for number, path in enumerate(request.models):
            if progress is not None:
                progress(f"loading {detectors[number][0]} in a process of its own", 0.0)
            fresh[number] = probe_model(
                ModelRequest(
                    path=str(path),
                    batch_size=batch_size,
                    input_size=input_size,
                    image_size=(largest[0], largest[1]),
                    device=request.device,
                    num_threads=request.num_threads,
                )
            )
    measured = measure(detectors, images, batch_size, request.plan, clock=clock, progress=progress)
    results = []
    for path, (name, detector), (warmup, timings), cost in zip(
        request.models, detectors, measured, fresh, strict=True
    ):
        spec, backend = detector.spec, detector.backend
        identity = ModelIdentity(
            name, str(path), backend.name, backend.device, spec.precision, spec.lowering
        )
        shapes = _input_shapes(detector, images, batch_size)
        results.append(ModelResult(identity, shapes, warmup, timings, cost))
    return WorkloadResult(batch_size, input_size, tuple(results))


def _check_batch_sizes(name: str, detector: Detector, batch_sizes: Sequence[int]) -> None:
    allowed = detector.spec.input.batch
    for batch_size in batch_sizes:
        if batch_size not in allowed:
            raise UsageError(f"{name} takes batch size {allowed}, not {batch_size}")


def _input_shapes(
    detector: Detector, images: Sequence[BgrImage], batch_size: int
) -> tuple[Size, ...]:
    """Return the (height, width) of the network inputs in one pass over the images."""
    batches = ImageCycle(images, batch_size)
    shapes = set()
    for number in range(-(-len(images) // batch_size)):
        images = batches[number]
        stand_ins = stand_in_proposals(detector.spec.input, images)
        height, width = detector.prepare(images, *stand_ins).images.shape[1:3]
        shapes.add((height, width))
    return tuple(sorted(shapes))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the file names, with as much of the path as tells them apart.

    The same path given several times is numbered: ``model.onnx``, ``model.onnx #2``.
    """
    names = []
    for path in paths:
        others = {other for other in paths if other != path}
        parts = path.parts
        length = 1
        while length < len(parts) and any(
            other.parts[-length:] == parts[-length:] for other in others
        ):
            length += 1
        names.append(str(Path(*parts[-length:])))
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[number] = f"{name} #{seen[name]}"
    return names
