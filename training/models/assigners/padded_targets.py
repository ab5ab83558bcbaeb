"""Ground truth of a batch as tensors of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deploykit.training.structures import Targets


@dataclass(frozen=True)
class PaddedTargets:
    """Ground truth of B images, padded to the G objects of the fullest one.

    Args:
        boxes: float32 [B, G, 4], xyxy in pixels of the network input; zeros in the padding.
        labels: int64 [B, G]; zeros in the padding.
        mask: bool [B, G], ``True`` where there is an object.
        ignored_boxes: float32 [B, M, 4], regions to be ignored, likewise; ``None`` for none.
        ignored_mask: bool [B, M], ``True`` where there is such a region.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor
    ignored_boxes: Tensor | None = None
    ignored_mask: Tensor | None = None

    @classmethod
    def from_targets(cls, targets: Sequence[Targets]) -> PaddedTargets:
        """Pad the ground truth of the images of a batch."""
        boxes, mask = _pad([target.boxes for target in targets])
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        ignored_boxes, ignored_mask = _pad([target.ignored_boxes for target in targets])
        return cls(boxes, labels, mask, ignored_boxes, ignored_mask)

    def __getitem__(self, images: slice) -> PaddedTargets:
        ignored_boxes = None if self.ignored_boxes is None else self.ignored_boxes[images]
        ignored_mask = None if self.ignored_mask is None else self.ignored_mask[images]
        return PaddedTargets(
            self.boxes[images],
            self.labels[images],
            self.mask[images],
            ignored_boxes,
            ignored_mask,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> PaddedTargets:
        """Return the targets on ``device``."""
        return PaddedTargets(
            self.boxes.to(device),
            self.labels.to(device),
            self.mask.to(device),
            None if self.ignored_boxes is None else self.ignored_boxes.to(device),
            None if self.ignored_mask is None else self.ignored_mask.to(device),
        )


def _pad(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return boxes [B, N, 4] padded with zeros, and bool [B, N] that tells the real ones."""
    padded = pad_sequence(list(boxes), batch_first=True)
    counts = torch.tensor([len(image) for image in boxes])
    mask = torch.arange(padded.shape[1]) < counts[:, None]
    return padded, mask.to(padded.device)
