"""The benchmark as a picture: latency distributions beside the time of each stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.atomic_file import atomic_path
from deploykit.benchmark.report import BenchmarkReport, ModelResult, WorkloadResult
from deploykit.benchmark.report_table import machine_line, milliseconds
from deploykit.benchmark.timing import STAGES
from deploykit.errors import UsageError
from deploykit.optional_imports import import_optional

PLOT_SUFFIXES = (".png", ".svg", ".pdf")

# Okabe and Ito's colours, which people with colour-blindness can tell apart.
_STAGE_COLOURS = {"preprocess": "#56B4E9", "inference": "#0072B2", "postprocess": "#E69F00"}
_POINTS, _BOX, _P99 = "#0072B2", "#1b4965", "#D55E00"
_INK, _FAINT, _GRID = "#222222", "#666666", "#dddddd"
_LABEL_CHARACTERS = 34
_LOG_FROM = 15  # times that the slowest median exceeds the fastest
_MAX_POINTS = 1500
_ROW_INCHES, _MARGIN_INCHES, _WIDTH_INCHES = 0.62, 1.05, 11.5


def check_plot_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a plot if its format is supported.

    Raises:
        UsageError: It is not.
    """
    path = Path(path)
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"a plot is written as {', '.join(PLOT_SUFFIXES)}, got '{path.name}'")
    return path


def write_plot(report: BenchmarkReport, path: str | os.PathLike[str]) -> None:
    """Draw a report; one row of panels per workload.

    Args:
        report: The report.
        path: A ``.png``, ``.svg`` or ``.pdf`` file; it appears whole or not at all.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: The suffix names another format.
    """
    path = check_plot_path(path)
    import_optional("matplotlib", "plot", "The plot of a benchmark")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    heights = [_MARGIN_INCHES + _ROW_INCHES * len(one.results) for one in report.workloads]
    figure = Figure(
        figsize=(_WIDTH_INCHES, sum(heights) + 0.75),
        layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1),
    )
    panels = figure.subplots(
        len(heights),
        2,
        squeeze=False,
        sharey="row",
        gridspec_kw={"height_ratios": heights, "width_ratios": (1.15, 1)},
    )
    for workload, (left, right) in zip(report.workloads, panels, strict=True):
        _draw_distributions(left, workload)
        _draw_stages(right, workload)
    handles = [Patch(color=colour) for colour in _STAGE_COLOURS.values()]
    figure.legend(
        handles,
        _STAGE_COLOURS.keys(),
        loc="upper right",
        ncols=len(handles),
        frameon=False,
        fontsize=10,
        handlelength=1,
    )
    figure.suptitle("Detection latency", x=0.01, ha="left", fontsize=15, weight="bold", color=_INK)
    footer = f"{machine_line(report.machine)}\nfed: {report.images}; {report.time}"
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=8, color=_FAINT)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, facecolor="white")


def _draw_distributions(axes: Any, workload: WorkloadResult) -> None:
    """Draw every call as a point, with a box from p25 to p75, the median and the p99."""
    random = np.random.default_rng(0)
    limit = 1.03 * min(
        max(result.latency.max for result in workload.results),
        1.5 * max(result.latency.p99 for result in workload.results),
    )
    for row, result in enumerate(workload.results):
        values = result.timings.total_ms
        shown = values if len(values) <= _MAX_POINTS else random.choice(values, _MAX_POINTS, False)
        heights = row + random.uniform(-0.3, 0.3, len(shown))
        axes.scatter(shown, heights, s=7, color=_POINTS, alpha=0.28, linewidths=0, zorder=2)
        low, high = np.percentile(values, (25, 75))
        box = {"facecolor": (1, 1, 1, 0.55), "edgecolor": _BOX, "linewidth": 1.2, "zorder": 3}
        axes.barh(row, high - low, left=low, height=0.34, **box)
        axes.plot([result.latency.p50] * 2, [row - 0.17, row + 0.17], color=_BOX, lw=2.4, zorder=4)
        axes.plot(result.latency.p99, row, "|", color=_P99, ms=15, mew=2, zorder=4)
        if beyond := int((values > limit).sum()):
            text = f"{beyond} slower, up to {milliseconds(result.latency.max)} \u2192"
            axes.text(limit, row + 0.33, text, ha="right", fontsize=8, color=_FAINT, zorder=4)
    axes.set_title(workload.title, loc="left", fontsize=11, color=_INK)
    text = "latency of a call in ms: points, p25-p75, median; p99 in red"
    medians = [result.latency.p50 for result in workload.results]
    if max(medians) > _LOG_FROM * min(medians):
        axes.set_xscale("log")
        text += " (log axis)"
        axes.set_xlim(0.9 * min(result.latency.min for result in workload.results), limit)
    else:
        axes.set_xlim(0, limit)
    axes.set_xlabel(text, fontsize=9)
    _finish_axes(axes, workload)


def _draw_stages(axes: Any, workload: WorkloadResult) -> None:
    """Draw the mean time of each stage as stacked bars, with the throughput at the end."""
    longest = max(result.latency.mean for result in workload.results)
    for row, result in enumerate(workload.results):
        left = 0.0
        for stage in STAGES:
            width = result.stages[stage].mean
            colour = _STAGE_COLOURS[stage]
            axes.barh(row, width, left=left, height=0.55, color=colour, zorder=2)
            if width > 0.12 * longest:
                axes.text(
                    left + width / 2,
                    row,
                    milliseconds(width),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if stage == "inference" else _INK,
                )
            left += width
        axes.text(left + 0.015 * longest, row, _caption(workload, result), va="center", fontsize=9)
    axes.set_title("mean time of each stage in ms", loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("stacked; with the throughput of one caller", fontsize=9)
    axes.set_xlim(0, 1.38 * longest)
    _finish_axes(axes, workload)


def _caption(workload: WorkloadResult, result: ModelResult) -> str:
    text = f"{workload.images_per_second(result):.1f} images/s"
    ratio = workload.ratios[workload.results.index(result)]
    return text if result is workload.results[0] else f"{text}\n{ratio.value:.2g}x the time"


def _finish_axes(axes: Any, workload: WorkloadResult) -> None:
    axes.set_yticks(range(len(workload.results)), [_label(one) for one in workload.results])
    axes.set_ylim(len(workload.results) - 0.5, -0.5)
    axes.grid(axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _label(result: ModelResult) -> str:
    name = result.model.name
    if len(name) > _LABEL_CHARACTERS:
        half = _LABEL_CHARACTERS // 2
        name = f"{name[: half - 2]}\u2026{name[-half:]}"
    return f"{name}\n{result.model.backend}, {result.model.device}"
