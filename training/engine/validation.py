"""``Validator``: measures a model while it trains, by all processes together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit.detections import Detections
from deploykit.errors import ConfigError
from deploykit.spec import InputSpec, ModelSpec
from deploykit.training.engine import distributed
from deploykit.training.evaluation import Metric, detections_of_batch
from deploykit.training.structures import Batch

if TYPE_CHECKING:
    from deploykit.training.data.loader import DetectionLoader
    from deploykit.training.models import BaseDetector

_META_KEYS = ("img_id", "ori_shape", "scale_factor")


class Validator:
    """Measures a model on a data set; images are prepared in the way that ``Detector`` does.

    Args:
        dataloader: Batches with ``img_id``, ``ori_shape`` and ``scale_factor`` in their metas.
        metrics: Metrics, bound to the data set.
        spec: Input and classes of the model.
    """

    def __init__(
        self, dataloader: DetectionLoader, metrics: Sequence[Metric], spec: ModelSpec
    ) -> None:
        self.dataloader, self.metrics, self.spec = dataloader, list(metrics), spec

    def run(
        self,
        model: BaseDetector,
        device: torch.device,
        on_batch: Callable[[int, Batch, list[Detections]], None] | None = None,
    ) -> dict[str, float]:
        """Predict on all images and compute the metrics.

        Args:
            model: The model in eval mode, on ``device``.
            device: Its device.
            on_batch: Called with the index of the batch, the batch and its detections.

        Returns:
            The metrics by name, the same in every process.

        Raises:
            ConfigError: The pipeline does not keep what is needed to map boxes back.
        """
        for metric in self.metrics:
            metric.reset()
        seen: set[int | str] = set()
        for index, batch in enumerate(self.dataloader):
            found = self.detect(model, batch, device)
            for meta, detections in zip(batch.metas, found, strict=True):
                if meta["img_id"] not in seen:  # samplers repeat images to share them out evenly
                    seen.add(meta["img_id"])
                    for metric in self.metrics:
                        metric.add(meta["img_id"], detections)
            if on_batch is not None:
                on_batch(index, batch, found)
        numbers: dict[str, float] = {}
        for metric in self.metrics:
            for part in distributed.gather(metric.collected())[1:]:
                metric.merge(part)
            if distributed.rank() == 0:
                numbers |= metric.compute()
        return dict(distributed.broadcast(numbers))

    def detect(self, model: BaseDetector, batch: Batch, device: torch.device) -> list[Detections]:
        """Return the detections of each image of a batch, in pixels of the original image.

        Args:
            model: The model in eval mode, on ``device``.
            batch: Images and metas.
            device: The device of the model.

        Raises:
            ConfigError: The metas lack what is needed to map boxes back.
        """
        missing = [key for key in _META_KEYS if key not in batch.metas[0]]
        if missing:
            raise ConfigError(
                f"the validation pipeline's PackDetInputs must keep {', '.join(missing)} in its "
                "meta_keys, so that boxes can be mapped back to the image"
            )
        found: dict[int, Detections] = {}
        for rows, part in same_size_parts(batch, self.spec.input):
            inputs = self._inputs(part, device)
            with torch.inference_mode():
                outputs = model.predict(*inputs)
            found.update(
                zip(rows, detections_of_batch(outputs, part, self.spec.classes), strict=True)
            )
        return [found[row] for row in range(len(batch.metas))]

    def _inputs(self, batch: Batch, device: torch.device) -> list[Any]:
        """Return the arguments of ``predict``."""
        sizes = batch.image_sizes.to(device) if self.spec.input.image_sizes_input else None
        inputs = [batch.images.to(device), sizes]
        if self.spec.input.proposals:
            if batch.proposals is None:
                raise ConfigError(
                    "the model needs proposals: give the validation set a proposal_file and its "
                    "pipeline dict(type='LoadProposals')"
                )
            inputs.append(batch.proposals.to(device))
        return inputs


def same_size_parts(batch: Batch, spec: InputSpec) -> Iterator[tuple[list[int], Batch]]:
    """Split a batch into parts of images of one size, without the padding between them.

    An image must not feel how large the others of its batch are. The canvas of a part is the size
    of its images rounded up to the divisor, as a runtime makes it for a single image.

    Args:
        batch: A batch that was padded to its largest image.
        spec: The divisor and the value of the padding.

    Yields:
        Rows of the batch, and the part that they make (without targets).
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, (height, width) in enumerate(batch.image_sizes.tolist()):
        groups[height, width].append(row)
    for (height, width), rows in groups.items():
        images = batch.images[rows, :height, :width]
        if images.dtype != torch.uint8:
            images = images.round().clamp(0, 255).to(torch.uint8)
        images = _padded(images, -height % spec.divisor, -width % spec.divisor, spec.pad_value)
        metas = [batch.metas[row] for row in rows]
        proposals = None if batch.proposals is None else batch.proposals[rows]
        yield rows, Batch(images.contiguous(), batch.image_sizes[rows], [], metas, proposals)


def _padded(images: Tensor, bottom: int, right: int, colour: Sequence[int]) -> Tensor:
    if not (bottom or right):
        return images
    channels = [
        F.pad(images[..., channel], (0, right, 0, bottom), value=value)
        for channel, value in enumerate(colour)
    ]
    return torch.stack(channels, dim=-1)
