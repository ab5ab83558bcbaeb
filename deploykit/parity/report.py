"""``ParityReport``: the numbers of a comparison and the verdict on them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.atomic_file import write_atomic
from deploykit.parity.image_parity import Agreement, Failure, LoneDetection, Side
from deploykit.parity.matching import Floats
from deploykit.parity.tolerances import FEW_EXPLAINED, ParityTolerances

if TYPE_CHECKING:
    from rich.console import RenderableType

PARITY_REPORT_VERSION = 1


@dataclass(frozen=True)
class ModelIdentity:
    """Which model was compared.

    Args:
        name: File name or what the caller calls it.
        backend: Name of the inference backend.
        precision: Precision that the spec states.
        lowering: Lowering that the spec states.
    """

    name: str
    backend: str
    precision: str
    lowering: str


@dataclass(frozen=True, eq=False)
class ImageParity:
    """The comparison of one image.

    Args:
        name: Path of the image, or its number for an array.
        size: (height, width) of the original image.
        agreement: Reference against candidate.
        batch: The candidate's own result in a batch against that at batch size 1, if measured.
        input_shapes: (height, width) of the network input of (reference, candidate).
        same_input: Whether both models were given the same bytes.
        faults: What breaks the contract of ``predict``, per model.
    """

    name: str
    size: tuple[int, int]
    agreement: Agreement
    batch: Agreement | None
    input_shapes: tuple[tuple[int, int], tuple[int, int]]
    same_input: bool
    faults: tuple[tuple[Side, str], ...]

    def failures(self, tolerances: ParityTolerances) -> list[Failure]:
        """Return everything that is out of tolerance in this image."""
        found = [
            Failure(f"malformed outputs of the {side}", text, 1.0) for side, text in self.faults
        ]
        found += self.agreement.failures(tolerances)
        if self.batch is not None:
            found += [
                Failure(f"batch against batch 1: {one.kind}", one.text, one.badness)
                for one in self.batch.failures(tolerances)
            ]
        return found


@dataclass(frozen=True)
class ErrorStatistics:
    """Mean, 99th percentile and maximum of absolute errors; zeros when nothing was compared."""

    mean: float
    p99: float
    max: float

    @classmethod
    def of(cls, parts: Iterable[Floats]) -> ErrorStatistics:
        """Summarise the values of several arrays."""
        values = np.concatenate([np.zeros(0), *parts])
        if not len(values):
            return cls(0.0, 0.0, 0.0)
        return cls(float(values.mean()), float(np.percentile(values, 99)), float(values.max()))


@dataclass(frozen=True, eq=False)
class ParityReport:
    """What ``deploykit.parity.compare`` found.

    Args:
        reference: The model that is taken to be right.
        candidate: The model that is judged.
        images: One entry per image, in the order given.
        tolerances: What the verdict is based on.
        batch_size: Batch size at which the candidate ran.
        class_names: Names of the classes.
        batch_note: Why batch invariance was not measured, or empty.
    """

    reference: ModelIdentity
    candidate: ModelIdentity
    images: tuple[ImageParity, ...]
    tolerances: ParityTolerances
    batch_size: int
    class_names: tuple[str, ...]
    batch_note: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is no reason to fail."""
        return not self.reasons

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why the comparison fails, in words; empty when it passes."""
        reasons = []
        agreements = [image.agreement for image in self.images]
        counted = sum(sum(agreement.counts) for agreement in agreements)
        compared = sum(
            len(one.score_errors) + len(one.unmatched) + len(one.label_flips) for one in agreements
        )
        if counted and not compared:
            reasons.append("nothing compared: every detection is a boundary case")
        if not counted and not self.tolerances.allow_empty:
            reasons.append(
                f"nothing compared: neither model has a detection with a score of "
                f"{self.tolerances.count_threshold:g} or more in {_images(len(self.images))}"
            )
        reasons += self._too_much_explained()
        by_kind: dict[str, list[tuple[int, Failure]]] = defaultdict(list)
        for index, image in enumerate(self.images):
            for failure in image.failures(self.tolerances):
                by_kind[failure.kind].append((index, failure))
        for kind, found in by_kind.items():
            index, worst = max(found, key=lambda entry: entry[1].badness)
            images = _images(len({entry[0] for entry in found}))
            where = f"{worst.text} in {self.images[index].name}"
            reasons.append(f"{kind}{self._limit(kind)} in {images}: {where}")
        return tuple(reasons)

    def _too_much_explained(self) -> list[str]:
        """Return what to object to where rounding decides more than a few detections."""
        reasons = []
        runs = {
            "": [image.agreement for image in self.images],
            "batch against batch 1: ": [image.batch for image in self.images if image.batch],
        }
        for name, agreements in runs.items():
            explained = sum(len(agreement.explained) for agreement in agreements)
            counted = sum(sum(agreement.counts) for agreement in agreements)
            if explained > max(FEW_EXPLAINED, self.tolerances.explained * counted):
                reasons.append(
                    f"{name}{explained} of {counted} detections differ where rounding decides, "
                    f"more than {100 * self.tolerances.explained:g} % of them"
                )
        return reasons

    def _limit(self, kind: str) -> str:
        limits = {
            "box error": f" above {self.tolerances.box:g} px",
            "score error": f" above {self.tolerances.score:g}",
            "mask IoU": f" below {self.tolerances.mask_iou:g}",
            "mask probability error": f" above {self.tolerances.mask_probability:g}",
        }
        return next((text for name, text in limits.items() if kind.endswith(name)), "")

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know although it does not decide the verdict."""
        notes = []
        other_input = [image for image in self.images if not image.same_input]
        if other_input:
            first = other_input[0]
            shapes = " and ".join(f"{height}x{width}" for height, width in first.input_shapes)
            notes.append(
                f"the models were given different network inputs for {_images(len(other_input))} "
                f"({shapes} for {first.name}): the preprocessing is part of the difference"
            )
        if self.boundary:
            notes.append(
                f"{len(self.boundary)} boundary cases: detections that only one model counts, "
                f"within {self.tolerances.margin:g} of the count threshold"
            )
        explained = sum(len(image.agreement.explained) for image in self.images)
        explained += sum(len(image.batch.explained) for image in self.images if image.batch)
        if explained:
            notes.append(
                f"{explained} detections differ where rounding decides: under relative noise of "
                f"{self.tolerances.rounding:g} in its layers the reference has them or not"
            )
        if self.batch_note:
            notes.append(f"batch invariance was not measured: {self.batch_note}")
        return tuple(notes)

    @property
    def boundary(self) -> tuple[LoneDetection, ...]:
        """Detections near the count threshold that only one model counts."""
        return tuple(item for image in self.images for item in image.agreement.boundary)

    @property
    def equal_counts(self) -> int:
        """Number of images in which both models have the same number of detections."""
        return sum(len(set(image.agreement.counts)) == 1 for image in self.images)

    def worst_images(self, limit: int = 5) -> list[ImageParity]:
        """Return the images that agree least, worst first; without those that are identical."""
        differing = [image for image in self.images if not image.agreement.raw.identical]
        return sorted(
            differing,
            key=lambda image: (
                bool(image.failures(self.tolerances)),
                *image.agreement.severity(self.tolerances),
            ),
            reverse=True,
        )[:limit]

    def statistics(self) -> dict[str, Any]:
        """Return the overall numbers as plain values (see ``docs/parity.md`` for each key)."""
        agreements = [image.agreement for image in self.images]
        return {
            "images": len(self.images),
            "images_with_equal_counts": self.equal_counts,
            "images_failed": sum(bool(image.failures(self.tolerances)) for image in self.images),
            "reference_detections": sum(agreement.counts[0] for agreement in agreements),
            "candidate_detections": sum(agreement.counts[1] for agreement in agreements),
            "matched": sum(len(agreement.box_errors) for agreement in agreements),
            "unmatched": sum(len(agreement.unmatched) for agreement in agreements),
            "explained": sum(len(agreement.explained) for agreement in agreements),
            "boundary": len(self.boundary),
            "label_flips": sum(len(agreement.label_flips) for agreement in agreements),
            "box_error_px": _statistics(agreement.box_errors for agreement in agreements),
            "box_error_original_px": _statistics(
                agreement.box_errors_original for agreement in agreements
            ),
            "score_error": _statistics(agreement.score_errors for agreement in agreements),
            **_mask_statistics(agreements),
            "raw": _raw_statistics(agreements),
            "batch_invariance": self._batch_statistics(),
        }

    def _batch_statistics(self) -> dict[str, Any] | None:
        agreements = [image.batch for image in self.images if image.batch is not None]
        if not agreements:
            return None
        return {
            "identical_images": sum(agreement.raw.identical for agreement in agreements),
            "images": len(agreements),
            "failed_images": sum(bool(one.failures(self.tolerances)) for one in agreements),
            "explained": sum(len(one.explained) for one in agreements),
            "max_box_error_px": ErrorStatistics.of(one.box_errors for one in agreements).max,
            "max_score_error": ErrorStatistics.of(one.score_errors for one in agreements).max,
            "raw": _raw_statistics(agreements),
        }

    def summary(self) -> dict[str, Any]:
        """Return the verdict and the main numbers as a small flat dict, for a spec's ``parity``."""
        numbers = self.statistics()
        batch = numbers["batch_invariance"]
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "reference": f"{self.reference.name} ({self.reference.backend})",
            "candidate": f"{self.candidate.name} ({self.candidate.backend})",
            "images": numbers["images"],
            "batch_size": self.batch_size,
            "matched": numbers["matched"],
            "unmatched": numbers["unmatched"],
            "explained": numbers["explained"],
            "boundary": numbers["boundary"],
            "label_flips": numbers["label_flips"],
            "max_box_error_px": numbers["box_error_px"]["max"],
            "max_score_error": numbers["score_error"]["max"],
            "max_mask_probability_error": numbers["mask_probability_error_max"],
            "min_mask_iou": numbers["mask_iou_min"],
            "min_pasted_mask_iou": numbers["pasted_mask_iou_min"],
            "max_batch_box_error_px": None if batch is None else batch["max_box_error_px"],
            "max_batch_score_error": None if batch is None else batch["max_score_error"],
            "tolerances": dataclasses.asdict(self.tolerances),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain values (the layout is in ``docs/parity.md``)."""
        return {
            "version": PARITY_REPORT_VERSION,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "reference": dataclasses.asdict(self.reference),
            "candidate": dataclasses.asdict(self.candidate),
            "batch_size": self.batch_size,
            "class_names": list(self.class_names),
            "tolerances": dataclasses.asdict(self.tolerances) | {"margin": self.tolerances.margin},
            "overall": self.statistics(),
            "images": [self._image_dict(image) for image in self.images],
        }

    def _image_dict(self, image: ImageParity) -> dict[str, Any]:
        agreement = image.agreement
        return {
            "name": image.name,
            "size": list(image.size),
            "failures": [
                f"{failure.kind}: {failure.text}" for failure in image.failures(self.tolerances)
            ],
            "same_input": image.same_input,
            "input_shapes": [list(shape) for shape in image.input_shapes],
            "reference_detections": agreement.counts[0],
            "candidate_detections": agreement.counts[1],
            "matched": len(agreement.box_errors),
            "unmatched": [dataclasses.asdict(item) for item in agreement.unmatched],
            "explained": [dataclasses.asdict(item) for item in agreement.explained],
            "boundary": [dataclasses.asdict(item) for item in agreement.boundary],
            "label_flips": [dataclasses.asdict(item) for item in agreement.label_flips],
            "box_error_px": _statistics([agreement.box_errors]),
            "box_error_original_px": _statistics([agreement.box_errors_original]),
            "score_error": _statistics([agreement.score_errors]),
            **_mask_statistics([agreement]),
            "raw": _raw_statistics([agreement]),
            "batch_raw": None if image.batch is None else _raw_statistics([image.batch]),
            "batch_explained": [
                dataclasses.asdict(item) for item in (image.batch.explained if image.batch else ())
            ],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON; the file appears whole or not at all."""
        write_atomic(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def render(self) -> RenderableType:
        """Return the report for ``rich.print``: the numbers, the worst images, the verdict."""
        from deploykit.parity.report_table import render_report

        return render_report(self)


def _statistics(parts: Iterable[Floats]) -> dict[str, float]:
    return dataclasses.asdict(ErrorStatistics.of(parts))


def _mask_statistics(agreements: list[Agreement]) -> dict[str, float | None]:
    """Return the worst agreement of masks; ``None`` where no masks were compared."""
    masks = [one.masks for one in agreements if one.masks is not None and len(one.masks.ious)]
    return {
        "mask_probability_error_max": max(
            (one.max_probability_error for one in masks), default=None
        ),
        "mask_iou_min": min((one.min_iou for one in masks), default=None),
        "pasted_mask_iou_min": min((one.min_pasted_iou for one in masks), default=None),
    }


def _raw_statistics(agreements: list[Agreement]) -> dict[str, Any]:
    """Return the largest raw differences; ``None`` where a value is not finite."""
    masks = [one.raw.masks for one in agreements if one.raw.masks is not None]
    return {
        "identical_images": sum(one.raw.identical for one in agreements),
        "num_dets": max((one.raw.num_dets for one in agreements), default=0),
        "boxes": _largest([one.raw.boxes for one in agreements]),
        "scores": _largest([one.raw.scores for one in agreements]),
        "labels": sum(one.raw.labels for one in agreements),
        "masks": _largest(masks) if masks else None,
        "order_changes": sum(one.order_changes for one in agreements),
    }


def _largest(values: list[float]) -> float | None:
    return max(values, default=0.0) if all(math.isfinite(value) for value in values) else None


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
