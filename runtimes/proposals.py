"""Region proposals as an input of a network: scaled like their image, in a fixed number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError
from deploykit.proposals import as_table
from deploykit.runtimes.preprocess import Prepared
from deploykit.spec import InputSpec


def with_proposals(
    prepared: Prepared,
    proposals: Sequence[Any] | None = None,
    *,
    spec: InputSpec,
    model: str = "the model",
) -> Prepared:
    """Return a batch with the proposals of its images, if the model takes any.

    Args:
        prepared: The batch.
        proposals: For each image [N, 4] or, with scores, [N, 5] in pixels of the original image, or
            ``Detections``. Of more than the model takes, the best by score stay, or without scores
            the first.
        spec: The input of the model.
        model: Its name, for messages.

    Raises:
        UsageError: The model needs proposals and there are none, or the other way round; or they
            are not boxes.
    """
    rows = spec.proposals
    if not rows:
        if proposals is not None:
            raise UsageError(f"{model} finds its own regions; it takes no proposals")
        return prepared
    if proposals is None:
        raise UsageError(
            f"{model} needs the proposals of every image: detector(image, "
            f"proposals=boxes), or --proposals FILE on the command line"
        )
    if len(proposals) != len(prepared):
        raise UsageError(
            f"expected proposals for each of {len(prepared)} images, got {len(proposals)}"
        )
    table = np.zeros((len(prepared.images), rows, 4), np.float32)
    for index, entry in enumerate(proposals):
        boxes = _boxes_of(entry, index)[:rows]
        height, width = prepared.image_sizes[index].tolist()
        factors = np.tile(prepared.scale_factors[index], 2).astype(np.float32)
        limits = np.array([width, height, width, height], np.float32)
        # As the Resize of a test pipeline does it.
        table[index, : len(boxes)] = np.clip(boxes * factors, np.float32(0), limits)
    return replace(prepared, proposals=table)


def _boxes_of(entry: Any, index: int) -> npt.NDArray[np.float32]:
    """Return proposals as float32 [N, 4], best first."""
    scores = None
    if hasattr(entry, "boxes"):  # Detections
        entry, scores = entry.boxes, entry.scores
    try:
        return as_table(entry, scores)[:, :4]
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"proposals of image {index}: expected an array [N, 4] (x1, y1, x2, y2 in pixels of "
            f"the image) or [N, 5] with scores: {error}"
        ) from None
