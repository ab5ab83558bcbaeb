from __future__ import annotations

import numpy as np
import pytest

from deploykit.benchmark.timing import ImageCycle, MeasurementPlan, measure, time_call, warm_up
from deploykit.errors import UsageError


def plan(**changes):
    defaults = {"rounds": 4, "min_seconds": 0.0, "warmup_calls": 1, "turn_seconds": 0.0}
    return MeasurementPlan(**(defaults | changes))


def test_a_call_is_split_into_its_stages(simulation):
    detector = simulation.detector("a", 10, preprocess_ms=3, postprocess_ms=0.5)
    stages = time_call(detector, simulation.images[:2], simulation.clock)
    assert stages == (6 * simulation.MS, 10 * simulation.MS, simulation.MS)


def test_batches_go_round_over_the_images():
    cycle = ImageCycle(["a", "b", "c"], 2)
    assert [cycle[number] for number in range(4)] == [
        ["a", "b"],
        ["c", "a"],
        ["b", "c"],
        ["a", "b"],
    ]
    with pytest.raises(UsageError, match="at least one image"):
        ImageCycle([], 1)


def test_the_warm_up_lasts_until_the_latency_has_settled(simulation):
    """The first 12 calls get faster and faster; windows of five are equal from call 22 on."""
    detector = simulation.detector("a", lambda call: 100 - 7 * min(call, 12))
    found = warm_up(detector, ImageCycle(simulation.images, 1), plan(), simulation.clock)
    assert found.stable
    assert found.median_ns == (100 - 84 + 3) * simulation.MS
    assert 18 <= found.calls <= 22
    assert found.calls == len(detector.calls)
    assert found.seconds == pytest.approx(
        sum(103 - 7 * min(call, 12) for call in range(found.calls)) / 1000
    )


def test_a_steady_model_is_warm_after_two_windows(simulation):
    detector = simulation.detector("a", 5)
    cycle = ImageCycle(simulation.images, 1)
    assert warm_up(detector, cycle, plan(), simulation.clock).calls == 10
    assert warm_up(detector, cycle, plan(warmup_calls=30), simulation.clock).calls == 30


def test_the_warm_up_of_a_model_that_never_settles_is_bounded(simulation):
    growing = simulation.detector("a", lambda call: 1.1**call)
    cycle = ImageCycle(simulation.images, 1)
    found = warm_up(growing, cycle, plan(max_warmup_calls=40), simulation.clock)
    assert (found.calls, found.stable) == (40, False)
    slow = simulation.detector("b", lambda call: 1000 * 1.5**call)
    found = warm_up(slow, cycle, plan(max_warmup_seconds=10), simulation.clock)
    assert not found.stable
    assert found.calls == 5  # 1 + 1.5 + 2.25 + 3.4 + 5.1 s: the fifth call crosses 10 s


def test_models_take_turns_in_an_order_that_rotates(simulation):
    detectors = [(name, simulation.detector(name, 5)) for name in "ABC"]
    warmups_and_timings = measure(
        detectors, simulation.images, 1, plan(rounds=4), clock=simulation.clock
    )
    measured = "".join(simulation.log)[30:]  # after ten warm-up calls each
    # A turn is one untimed call and one timed call.
    assert measured == "AABBCC" + "BBCCAA" + "CCAABB" + "AABBCC"
    for warmup, timings in warmups_and_timings:
        assert warmup.calls == 10
        assert timings.rounds.tolist() == [0, 1, 2, 3]


def test_a_single_model_needs_no_untimed_calls(simulation):
    ((warmup, timings),) = measure(
        [("a", simulation.detector("a", 5))], simulation.images, 1, plan(), clock=simulation.clock
    )
    assert len(simulation.log) == warmup.calls + 4
    assert timings.stages_ns.tolist() == [[2 * simulation.MS, 5 * simulation.MS, simulation.MS]] * 4


def test_every_model_sees_the_same_images(simulation):
    detectors = [(name, simulation.detector(name, 5)) for name in "AB"]
    measure(detectors, simulation.images, 2, plan(rounds=3), clock=simulation.clock)
    first, second = (detector.calls for _, detector in detectors)
    assert first == second
    assert first[:3] == [[0, 1], [2, 0], [1, 2]]


def test_turns_of_fast_models_hold_more_calls(simulation):
    detectors = [
        ("slow", simulation.detector("slow", 47)),
        ("fast", simulation.detector("fast", 7)),
    ]
    (_, slow), (_, fast) = measure(
        detectors, simulation.images, 1, plan(rounds=2, turn_seconds=0.1), clock=simulation.clock
    )
    assert slow.rounds.tolist() == [0] * 2 + [1] * 2  # 50 ms with the other stages
    assert fast.rounds.tolist() == [0] * 10 + [1] * 10


def test_rounds_go_on_until_the_minimum_time_is_reached_by_every_model(simulation):
    detectors = [
        ("slow", simulation.detector("slow", 97)),
        ("fast", simulation.detector("fast", 7)),
    ]
    (_, slow), (_, fast) = measure(
        detectors, simulation.images, 1, plan(rounds=2, min_seconds=0.5), clock=simulation.clock
    )
    assert len(fast.rounds) == len(slow.rounds) == 50
    assert fast.total_ms.sum() == pytest.approx(500)


def test_a_time_limit_ends_the_rounds_but_leaves_five(simulation):
    detectors = [(name, simulation.detector(name, 97)) for name in "AB"]
    limits = {"rounds": 100, "min_seconds": 100.0}
    # A round is two models' turns of two calls of 100 ms: 0.4 s.
    for limit, rounds in ((4.1, 11), (0.1, 5)):
        measured = measure(
            detectors,
            simulation.images,
            1,
            plan(**limits, max_seconds=limit),
            clock=simulation.clock,
        )
        assert [timings.round_count for _, timings in measured] == [rounds, rounds]


def test_percentiles_medians_per_round_and_stages(simulation):
    latencies = iter([*[5] * 10, *range(1, 101)])
    detector = simulation.detector("a", lambda call: next(latencies))
    ((_, timings),) = measure(
        [("a", detector)], simulation.images, 1, plan(rounds=100), clock=simulation.clock
    )
    assert timings.stage_ms("inference").tolist() == list(range(1, 101))
    assert timings.total_ms.tolist() == list(range(4, 104))
    assert np.percentile(timings.total_ms, 50) == 53.5
    assert timings.round_medians_ms().tolist() == list(range(4, 104))


def test_progress_ends_at_one_and_never_goes_back(simulation):
    seen = []
    measure(
        [(name, simulation.detector(name, 5)) for name in "AB"],
        simulation.images,
        1,
        plan(),
        clock=simulation.clock,
        progress=lambda text, done: seen.append((text, done)),
    )
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions)
    assert seen[0][0] == "warming up A" and seen[-1] == ("done", 1.0)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"warmup_calls": 0}, {"min_seconds": -1}, {"max_seconds": 0}]
)
def test_plans_are_checked(wrong):
    with pytest.raises(UsageError, match="at least|above 0"):
        MeasurementPlan(**wrong)
