"""The raw outputs of a model for one image: checked, and compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import BackendError
from deploykit.spec import ModelSpec

_SHAPES = {"boxes": "[B, K, 4]", "scores": "[B, K]", "labels": "[B, K]", "num_dets": "[B]"}


@dataclass(frozen=True)
class RawOutputs:
    """All K rows that a model gave for one image, as the backend returned them.

    Args:
        boxes: float32 [K, 4], xyxy in pixels of the network input.
        scores: float32 [K].
        labels: int [K].
        num_dets: How many of the rows are detections.
        masks: float32 [K, h, w], logits in the frame of each box, or ``None``.
    """

    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    num_dets: int
    masks: npt.NDArray[Any] | None = None

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name."""
        arrays = {
            "boxes": self.boxes,
            "scores": self.scores,
            "labels": self.labels,
            "num_dets": np.array(self.num_dets),
        }
        return arrays if self.masks is None else arrays | {"masks": self.masks}


def split_batch(
    outputs: Mapping[str, npt.NDArray[Any]], batch: int, model: str
) -> list[RawOutputs]:
    """Split the outputs of a batch into those of its images.

    Args:
        outputs: What ``Backend.infer`` returned.
        batch: Number of images that went in.
        model: What to call the model in messages.

    Raises:
        BackendError: Outputs are missing or have other shapes than ``predict`` gives.
    """
    missing = [name for name in _SHAPES if name not in outputs]
    if missing:
        raise BackendError(
            f"{model} gives no output named {', '.join(missing)}; it has {', '.join(outputs)}"
        )
    boxes = np.asarray(outputs["boxes"])
    rows = boxes.shape[1] if boxes.ndim == 3 else -1
    expected = {
        "boxes": (batch, rows, 4),
        "scores": (batch, rows),
        "labels": (batch, rows),
        "num_dets": (batch,),
    }
    for name, shape in expected.items():
        found = np.shape(outputs[name])
        if found != shape:
            raise BackendError(
                f"output {name} of {model} must have shape {_SHAPES[name]} with B = {batch} and "
                f"the same K in all, got {list(found)}"
            )
    masks = outputs.get("masks")
    return [
        RawOutputs(
            boxes[row],
            np.asarray(outputs["scores"])[row],
            np.asarray(outputs["labels"])[row],
            int(outputs["num_dets"][row]),
            None if masks is None else np.asarray(masks)[row],
        )
        for row in range(batch)
    ]


def output_faults(outputs: RawOutputs, spec: ModelSpec) -> list[str]:
    """Return in words what breaks the contract of ``predict`` in the outputs for one image.

    Args:
        outputs: The outputs.
        spec: The spec of the model that gave them.
    """
    faults = []
    for name, array in outputs.arrays.items():
        if not np.isfinite(array).all():
            faults.append(f"{int((~np.isfinite(array)).sum())} non-finite values in {name}")
    rows, count = len(outputs.scores), outputs.num_dets
    if rows != spec.output.max_per_img:
        faults.append(f"{rows} rows, but the spec says {spec.output.max_per_img}")
    if not 0 <= count <= rows:
        return [*faults, f"num_dets is {count}, outside 0..{rows}"]
    labels = outputs.labels[:count]
    if count and not (labels.min() >= 0 and labels.max() < len(spec.classes)):
        faults.append(
            f"labels {labels.min()}..{labels.max()} among the detections, "
            f"but there are {len(spec.classes)} classes"
        )
    if (np.diff(outputs.scores[:count].astype(np.float64)) > 0).any():
        faults.append("rows are not sorted by descending score")
    if outputs.boxes[count:].any() or outputs.scores[count:].any():
        faults.append("rows past num_dets are not zero")
    if (outputs.labels[count:] != -1).any():
        faults.append("labels past num_dets are not -1")
    return faults


@dataclass(frozen=True)
class RawDifference:
    """Differences between the raw outputs of two models, row i against row i.

    Args:
        identical: Whether every output is equal to the last bit.
        num_dets: Difference of the number of detections.
        boxes: Largest absolute difference of a box coordinate, pixels of the network input.
        scores: Largest absolute difference of a score.
        labels: Number of rows with different labels.
        masks: Largest absolute difference of a mask value, or ``None`` without masks.
    """

    identical: bool
    num_dets: int
    boxes: float
    scores: float
    labels: int
    masks: float | None = None


def raw_difference(reference: RawOutputs, candidate: RawOutputs) -> RawDifference:
    """Compare all rows of two raw outputs in the order in which they came.

    A swap of two rows with nearly equal scores, which changes no detection, shows here as a large
    box difference. When one side has more rows, the common ones are compared; non-finite values
    give NaN.
    """
    rows = min(len(reference.scores), len(candidate.scores))
    first, second = reference.arrays, candidate.arrays
    identical = first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name], equal_nan=True) for name in first
    )
    masks = None
    if masks_comparable(reference, candidate):
        masks = _largest_difference(first["masks"][:rows], second["masks"][:rows])
    return RawDifference(
        identical,
        abs(reference.num_dets - candidate.num_dets),
        _largest_difference(reference.boxes[:rows], candidate.boxes[:rows]),
        _largest_difference(reference.scores[:rows], candidate.scores[:rows]),
        int((reference.labels[:rows] != candidate.labels[:rows]).sum()),
        masks,
    )


def _largest_difference(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return float(difference.max(initial=0.0))


def masks_comparable(reference: RawOutputs, candidate: RawOutputs) -> bool:
    """Return whether both models gave masks, and of the same resolution."""
    if reference.masks is None or candidate.masks is None:
        return False
    return reference.masks.shape[1:] == candidate.masks.shape[1:]
