"""The parity report as text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploykit.parity.report import ImageParity, ModelIdentity, ParityReport

_WORST_IMAGES = 5
_EXPLAINED_LISTED = 8


def render_report(report: ParityReport) -> RenderableType:
    """Return the report as rich renderables: numbers, worst images, notes, verdict."""
    numbers = report.statistics()
    parts: list[RenderableType] = [
        Text(f"reference: {_describe(report.reference)}"),
        Text(f"candidate: {_describe(report.candidate)}, batch size {report.batch_size}"),
        _errors(report, numbers),
        _counts(numbers),
        _raw_outputs(report, numbers),
    ]
    worst = report.worst_images(_WORST_IMAGES)
    if worst:
        parts.append(_worst(report, worst))
    if numbers["explained"]:
        parts.append(_explained(report))
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    if report.passed:
        parts.append(Text("parity: PASS", style="bold green"))
    else:
        parts.append(Text("parity: FAIL", style="bold red"))
        parts += [
            Padding(Text(f"- {reason}", style="red"), (0, 0, 0, 2)) for reason in report.reasons
        ]
    return Group(*parts)


def _describe(model: ModelIdentity) -> str:
    return f"{model.name} ({model.backend}, {model.precision}, {model.lowering})"


def _errors(report: ParityReport, numbers: dict[str, Any]) -> Table:
    tolerances = report.tolerances
    table = Table(
        title=f"Matched detections with a score of {tolerances.count_threshold:g} or more",
        title_justify="left",
    )
    table.add_column("error")
    for column in ("mean", "p99", "max", "tolerance"):
        table.add_column(column, justify="right")
    for name, key, limit in (
        ("box (px of the network input)", "box_error_px", tolerances.box),
        ("box (px of the original image)", "box_error_original_px", None),
        ("score", "score_error", tolerances.score),
    ):
        errors = numbers[key]
        values = [f"{errors[column]:.2e}" for column in ("mean", "p99", "max")]
        style = "red" if limit is not None and errors["max"] > limit else None
        table.add_row(name, *values, "" if limit is None else f"{limit:g}", style=style)
    for name, key, limit, sign in (
        ("mask probability", "mask_probability_error_max", tolerances.mask_probability, 1),
        ("lowest mask IoU", "mask_iou_min", tolerances.mask_iou, -1),
        ("lowest IoU of pasted masks", "pasted_mask_iou_min", tolerances.mask_iou, -1),
    ):
        worst = numbers[key]
        if worst is not None:
            style = "red" if sign * worst > sign * limit else None
            text = f"{worst:.2e}" if sign > 0 else f"{worst:.4f}"
            table.add_row(name, "", "", text, f"{limit:g}", style=style)
    return table


def _counts(numbers: dict[str, Any]) -> Table:
    table = Table(title="Counts", title_justify="left", show_header=False)
    for justify in ("left", "right", "left", "right"):
        table.add_column(justify=justify)
    cells = [
        ("images", numbers["images"]),
        ("images with equal counts", numbers["images_with_equal_counts"]),
        ("detections of the reference", numbers["reference_detections"]),
        ("detections of the candidate", numbers["candidate_detections"]),
        ("matched", numbers["matched"]),
        ("unmatched", numbers["unmatched"]),
        ("label flips", numbers["label_flips"]),
        ("near the threshold, one side only", numbers["boundary"]),
        ("differ where rounding decides", numbers["explained"]),
        ("images that fail", numbers["images_failed"]),
    ]
    for first, second in zip(cells[::2], cells[1::2], strict=True):
        table.add_row(first[0], str(first[1]), second[0], str(second[1]))
    return table


def _raw_outputs(report: ParityReport, numbers: dict[str, Any]) -> Table:
    table = Table(title="Raw outputs, all rows, row i against row i", title_justify="left")
    table.add_column("compared")
    for column in ("identical", "num_dets", "boxes", "scores", "labels", "reordered"):
        table.add_column(column, justify="right")
    rows = [("models", numbers["raw"], numbers["images"])]
    batch = numbers["batch_invariance"]
    if batch is not None:
        rows.append((f"batch {report.batch_size} to batch 1", batch["raw"], batch["images"]))
    for name, raw, images in rows:
        boxes, scores = (
            "not finite" if raw[key] is None else f"{raw[key]:.1e}" for key in ("boxes", "scores")
        )
        identical = f"{raw['identical_images']}/{images}"
        others = (str(raw[key]) for key in ("labels", "order_changes"))
        table.add_row(name, identical, str(raw["num_dets"]), boxes, scores, *others)
    return table


def _worst(report: ParityReport, images: list[ImageParity]) -> Table:
    table = Table(title="Largest differences", title_justify="left")
    table.add_column("image", overflow="fold")
    for column in ("detections", "box (px)", "score", "unmatched", "flips"):
        table.add_column(column, justify="right")
    for image in images:
        agreement = image.agreement
        table.add_row(
            escape(_short(image.name)),
            " / ".join(map(str, agreement.counts)),
            f"{agreement.max_box_error:.2e}",
            f"{agreement.max_score_error:.2e}",
            str(len(agreement.unmatched)),
            str(len(agreement.label_flips)),
            style="red" if image.failures(report.tolerances) else None,
        )
    return table


def _explained(report: ParityReport) -> Table:
    table = Table(title="Detections that differ where rounding decides", title_justify="left")
    table.add_column("image", overflow="fold")
    for column in ("only in the", "class", "score", "box"):
        table.add_column(column, overflow="fold")
    found = [(image, item) for image in report.images for item in image.agreement.explained]
    for image, item in found[:_EXPLAINED_LISTED]:
        table.add_row(
            escape(_short(image.name)),
            item.side,
            escape(report.class_names[item.label]),
            f"{item.score:.4f}",
            ", ".join(f"{side:.1f}" for side in item.box),
        )
    if len(found) > _EXPLAINED_LISTED:
        table.add_row(f"{len(found) - _EXPLAINED_LISTED} more", "", "", "", "")
    return table


def _short(name: str) -> str:
    return Path(name).name or name
