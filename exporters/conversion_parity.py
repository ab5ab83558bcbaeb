"""The parity check that is part of every conversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from deploykit.exporters.parity_images import Image
from deploykit.parity import ParityReport, ParityTolerances, compare
from deploykit.proposals import stand_in_proposals
from deploykit.runtimes.backend import Backend
from deploykit.runtimes.detector import Detector
from deploykit.runtimes.sources import load_image
from deploykit.spec import InputSpec

# A batch shows whether rows influence one another; larger ones only take time and memory.
LARGEST_BATCH = 8
# Images at sizes other than the one that images are prepared to by default.
IMAGES_AT_EXTREMES = 3

Size = tuple[int, int]
Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class ParityRun:
    """One configuration that the two models are compared in.

    Args:
        size: (height, width) of the network input, or ``None`` for the artefact's own preparation.
        batch: Batch size of the exported model.
        images: How many of the images are used.
    """

    size: Size | None
    batch: int
    images: int

    @property
    def size_text(self) -> str:
        """The size in words; ``pipeline`` is what the test pipeline makes of an image."""
        return "pipeline" if self.size is None else f"{self.size[0]}x{self.size[1]}"

    def __str__(self) -> str:
        return f"input {self.size_text}, batch {self.batch}"


@dataclass(frozen=True)
class ConversionParity:
    """The outcome of all runs.

    Args:
        runs: What was compared, with its report, in order.
        images: Where the images come from, in words.
    """

    runs: tuple[tuple[ParityRun, ParityReport], ...]
    images: str

    @property
    def passed(self) -> bool:
        """Whether every run passed."""
        return all(report.passed for _, report in self.runs)

    @property
    def nothing_found(self) -> bool:
        """Whether neither model detected anything at the artefact's own size."""
        return not _found_anything(self.runs[0][1])

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the check fails, run by run."""
        return tuple(f"{run}: {reason}" for run, report in self.runs for reason in report.reasons)

    def summary(self) -> dict[str, Any]:
        """Return the record that goes into the spec of the artefact."""
        runs = [
            {"input_size": run.size and list(run.size)} | report.summary()
            for run, report in self.runs
        ]
        return {
            "passed": self.passed,
            "image_source": self.images,
            "max_box_error_px": max(run["max_box_error_px"] for run in runs),
            "max_score_error": max(run["max_score_error"] for run in runs),
            "max_mask_probability_error": max(
                (error for run in runs if (error := run["max_mask_probability_error"]) is not None),
                default=None,
            ),
            "min_pasted_mask_iou": min(
                (iou for run in runs if (iou := run["min_pasted_mask_iou"]) is not None),
                default=None,
            ),
            "explained": sum(run["explained"] for run in runs),
            "runs": runs,
        }


def plan_runs(spec: InputSpec, images: int) -> list[ParityRun]:
    """Choose the sizes and batch sizes at which a model is compared.

    All images as the artefact prepares them, at its optimal batch; with dynamic sizes a few at the
    smallest (in the largest batch), the optimal and the largest size; with a dynamic batch a few in
    the largest. Batches are cut off at ``LARGEST_BATCH``. A batch above 1 is compared with batch 1
    of the same model as well.

    Args:
        spec: The input of the exported model.
        images: Number of images.
    """
    few = min(images, IMAGES_AT_EXTREMES)
    usual, largest = min(spec.batch.opt, LARGEST_BATCH), min(spec.batch.max, LARGEST_BATCH)
    if spec.batch.is_static:
        usual = largest = spec.batch.opt  # whatever it is, it takes no other
    runs = [ParityRun(None, usual, images)]
    sizes = [(spec.height.min, spec.width.min), (spec.height.opt, spec.width.opt)]
    sizes.append((spec.height.max, spec.width.max))
    if len(set(sizes)) == 1:
        if largest > usual:
            runs.append(ParityRun(None, largest, few))
        return runs
    batches = (largest, usual, spec.batch.min)
    for size, batch in zip(sizes, batches, strict=True):
        if size != spec.pad_size or batch != usual:
            runs.append(ParityRun(size, batch, few))
    return list(dict.fromkeys(runs))  # the optimal size may be the largest


def measure(
    reference: Backend,
    candidate: Backend,
    images: Sequence[Image],
    source: str,
    tolerances: ParityTolerances,
    names: tuple[str, str],
    step: Step = nullcontext,
) -> ConversionParity:
    """Compare an exported model with the one it was made from.

    Args:
        reference: The original model; its spec has the input size of the exported one, so that both
            are given the same bytes.
        candidate: The exported model.
        images: What to detect in; at least one.
        source: Where the images come from, in words.
        tolerances: What may differ. Where the model is nowhere sure enough to reach the count
            threshold, half of its best score takes its place.
        names: What to call the two models.
        step: Called with a name of each run, which happens inside the context it returns.

    Raises:
        BackendError: A backend failed.
        MediaError: An image cannot be read.
    """
    usual, *others = plan_runs(candidate.spec.input, len(images))
    with step(f"parity, {usual}"):
        report = _compare(reference, candidate, images, usual, tolerances, names)
        if not _found_anything(report):
            best = _best_score(reference, images)
            if 0 < best < tolerances.count_threshold:
                tolerances = replace(tolerances, count_threshold=best / 2)
                report = _compare(reference, candidate, images, usual, tolerances, names)
    runs = [(usual, report)]
    # Where no object is recognisable any more, both models finding nothing is agreement.
    tolerances = replace(tolerances, allow_empty=True)
    for run in others:
        with step(f"parity, {run}"):
            runs.append((run, _compare(reference, candidate, images, run, tolerances, names)))
    return ConversionParity(tuple(runs), source)


def _compare(
    reference: Backend,
    candidate: Backend,
    images: Sequence[Image],
    run: ParityRun,
    tolerances: ParityTolerances,
    names: tuple[str, str],
) -> ParityReport:
    return compare(
        Detector(None, backend=reference, input_size=run.size),
        Detector(None, backend=candidate, input_size=run.size),
        images[: run.images],
        tolerances,
        run.batch,
        names=names,
    )


def _found_anything(report: ParityReport) -> bool:
    return any(sum(image.agreement.counts) for image in report.images)


def _best_score(backend: Backend, images: Sequence[Image]) -> float:
    detector = Detector(None, backend=backend)
    best = 0.0
    for image in images[:IMAGES_AT_EXTREMES]:
        loaded = [load_image(image)]
        prepared = detector.prepare(loaded, *stand_in_proposals(backend.spec.input, loaded))
        scores = backend.infer(*prepared.inputs)["scores"]
        best = max(best, float(scores.max(initial=0)))
    return best
