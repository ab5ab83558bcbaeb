"""Run two detectors on the same images and compare what they find."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.image_io import BgrImage, as_bgr, read_image
from deploykit.parity.image_parity import Agreement, compare_outputs, detections_in_image
from deploykit.parity.raw_outputs import RawOutputs, output_faults, split_batch
from deploykit.parity.report import ImageParity, ModelIdentity, ParityReport
from deploykit.parity.rounding import RUNS, RoundingRuns
from deploykit.parity.tolerances import ParityTolerances
from deploykit.proposals import stand_in_proposals
from deploykit.spec import DimRange

if TYPE_CHECKING:
    from deploykit.runtimes.detector import Detector

Image = npt.NDArray[np.uint8] | str | os.PathLike[str]


@dataclass(frozen=True)
class _NetworkInput:
    """One image as a network takes it: uint8 [H, W, 3] RGB, its sizes, proposals [P, 4] if any."""

    pixels: npt.NDArray[np.uint8]
    image_size: npt.NDArray[np.int32]
    scale_factor: npt.NDArray[np.float64]
    proposals: npt.NDArray[np.float32] | None = None


@dataclass
class _BatchRun:
    """Runs one detector on images, collected into full batches of equal shape.

    A batch that the images do not fill is filled with mirrored copies, so that every image is
    measured at the stated batch size and beside other content than its own.
    """

    name: str
    detector: Detector
    batch_size: int
    pending: dict[tuple[int, ...], list[tuple[int, _NetworkInput]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, index: int, item: _NetworkInput) -> list[tuple[int, RawOutputs]]:
        """Take an image; return the outputs that are ready now."""
        waiting = self.pending[item.pixels.shape]
        waiting.append((index, item))
        if len(waiting) < self.batch_size:
            return []
        return self._infer(self.pending.pop(item.pixels.shape))

    def flush(self) -> list[tuple[int, RawOutputs]]:
        """Run what is still waiting."""
        groups = list(self.pending.values())
        self.pending.clear()
        return [result for group in groups for result in self._infer(group)]

    def _infer(self, group: list[tuple[int, _NetworkInput]]) -> list[tuple[int, RawOutputs]]:
        pixels = [item.pixels for _, item in group]
        sizes = [item.image_size for _, item in group]
        proposals = [item.proposals for _, item in group]
        for number in range(self.batch_size - len(group)):
            pixels.append(pixels[number][:, ::-1])
            sizes.append(sizes[number])
            proposals.append(proposals[number])
        inputs: list[npt.NDArray[Any]] = [np.stack(pixels), np.stack(sizes)]
        given = [boxes for boxes in proposals if boxes is not None]
        if given:
            inputs.append(np.stack(given))
        outputs = self.detector.backend.infer(*inputs)
        rows = split_batch(outputs, self.batch_size, self.name)
        return [(index, rows[number]) for number, (index, _) in enumerate(group)]


@dataclass
class _Record:
    """What is known so far about one image."""

    name: str
    size: tuple[int, int]
    inputs: tuple[_NetworkInput, _NetworkInput]
    outputs: dict[str, RawOutputs] = field(default_factory=dict)
    same_input: bool = field(init=False)

    def __post_init__(self) -> None:
        self.same_input = np.array_equal(self.inputs[0].pixels, self.inputs[1].pixels)


def compare(
    reference: Detector,
    candidate: Detector,
    images: Sequence[Image],
    tolerances: ParityTolerances | None = None,
    batch_size: int | None = None,
    *,
    names: tuple[str, str] = ("reference", "candidate"),
    progress: Callable[[int, int], None] | None = None,
) -> ParityReport:
    """Compare two detectors on images, detection by detection and output by output.

    Every image goes through each detector's own preprocessing and backend; the score thresholds of
    the detectors play no part. The reference runs at batch size 1 (or its smallest), the candidate
    at ``batch_size``; above 1 the candidate's results are also compared with its own at batch size
    1, since the rows of a batch must not influence one another. Where detections differ, a
    reference that can (``infer_with_noise``) runs again with rounding noise, which shows whether
    the difference is one that rounding decides.

    Args:
        reference: The detector that is taken to be right.
        candidate: The detector that is judged.
        images: Paths, or BGR uint8 [H, W, 3] arrays in pixels of the original image.
        tolerances: What may differ; ``ParityTolerances()`` by default.
        batch_size: Batch size of the candidate; 1, or the smallest it takes, by default.
        names: What to call the two models in the report.
        progress: Called with (images done, images in all).

    Returns:
        The report; ``report.passed`` is the verdict.

    Raises:
        UsageError: There are no images, the models know different classes, or the candidate does
            not take the batch size.
        MediaError: An image cannot be read.
        BackendError: A backend failed, or its outputs are not those of a detector.
    """
    if not len(images):
        raise UsageError("parity needs at least one image")
    if reference.spec.classes != candidate.spec.classes:
        raise UsageError(
            f"the models know different classes, so their detections cannot be compared: "
            f"{_listing(reference.spec.classes)} and {_listing(candidate.spec.classes)}"
        )
    tolerances = tolerances or ParityTolerances()
    batches = candidate.spec.input.batch
    batch_size = _smallest(batches) if batch_size is None else batch_size
    if batch_size not in batches:
        raise UsageError(f"the candidate takes batch size {batches}, not {batch_size}")
    runs = {
        "reference": _BatchRun(names[0], reference, _smallest(reference.spec.input.batch)),
        "candidate": _BatchRun(names[1], candidate, batch_size),
    }
    note = ""
    if batch_size > 1 and 1 in batches:
        runs["single"] = _BatchRun(names[1], candidate, 1)
    elif batch_size > 1:
        note = f"the candidate does not take batch size 1 (it takes {batches})"
    return ParityReport(
        _identity(reference, names[0]),
        _identity(candidate, names[1]),
        _compare_images(reference, candidate, images, tolerances, runs, progress),
        tolerances,
        batch_size,
        candidate.spec.classes,
        note,
    )


def _compare_images(
    reference: Detector,
    candidate: Detector,
    images: Sequence[Image],
    tolerances: ParityTolerances,
    runs: dict[str, _BatchRun],
    progress: Callable[[int, int], None] | None,
) -> tuple[ImageParity, ...]:
    records: dict[int, _Record] = {}
    done: dict[int, ImageParity] = {}

    def collect(role: str, results: list[tuple[int, RawOutputs]]) -> None:
        for index, outputs in results:
            records[index].outputs[role] = outputs
            if len(records[index].outputs) == len(runs):
                record = records.pop(index)
                done[index] = _compare_image(record, reference, candidate, tolerances)
                if progress is not None:
                    progress(len(done), len(images))

    for index, image in enumerate(images):
        pixels, name = _load(image, index)
        inputs = _prepare(reference, pixels), _prepare(candidate, pixels)
        records[index] = _Record(name, (pixels.shape[0], pixels.shape[1]), inputs)
        for role, run in runs.items():
            collect(role, run.add(index, inputs[role != "reference"]))
    for role, run in runs.items():
        collect(role, run.flush())
    return tuple(done[index] for index in range(len(images)))


def _compare_image(
    record: _Record, reference: Detector, candidate: Detector, tolerances: ParityTolerances
) -> ImageParity:
    first, second = record.inputs
    agreement, batch = _agreements(record, tolerances)
    if any(one is not None and one.is_disputed(tolerances) for one in (agreement, batch)):
        rounding = _rounding_runs(record, reference, tolerances)
        agreement, batch = _agreements(record, tolerances, rounding)
    shapes = [(item.pixels.shape[0], item.pixels.shape[1]) for item in (first, second)]
    return ImageParity(
        record.name,
        record.size,
        agreement,
        batch,
        (shapes[0], shapes[1]),
        record.same_input,
        (
            *(
                ("reference", text)
                for text in output_faults(record.outputs["reference"], reference.spec)
            ),
            *(
                ("candidate", text)
                for text in output_faults(record.outputs["candidate"], candidate.spec)
            ),
        ),
    )


def _agreements(
    record: _Record, tolerances: ParityTolerances, rounding: RoundingRuns | None = None
) -> tuple[Agreement, Agreement | None]:
    """Compare reference and candidate, and the candidate in a batch with itself alone."""
    outputs, (first, second) = record.outputs, record.inputs
    batch = None
    if "single" in outputs:
        own = second.scale_factor, second.scale_factor
        batch = compare_outputs(outputs["single"], outputs["candidate"], own, tolerances, rounding)
    factors = first.scale_factor, second.scale_factor
    return (
        compare_outputs(outputs["reference"], outputs["candidate"], factors, tolerances, rounding),
        batch,
    )


def _rounding_runs(
    record: _Record, reference: Detector, tolerances: ParityTolerances
) -> RoundingRuns | None:
    """Run the reference with rounding noise, if it can do that and explanations are wanted."""
    backend: Any = reference.backend
    if (
        not hasattr(backend, "infer_with_noise")
        or tolerances.explained == 0
        or 1 not in reference.spec.input.batch
    ):
        return None
    network_input = record.inputs[0]
    factor = network_input.scale_factor
    noisy = []
    for seed in range(RUNS):
        inputs = [network_input.pixels[None], network_input.image_size[None]]
        if network_input.proposals is not None:
            inputs.append(network_input.proposals[None])
        outputs = backend.infer_with_noise(*inputs, noise=tolerances.rounding, seed=seed)
        (row,) = split_batch(outputs, 1, "the reference with noise")
        noisy.append(detections_in_image(row, factor))
    return RoundingRuns.of(
        detections_in_image(record.outputs["reference"], factor),
        noisy,
        np.tile(factor, 2),
        tolerances,
    )


def _load(image: Image, index: int) -> tuple[BgrImage, str]:
    if isinstance(image, str | os.PathLike):
        return read_image(image), os.fspath(image)
    name = f"image {index}"
    return as_bgr(image, name), name


def _prepare(detector: Detector, image: BgrImage) -> _NetworkInput:
    stand_ins = stand_in_proposals(detector.spec.input, [image])
    prepared: Any = detector.prepare([image], *stand_ins)
    return _NetworkInput(
        prepared.images[0],
        np.asarray(prepared.image_sizes, np.int32)[0],
        np.asarray(prepared.scale_factors, np.float64)[0],
        prepared.proposals[0] if stand_ins else None,
    )


def _identity(detector: Detector, name: str) -> ModelIdentity:
    spec = detector.spec
    return ModelIdentity(name, detector.backend.name, spec.precision, spec.lowering)


def _smallest(batches: DimRange) -> int:
    return 1 if 1 in batches else batches.min


def _listing(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} ({', '.join(classes[:3])}{', ...' * (len(classes) > 3)})"
