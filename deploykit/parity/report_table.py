"""The parity report as text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.parity.report import ImageParity, ParityReport

_WORST_IMAGES = 5


def render_report(report: ParityReport) -> RenderableType:
    """Return the report as rich renderables: numbers, worst images, notes, verdict."""
    parts: list[RenderableType] = [_overall(report)]
    worst = report.worst_images(_WORST_IMAGES)
    if worst:
        parts.append(_worst(report, worst))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    if report.passed:
        parts.append(Text("parity: PASS", style="bold green"))
    else:
        parts.append(Text("parity: FAIL", style="bold red"))
        parts += [Text(f"  - {reason}", style="red") for reason in report.reasons]
    return Group(*parts)


def _overall(report: ParityReport) -> Table:
    reference, candidate = report.reference, report.candidate
    table = Table(
        title=(
            f"Parity: {escape(_short(reference.name))} ({reference.backend}, "
            f"{reference.precision}) against {escape(_short(candidate.name))} "
            f"({candidate.backend}, {candidate.precision})"
        ),
        title_justify="left",
    )
    for column in ("", "mean", "p99", "max", "tolerance"):
        table.add_column(column, justify="left" if not column else "right")
    numbers, tolerances = report.statistics(), report.tolerances
    _error_row(table, "box error, network input [px]", numbers["box_error_px"], tolerances.box)
    _error_row(table, "box error, original image [px]", numbers["box_error_original_px"], None)
    _error_row(table, "score error", numbers["score_error"], tolerances.score)
    if numbers["mask_iou_min"] is not None:
        lowest = f"min {numbers['mask_iou_min']:.4f}"
        table.add_row("mask IoU", "", "", lowest, f"{tolerances.mask_iou:g}")
    table.add_section()
    counts = f"{numbers['reference_detections']} / {numbers['candidate_detections']}"
    at_least = f"score >= {tolerances.count_threshold:g}"
    table.add_row("detections, reference / candidate", "", "", counts, at_least)
    equal = f"{numbers['images_with_equal_counts']} / {numbers['images']}"
    table.add_row("images with equal counts", "", "", equal, "")
    for key, limit in (("matched", ""), ("unmatched", "0"), ("label_flips", "0"), ("boundary", "")):
        table.add_row(key.replace("_", " "), "", "", str(numbers[key]), limit)
    table.add_section()
    _raw_row(table, "raw outputs, all rows", numbers["raw"], numbers["images"])
    batch = numbers["batch_invariance"]
    if batch is not None:
        label = f"candidate, batch {report.batch_size} against batch 1"
        _raw_row(table, label, batch["raw"], batch["images"])
    return table


def _error_row(table: Table, name: str, errors: dict[str, float], limit: float | None) -> None:
    values = [f"{errors[key]:.2e}" for key in ("mean", "p99", "max")]
    style = "red" if limit is not None and errors["max"] > limit else None
    table.add_row(name, *values, "" if limit is None else f"{limit:g}", style=style)


def _raw_row(table: Table, name: str, raw: dict[str, Any], images: int) -> None:
    boxes, scores = (
        "not finite" if raw[key] is None else f"{raw[key]:.2e}" for key in ("boxes", "scores")
    )
    table.add_row(f"{name}: identical images", "", "", f"{raw['identical_images']} / {images}", "")
    table.add_row("  boxes [px], scores", "", boxes, scores, "")
    different = f"{raw['labels']}, {raw['order_changes']}"
    table.add_row("  rows with other label, other order", "", "", different, "")


def _worst(report: ParityReport, images: list[ImageParity]) -> Table:
    table = Table(title="Largest differences", title_justify="left")
    table.add_column("image", overflow="fold")
    for column in ("detections", "box [px]", "score", "unmatched", "flips"):
        table.add_column(column, justify="right")
    table.add_column("failures", overflow="fold")
    for image in images:
        agreement = image.agreement
        failures = image.failures(report.tolerances)
        table.add_row(
            escape(_short(image.name)),
            " / ".join(map(str, agreement.counts)),
            f"{agreement.max_box_error:.2e}",
            f"{agreement.max_score_error:.2e}",
            str(len(agreement.unmatched)),
            str(len(agreement.label_flips)),
            escape("; ".join(f"{one.kind}: {one.text}" for one in failures)),
            style="red" if failures else None,
        )
    return table


def _short(name: str) -> str:
    return Path(name).name or name
