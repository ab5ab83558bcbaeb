"""Benchmark: what a detector costs, in numbers that can be defended."""

from __future__ import annotations

from deploykit.benchmark.report import BenchmarkReport
from deploykit.benchmark.run import BenchmarkRequest, run_benchmark
from deploykit.benchmark.timing import MeasurementPlan

__all__ = ["BenchmarkReport", "BenchmarkRequest", "MeasurementPlan", "run_benchmark"]
