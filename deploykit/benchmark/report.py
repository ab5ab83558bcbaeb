"""``BenchmarkReport``: the numbers of a benchmark with all that is needed to judge them."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.atomic_file import write_atomic
from deploykit.benchmark.fresh_process import FreshProcess
from deploykit.benchmark.machine import Machine
from deploykit.benchmark.statistics import LatencyStatistics, Ratio, ratio_of_medians, summarise
from deploykit.benchmark.timing import STAGES, MeasurementPlan, Timings, WarmUp

if TYPE_CHECKING:
    from rich.console import RenderableType

BENCHMARK_REPORT_VERSION = 1
_FEW_CALLS = 100  # below, the 99th percentile is little more than the maximum
_DRIFT = 0.1


@dataclass(frozen=True)
class ModelIdentity:
    """Which model was measured, and on what.

    Args:
        name: Short name, unique within the report.
        path: The artefact.
        backend: Name of the inference engine.
        device: Where the engine ran.
        precision: Precision that the spec states.
        lowering: Lowering that the spec states.
    """

    name: str
    path: str
    backend: str
    device: str
    precision: str
    lowering: str


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One model under one workload.

    Args:
        model: The model.
        input_shapes: (height, width) of the network inputs that occurred, ascending.
        warmup: How the warm-up went.
        timings: The timed calls.
        fresh: Load time and memory in a process of its own, if measured.
    """

    model: ModelIdentity
    input_shapes: tuple[tuple[int, int], ...]
    warmup: WarmUp
    timings: Timings
    fresh: FreshProcess | None = None

    @cached_property
    def latency(self) -> LatencyStatistics:
        """Latency of a whole call in milliseconds."""
        return summarise(self.timings.total_ms)

    @cached_property
    def stages(self) -> dict[str, LatencyStatistics]:
        """Latency of each stage in milliseconds."""
        return {stage: summarise(self.timings.stage_ms(stage)) for stage in STAGES}

    @property
    def overhead(self) -> float:
        """Part of the whole time that is spent outside the inference engine, 0..1."""
        return 1 - self.stages["inference"].mean / self.latency.mean

    @property
    def drift(self) -> float:
        """Relative change of the median from the first to the second half of the rounds."""
        medians = self.timings.round_medians_ms()
        if len(medians) < 4:
            return 0.0
        first, second = np.array_split(medians, 2)
        return float(np.median(second) / np.median(first) - 1)


@dataclass(frozen=True, eq=False)
class WorkloadResult:
    """Several models, measured side by side under the same conditions.

    Args:
        batch_size: Images per call.
        input_size: (height, width) that was asked for; ``None`` for each model's own.
        results: One per model, in the order given.
    """

    batch_size: int
    input_size: tuple[int, int] | None
    results: tuple[ModelResult, ...]

    def images_per_second(self, result: ModelResult) -> float:
        """Return the throughput of one caller that detects in one batch after the other."""
        return self.batch_size * 1000 / result.latency.mean

    @cached_property
    def ratios(self) -> tuple[Ratio, ...]:
        """Median latency of every model as a multiple of the first model's."""
        medians = [result.timings.round_medians_ms() for result in self.results]
        return tuple(ratio_of_medians(own, medians[0]) for own in medians)

    @property
    def title(self) -> str:
        """The workload in words."""
        shapes = sorted({shape for result in self.results for shape in result.input_shapes})
        return f"batch {self.batch_size}, network input {format_shapes(shapes)}"


