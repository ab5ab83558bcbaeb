"""The benchmark report as text for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.benchmark.machine import Machine
from deploykit.benchmark.report import BenchmarkReport, WorkloadResult
from deploykit.benchmark.timing import STAGES

_PERCENTILES = ("p50", "p90", "p95", "p99", "mean", "std", "min")


def render_report(report: BenchmarkReport) -> RenderableType:
    """Return the report as rich renderables: machine, a group of tables per workload, notes."""
    parts: list[RenderableType] = [
        Text(machine_line(report.machine)),
        Text(f"fed: {report.images}"),
    ]
    for workload in report.workloads:
        parts += [
            Text(f"\n{workload.title}", style="bold"),
            _latencies(workload),
            _stages(workload),
        ]
        if any(result.fresh is not None for result in workload.results):
            parts.append(_fresh_processes(workload))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    return Group(*parts)


def machine_line(machine: Machine) -> str:
    """Return the machine in one line."""
    parts = [f"{machine.cpu}, {machine.usable_cores:g} cores"]
    if machine.memory_mib is not None:
        parts.append(f"{machine.memory_mib / 1024:.0f} GiB")
    parts += [f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in machine.gpus]
    parts += [machine.system, machine.python]
    return ", ".join(parts)


def _table(title: str, first: str, columns: tuple[str, ...]) -> Table:
    """Return a table in which names give way in a narrow terminal, and numbers never do."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _latencies(workload: WorkloadResult) -> Table:
    table = _table("latency (ms per call)", "model", (*_PERCENTILES, "images/s"))
    for result in workload.results:
        values = [milliseconds(getattr(result.latency, name)) for name in _PERCENTILES]
        table.add_row(
            escape(result.model.name), *values, f"{workload.images_per_second(result):.1f}"
        )
    return table


def _stages(workload: WorkloadResult) -> Table:
    columns = ("pre", "inference", "post", "outside", "ratio [95 %]")
    title = "stages (median ms), time outside the inference, ratio to the first"
    table = _table(title, "model", columns)
    for number, (result, ratio) in enumerate(zip(workload.results, workload.ratios, strict=True)):
        interval = f"{ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]" if number else "1"
        table.add_row(
            escape(result.model.name),
            *(milliseconds(result.stages[stage].p50) for stage in STAGES),
            f"{result.overhead:.1%}",
            escape(interval),
        )
    return table


def _fresh_processes(workload: WorkloadResult) -> Table:
    columns = ("load s", "first\ncall ms", "memory\nMiB", "of the\nmodel", "on the\nGPU")
    table = _table("in a process of its own (memory at the peak)", "model", columns)
    for result in workload.results:
        if result.fresh is None:
            continue
        fresh = result.fresh
        sizes = (fresh.peak_mib, fresh.model_mib, fresh.device_mib)
        table.add_row(
            escape(result.model.name),
            f"{fresh.load_seconds:.2f}",
            f"{fresh.first_call_seconds * 1000:.0f}",
            *("-" if size is None else f"{size:.0f}" for size in sizes),
        )
    return table


def milliseconds(value: float) -> str:
    """Return milliseconds with three significant digits, and no fewer before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
