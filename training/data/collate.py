"""Samples to the batch that a model takes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from deploykit.errors import DatasetError
from deploykit.training.data.sample import Sample
from deploykit.training.structures import Batch, Targets


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples.

    Images are turned from BGR to RGB and padded with zeros at the bottom and right to the largest
    height and width among them; ``image_sizes`` tells the sizes before that.

    Args:
        samples: One or more packed samples.

    Raises:
        DatasetError: There is no sample, an image has not three channels, or not all have
            proposals.
    """
    if not samples:
        raise DatasetError("a batch needs at least one sample")
    sizes = torch.tensor([sample.size for sample in samples], dtype=torch.int32)
    height, width = (int(edge) for edge in sizes.max(dim=0).values)
    is_float = any(sample.image.dtype != np.uint8 for sample in samples)
    images = _new_images(len(samples), height, width, torch.float32 if is_float else torch.uint8)
    view = images.numpy()
    for target, sample in zip(view, samples, strict=True):
        _put_image(sample, target)
    return Batch(
        images=images,
        image_sizes=sizes,
        targets=[_targets(sample, height, width) for sample in samples],
        metas=[sample.meta for sample in samples],
        proposals=_proposals(samples),
    )


def _new_images(count: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = (count, height, width, 3)
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    # In a worker, write straight into the shared memory that carries the batch to the main process.
    elements = count * height * width * 3
    images = torch.empty(0, dtype=dtype)
    images.set_(torch.UntypedStorage._new_shared(elements * dtype.itemsize), 0, shape)  # type: ignore
    return images


def _put_image(sample: Sample, target: np.ndarray) -> None:
    image = sample.image
    if image.ndim != 3 or image.shape[2] != 3:
        raise DatasetError(
            f"{sample.record.path}: expected an image [H, W, 3], the pipeline gave "
            f"{list(image.shape)}"
        )
    height, width = sample.size
    target[height:] = 0
    target[:height, width:] = 0
    target[:height, :width] = cv2.cvtColor(
        np.ascontiguousarray(image, dtype=target.dtype), cv2.COLOR_BGR2RGB
    )


def _proposals(samples: Sequence[Sample]) -> Tensor | None:
    """Return float32 [B, P, 4], rows past an image's own proposals are zero."""
    loaded = [each.proposals for each in samples if each.proposals is not None]
    if not loaded:
        return None
    if len(loaded) < len(samples):
        raise DatasetError("some images of a batch have proposals, others have none")
    table = torch.zeros(len(loaded), max(map(len, loaded)), 4)
    for row, boxes in zip(table, loaded, strict=True):
        row[: len(boxes)] = torch.from_numpy(np.array(boxes, np.float32))
    return table


def _targets(sample: Sample, height: int, width: int) -> Targets:
    masks = None
    if sample.masks is not None:
        bitmaps = sample.masks.place(height, width, 0, 0).to_bitmaps()
        masks = torch.from_numpy(np.ascontiguousarray(bitmaps))
    return Targets(
        boxes=torch.from_numpy(np.array(sample.boxes, np.float32)),
        labels=torch.from_numpy(np.array(sample.labels, np.int64)),
        ignored_boxes=torch.from_numpy(np.array(sample.ignored_boxes, np.float32)),
        masks=masks,
    )
