from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.benchmark.statistics import LatencyStatistics, ratio_of_medians, summarise
from deploykit.errors import UsageError

latencies = st.lists(st.floats(0.001, 1e4), min_size=2, max_size=60)


@settings(deadline=None)
@given(latencies)
def test_the_summary_is_that_of_the_standard_library(values):
    found = summarise(values)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert found.count == len(values)
    assert found.p50 == pytest.approx(statistics.median(values))
    assert (found.p90, found.p95, found.p99) == pytest.approx((cuts[89], cuts[94], cuts[98]))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-9)
    assert (found.min, found.max) == (min(values), max(values))


def test_a_single_call_has_no_spread():
    assert summarise([4.0]) == LatencyStatistics(1, 4, 0, 4, 4, 4, 4, 4, 4)


def test_no_call_is_an_error():
    with pytest.raises(UsageError, match="no call"):
        summarise([])


def test_the_ratio_is_that_of_the_medians_and_lies_in_its_interval():
    random = np.random.default_rng(1)
    first, second = random.gamma(50, 1, 40), random.gamma(50, 2, 40)
    found = ratio_of_medians(second, first)
    assert found.value == np.median(second) / np.median(first)
    assert found.low < found.value < found.high
    assert found == ratio_of_medians(second, first)  # same seed, same interval


def test_noise_that_hits_both_in_a_round_cancels():
    noise = np.random.default_rng(2).gamma(3, 1, 30) + 1
    found = ratio_of_medians(2 * noise, noise)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        first, second = random.normal(10, 1, 30), random.normal(15, 1, 30)
        found = ratio_of_medians(second, first, resamples=400, seed=trial)
        hits += found.low <= 1.5 <= found.high
    assert 170 <= hits <= 200  # 95 % nominal; small samples cover a little less


def test_drifting_rounds_widen_the_interval():
    """Blocks keep neighbours together, so a slow wave counts as fewer independent rounds."""
    rounds = np.arange(64)
    wave = 10 + np.sin(rounds / 10)
    shuffled = np.random.default_rng(4).permutation(wave)
    flat = np.full(64, 10.0)
    smooth, rough = ratio_of_medians(wave, flat), ratio_of_medians(shuffled, flat)
    assert smooth.high - smooth.low > 1.2 * (rough.high - rough.low)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0])])
def test_series_of_other_rounds_are_refused(first, second):
    with pytest.raises(UsageError, match="same rounds"):
        ratio_of_medians(first, second)
