"""The measuring loop: warm-up until stable, then rounds in which the models take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.benchmark.statistics import Floats
from deploykit.errors import UsageError
from deploykit.image_io import BgrImage
from deploykit.proposals import stand_in_proposals

if TYPE_CHECKING:
    from deploykit.runtimes.detector import Detector

Clock = Callable[[], int]
Progress = Callable[[str, float], None]
STAGES = ("preprocess", "inference", "postprocess")

_MAX_CALLS_PER_TURN = 1000
_FEWEST_ROUNDS = 5  # that a time limit leaves
_WARMUP_WINDOW = 5  # calls whose median is compared with that of the calls before
_NS_PER_MS = 1e6
_NS_PER_S = 1e9


@dataclass(frozen=True)
class MeasurementPlan:
    """How long to measure.

    Args:
        rounds: Rounds to run at least. In a round every model has one turn.
        min_seconds: Timed seconds per model to reach at least.
        max_seconds: Time after which the rounds of a workload end although ``rounds`` or
            ``min_seconds`` is not reached; at least five rounds are run.
        warmup_calls: Calls per model before measuring, at least.
        turn_seconds: How long a turn should last: a model is called repeatedly within its turn.
        stable_within: The warm-up ends when the medians of two successive windows of calls differ
            by no more than this fraction...
        max_warmup_calls: ...or after this many calls...
        max_warmup_seconds: ...or after this many seconds, whichever comes first.

    Raises:
        UsageError: A value is out of range.
    """

    rounds: int = 20
    min_seconds: float = 3.0
    max_seconds: float = 60.0
    warmup_calls: int = 5
    turn_seconds: float = 0.1
    stable_within: float = 0.05
    max_warmup_calls: int = 200
    max_warmup_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"the number of rounds must be at least 1, got {self.rounds}")
        if not 0 <= self.min_seconds < float("inf"):
            raise UsageError(f"the minimum time must be at least 0 s, got {self.min_seconds}")
        if not self.max_seconds > 0:
            raise UsageError(f"the maximum time must be above 0 s, got {self.max_seconds}")
        if self.warmup_calls < 1:
            raise UsageError(f"there must be at least 1 warm-up call, got {self.warmup_calls}")


@dataclass(frozen=True)
class WarmUp:
    """How the warm-up of a model went.

    Args:
        calls: Number of calls.
        seconds: How long they took.
        stable: Whether the latency had settled at the end.
        median_ns: Median latency of the last calls.
    """

    calls: int
    seconds: float
    stable: bool
    median_ns: float


@dataclass(frozen=True, eq=False)
class Timings:
    """The timed calls of one model.

    Args:
        rounds: int [N], the round that each call belongs to, ascending.
        stages_ns: int64 [N, 3], nanoseconds of preprocess, inference and postprocess.
    """

    rounds: npt.NDArray[np.int64]
    stages_ns: npt.NDArray[np.int64]

    @cached_property
    def total_ms(self) -> Floats:
        """Latency of each call in milliseconds, float [N]."""
        total: Floats = self.stages_ns.sum(axis=1) / _NS_PER_MS
        return total

    def stage_ms(self, stage: str) -> Floats:
        """Return float [N], the time of one stage in milliseconds."""
        milliseconds: Floats = self.stages_ns[:, STAGES.index(stage)] / _NS_PER_MS
        return milliseconds

    @property
    def round_count(self) -> int:
        """Number of rounds."""
        return int(self.rounds[-1]) + 1

    def round_medians_ms(self) -> Floats:
        """Return float [number of rounds], the median latency of each round in milliseconds."""
        return np.array(
            [np.median(self.total_ms[self.rounds == number]) for number in np.unique(self.rounds)]
        )


@dataclass
class _Contestant:
    """A model while it is measured."""

    name: str
    detector: Detector
    calls_per_turn: int = 1
    timed_ns: int = 0
    rounds: list[int] = field(default_factory=list)
    stages_ns: list[tuple[int, int, int]] = field(default_factory=list)

    def timings(self) -> Timings:
        return Timings(np.array(self.rounds, np.int64), np.array(self.stages_ns, np.int64))


class ImageCycle:
    """Batches that go round and round over the images; every model sees the same sequence.

    Args:
        images: BGR uint8 [H, W, 3] each.
        batch_size: Images per batch.
    """

    def __init__(self, images: Sequence[BgrImage], batch_size: int) -> None:
        if not images:
            raise UsageError("a benchmark needs at least one image")
        self._images = images
        self._batch_size = batch_size

    def __getitem__(self, number: int) -> list[BgrImage]:
        first = number * self._batch_size
        return [
            self._images[(first + offset) % len(self._images)] for offset in range(self._batch_size)
        ]


def time_call(
    detector: Detector, images: Sequence[BgrImage], clock: Clock = perf_counter_ns
) -> tuple[int, int, int]:
    """Detect in one batch and return the nanoseconds of preprocess, inference and postprocess.

    Args:
        detector: The detector; its backend returns when the results are on the host.
        images: BGR uint8 [H, W, 3] each, decoded.
        clock: Monotonic clock in nanoseconds.
    """
    stand_ins = stand_in_proposals(detector.spec.input, images)
    start = clock()
    prepared = detector.prepare(images, *stand_ins)
    ready = clock()
    outputs = detector.backend.infer(*prepared.inputs)
    inferred = clock()
    detector.finish(outputs, prepared)
    return ready - start, inferred - ready, clock() - inferred


def warm_up(
    detector: Detector, batches: ImageCycle, plan: MeasurementPlan, clock: Clock = perf_counter_ns
) -> WarmUp:
    """Call a detector until its latency has settled, within the bounds of the plan.

    First calls are slower: allocations, lazy initialisation, kernel selection, caches, clocks.
    """
    start = clock()
    latencies: list[int] = []
    stable = False
    while not stable and len(latencies) < max(plan.max_warmup_calls, plan.warmup_calls):
        latencies.append(sum(time_call(detector, batches[len(latencies)], clock)))
        if len(latencies) >= max(plan.warmup_calls, 2 * _WARMUP_WINDOW):
            before = np.median(latencies[-2 * _WARMUP_WINDOW : -_WARMUP_WINDOW])
            last = np.median(latencies[-_WARMUP_WINDOW:])
            stable = bool(abs(last - before) <= plan.stable_within * before)
        elapsed = (clock() - start) / _NS_PER_S
        if len(latencies) >= plan.warmup_calls and elapsed > plan.max_warmup_seconds:
            break
    seconds = (clock() - start) / _NS_PER_S
    return WarmUp(len(latencies), seconds, stable, float(np.median(latencies[-_WARMUP_WINDOW:])))


def measure(
    detectors: Sequence[tuple[str, Detector]],
    images: Sequence[BgrImage],
    batch_size: int,
    plan: MeasurementPlan,
    *,
    clock: Clock = perf_counter_ns,
    progress: Progress | None = None,
) -> list[tuple[WarmUp, Timings]]:
    """Measure detectors side by side.

    They take turns in rounds whose order rotates (ABC, BCA, CAB, ...), so that whatever else the
    machine does hits all of them alike, and none always follows the same other one. A turn is
    several calls, with an untimed one first when there are several models: the model before has
    emptied the caches, and its worker threads may still spin.

    Args:
        detectors: (name, detector) pairs.
        images: Decoded BGR uint8 [H, W, 3] images; batches go round over them.
        batch_size: Images per call.
        plan: How long to measure.
        clock: Monotonic clock in nanoseconds.
        progress: Called with what is being done and the fraction done.

    Returns:
        For every detector its warm-up and its timed calls.
    """
    report = progress or (lambda text, fraction: None)
    batches = ImageCycle(images, batch_size)
    contestants = [_Contestant(name, detector) for name, detector in detectors]
    warmups = []
    for number, contestant in enumerate(contestants):
        report(f"warming up {contestant.name}", 0.1 * number / len(contestants))
        warmup = warm_up(contestant.detector, batches, plan, clock)
        warmups.append(warmup)
        fitting = round(plan.turn_seconds * _NS_PER_S / max(warmup.median_ns, 1.0))
        contestant.calls_per_turn = min(max(1, fitting), _MAX_CALLS_PER_TURN)
    lead_calls = 1 if len(contestants) > 1 else 0
    number, done, start = 0, 0.0, clock()
    while done < 1:
        order = _rotated(contestants, number)
        for contestant in order:
            report(f"round {number + 1}, {contestant.name}", 0.1 + 0.9 * done)
            _take_turn(contestant, number, lead_calls, batches, clock)
        number += 1
        least = min(contestant.timed_ns for contestant in contestants) / _NS_PER_S
        by_time = least / plan.min_seconds if plan.min_seconds > 0 else 1.0
        done = min(number / plan.rounds, by_time)
        elapsed = (clock() - start) / _NS_PER_S
        if number >= _FEWEST_ROUNDS and elapsed > plan.max_seconds:
            break
    report("done", 1.0)
    timings = [contestant.timings() for contestant in contestants]
    return list(zip(warmups, timings, strict=True))


def _rotated(contestants: list[_Contestant], number: int) -> list[_Contestant]:
    first = number % len(contestants)
    return contestants[first:] + contestants[:first]


def _take_turn(
    contestant: _Contestant, number: int, lead_calls: int, batches: ImageCycle, clock: Clock
) -> None:
    for _ in range(lead_calls):
        time_call(contestant.detector, batches[len(contestant.rounds)], clock)
    for _ in range(contestant.calls_per_turn):
        stages = time_call(contestant.detector, batches[len(contestant.rounds)], clock)
        contestant.stages_ns.append(stages)
        contestant.rounds.append(number)
        contestant.timed_ns += sum(stages)
