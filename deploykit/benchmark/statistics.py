"""Statistics of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatencyStatistics:
    """Summary of a sample of latencies, in milliseconds.

    Percentiles interpolate linearly between order statistics (type 7 of Hyndman and Fan 1996,
    numpy's default), so the p99 of fewer than 100 calls is little more than the maximum.

    Args:
        count: Number of calls.
        mean: Mean.
        std: Standard deviation of the sample (n - 1); 0 for a single call.
        min: Shortest.
        p50: Median.
        p90: 90th percentile.
        p95: 95th percentile.
        p99: 99th percentile.
        max: Longest.
    """

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def summarise(milliseconds: npt.ArrayLike) -> LatencyStatistics:
    """Summarise latencies.

    Args:
        milliseconds: [N], N >= 1.

    Raises:
        UsageError: There are none.
    """
    values = np.asarray(milliseconds, np.float64)
    if values.size == 0:
        raise UsageError("cannot summarise the latencies of no call")
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    return LatencyStatistics(
        count=values.size,
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min=float(values.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
    )


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its 95 % confidence interval.

    Args:
        value: The ratio.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


def ratio_of_medians(
    numerator: Sequence[float] | Floats,
    denominator: Sequence[float] | Floats,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """Return the ratio of the medians of two series that were measured in the same rounds.

    The interval comes from resampling rounds, with both members of a round together, so that noise
    that hit both cancels. Whole blocks of neighbouring rounds are drawn (circular block bootstrap,
    Politis and Romano 1992; block length n^(1/3)), because slow drifts, such as a processor that
    warms up, make neighbouring rounds alike.

    Args:
        numerator: [N], one value per round, above zero.
        denominator: [N], the values of the other series in the same rounds, above zero.
        confidence: Coverage of the interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        UsageError: The series are empty or of different lengths.
    """
    first, second = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise UsageError(
            f"a ratio needs two series of the same rounds, got {first.shape} and {second.shape}"
        )
    count = first.size
    length = max(1, round(count ** (1 / 3)))
    blocks = math.ceil(count / length)
    random = np.random.default_rng(seed)
    starts = random.integers(0, count, (resamples, blocks, 1))
    chosen = ((starts + np.arange(length)) % count).reshape(resamples, -1)[:, :count]
    ratios = np.median(first[chosen], axis=1) / np.median(second[chosen], axis=1)
    low, high = np.percentile(ratios, (50 - 50 * confidence, 50 + 50 * confidence))
    return Ratio(float(np.median(first) / np.median(second)), float(low), float(high))
