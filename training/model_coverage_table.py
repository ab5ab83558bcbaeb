"""The results of a sweep over configs as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from deploykit.training.model_coverage import Coverage

LOWERINGS = ("standard", "primitive", "plugin")
_COLUMNS = ("config", "detector", "parameters", "layout", "exported", "parity")


def coverage_page(results: Mapping[str, Coverage]) -> str:
    """Return a page: the counts, what is missing most, and a table with a row per config.

    Args:
        results: By the relative path of the config.
    """
    return "\n".join(
        [
            "# Model coverage",
            "",
            "Written by `deploykit coverage`; not edited by hand.",
            "",
            *_summary(results),
            "",
            "## What is missing",
            "",
            *_missing(results),
            "",
            "## Configs",
            "",
            "`layout`: whether names and shapes of all weights are those of MMDetection's model.",
            "`exported`: the lowerings that the model was exported with. `parity`: the largest",
            "difference to PyTorch in box pixels and score.",
            "",
            _row(_COLUMNS),
            _row(["---"] * len(_COLUMNS)),
            *(_row(_cells(name, results[name])) for name in sorted(results)),
            "",
        ]
    )


def totals(results: Mapping[str, Coverage]) -> dict[str, int]:
    """Return how many configs got how far, in the order of the steps."""
    values = list(results.values())
    return {
        "configs": len(values),
        "resolved": sum(value.resolved for value in values),
        "built": sum(value.built for value in values),
        "layout compared": sum(bool(value.layout_verdict) for value in values),
        "layout equal": sum(value.layout_verdict == "equal" for value in values),
        "exported": sum("ok" in value.exported.values() for value in values),
        "exported in every lowering": sum(
            all(value.exported.get(lowering) == "ok" for lowering in LOWERINGS) for value in values
        ),
    }


def _summary(results: Mapping[str, Coverage]) -> list[str]:
    counts = totals(results)
    known = sum(bool(value.expected) for value in results.values())
    return [
        "| step | configs |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in counts.items()),
        "",
        f"For {known} of them it is known what MMDetection builds. Models that differ in nothing",
        "but training are exported once.",
    ]


def _missing(results: Mapping[str, Coverage]) -> list[str]:
    reasons = Counter(value.reason for value in results.values() if not value.built)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [
        "| configs | why |",
        "|---|---|",
        *(f"| {count} | {_escaped(reason)} |" for reason, count in ordered),
    ]


def _cells(name: str, value: Coverage) -> list[str]:
    if not value.built:
        return [name, value.detector, "", "", _escaped(value.reason), ""]
    worst = [f"{lowering}: {text}" for lowering, text in value.parity.items()]
    exported = [
        lowering if text == "ok" else f"not {lowering}: {_escaped(text)}"
        for lowering, text in value.exported.items()
    ]
    return [
        name,
        value.detector,
        f"{value.parameters / 1e6:.1f} M",
        value.layout_verdict,
        ", ".join(exported),
        "; ".join(worst),
    ]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