@dataclass(frozen=True, eq=False)
class BenchmarkReport:
    """What ``deploykit benchmark`` measured.

    Args:
        workloads: One per batch size and shape.
        images: The images that were fed, in words.
        artificial: Whether they were drawn by the program.
        machine: The machine, described before measuring.
        plan: How long was measured.
        time: When, ISO 8601 in UTC.
    """

    workloads: tuple[WorkloadResult, ...]
    images: str
    artificial: bool
    machine: Machine
    plan: MeasurementPlan
    time: str = dataclasses.field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to judge the numbers."""
        notes = []
        if self.artificial:
            notes.append(
                "the images are artificial: real ones have other numbers of objects, which moves "
                "the postprocessing time (give yours with --images)"
            )
        load, cores = self.machine.load_average, self.machine.usable_cores
        if load is not None and load > 0.5 * cores:
            notes.append(f"the machine was busy at the start: load {load:.1f} on {cores:g} cores")
        for workload in self.workloads:
            rounds = workload.results[0].timings.round_count
            if rounds < self.plan.rounds:
                notes.append(
                    f"{workload.title}: ended after {rounds} of {self.plan.rounds} rounds at the "
                    f"time limit of {self.plan.max_seconds:g} s (raise --max-time)"
                )
            for result in workload.results:
                where = f"{result.model.name}, {workload.title}"
                if not result.warmup.stable:
                    notes.append(
                        f"{where}: the latency had not settled after {result.warmup.calls} calls"
                    )
                if abs(result.drift) > _DRIFT:
                    notes.append(
                        f"{where}: the median changed by {result.drift:+.0%} from the first to the "
                        f"second half of the rounds"
                    )
        fewest = min(
            (result.latency.count for workload in self.workloads for result in workload.results),
            default=_FEW_CALLS,
        )
        if fewest < _FEW_CALLS:
            notes.append(
                f"as few as {fewest} calls were timed: below {_FEW_CALLS}, p99 is little more than "
                f"the maximum (raise --min-time or --rounds)"
            )
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values (the layout is in ``docs/benchmark.md``)."""
        return {
            "version": BENCHMARK_REPORT_VERSION,
            "time": self.time,
            "images": self.images,
            "artificial_images": self.artificial,
            "plan": dataclasses.asdict(self.plan),
            "machine": dataclasses.asdict(self.machine),
            "notes": list(self.notes),
            "workloads": [_workload_dict(workload) for workload in self.workloads],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON; the file appears whole or not at all."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw distributions and stages into a PNG, SVG or PDF file.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            UsageError: The suffix names another format.
        """
        from deploykit.benchmark.plot import write_plot

        write_plot(self, path)

    def render(self) -> RenderableType:
        """Return the report for ``rich.print``."""
        from deploykit.benchmark.report_table import render_report

        return render_report(self)


def format_shapes(shapes: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> str:
    """Return ascending (height, width) pairs in words, e.g. ``"480x640 to 640x640"``."""
    ends = dict.fromkeys((shapes[0], shapes[-1]))
    return " to ".join(f"{height}x{width}" for height, width in ends)


def _workload_dict(workload: WorkloadResult) -> dict[str, Any]:
    return {
        "batch_size": workload.batch_size,
        "input_size": None if workload.input_size is None else list(workload.input_size),
        "title": workload.title,
        "models": [
            _result_dict(workload, result, ratio)
            for result, ratio in zip(workload.results, workload.ratios, strict=True)
        ],
    }


def _result_dict(workload: WorkloadResult, result: ModelResult, ratio: Ratio) -> dict[str, Any]:
    fresh = result.fresh
    return {
        **dataclasses.asdict(result.model),
        "input_shapes": [list(shape) for shape in result.input_shapes],
        "latency_ms": dataclasses.asdict(result.latency),
        "stages_ms": {stage: dataclasses.asdict(one) for stage, one in result.stages.items()},
        "overhead": result.overhead,
        "images_per_second": workload.images_per_second(result),
        "ratio_to_first": dataclasses.asdict(ratio),
        "drift": result.drift,
        "warmup": dataclasses.asdict(result.warmup),
        "fresh_process": None
        if fresh is None
        else {**dataclasses.asdict(fresh), "model_mib": fresh.model_mib},
        "calls": {
            "round": result.timings.rounds.tolist(),
            **{f"{stage}_ms": result.timings.stage_ms(stage).round(4).tolist() for stage in STAGES},
        },
    }
