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
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor

    @classmethod
    def from_targets(cls, targets: Sequence[Targets]) -> PaddedTargets:
        """Pad the ground truth of the images of a batch."""
        counts = torch.tensor([len(target.labels) for target in targets])
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        mask = torch.arange(boxes.shape[1]) < counts[:, None]
        return cls(boxes, labels, mask.to(boxes.device))

    def __getitem__(self, images: slice) -> PaddedTargets:
        return PaddedTargets(self.boxes[images], self.labels[images], self.mask[images])

    def __len__(self) -> int:
        return len(self.boxes)
