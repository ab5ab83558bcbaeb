"""What happens to the pixels inside the graph: channel order, normalisation and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.registry import MODELS


@MODELS.register()
class DetDataPreprocessor(nn.Module):
    """Turn RGB images into the normalised input of a network.

    The config counts from images that were read as BGR: ``bgr_to_rgb=True`` means that the network
    wants RGB. Padding is added after normalising, as in MMEngine.

    Args:
        mean: Mean per channel in the network's channel order, 0..255, or ``None``.
        std: Standard deviation per channel, or ``None``.
        pad_size_divisor: Height and width are padded to multiples of this.
        pad_value: Value of the padding, in normalised units.
        pad_mask: Accepted for compatibility; masks are padded when a batch is collated.
        mask_pad_value: See ``pad_mask``; must be 0.
        bgr_to_rgb: The network wants RGB instead of BGR.
        rgb_to_bgr: Also swaps the channels, as in MMEngine.
        boxtype2tensor: Accepted for compatibility; boxes are always tensors.
        non_blocking: Accepted for compatibility; the trainer moves batches.
        batch_augments: Must be ``None`` or empty.

    Raises:
        ConfigError: The arguments contradict each other or ask for what is not supported.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pad_size_divisor: int = 1,
        pad_value: float = 0.0,
        pad_mask: bool = False,
        mask_pad_value: int = 0,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        boxtype2tensor: bool = True,
        non_blocking: bool = False,
        batch_augments: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ConfigError("data_preprocessor: give both mean and std, or neither")
        if mean is not None and std is not None and not _can_normalize(mean, std):
            raise ConfigError(
                "data_preprocessor: mean and std must have 1 or 3 values and std must be "
                f"positive, got mean={list(mean)} std={list(std)}"
            )
        if bgr_to_rgb and rgb_to_bgr:
            raise ConfigError("data_preprocessor: bgr_to_rgb and rgb_to_bgr exclude each other")
        if batch_augments or mask_pad_value != 0 or pad_size_divisor < 1:
            raise ConfigError(
                "data_preprocessor: batch_augments and mask_pad_value other than 0 are not "
                "supported, and pad_size_divisor must be at least 1"
            )
        self.normalizes = mean is not None
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean or ()), ("std", std or ())):
            tensor = torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        self.network_is_rgb = bgr_to_rgb or rgb_to_bgr
        self.pad_size_divisor = pad_size_divisor
        self.pad_value = float(pad_value)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Prepare a batch.

        Args:
            images: uint8 or float32 [B, H, W, 3], RGB, 0..255.
            image_sizes: int [B, 2], (height, width) of the images within the batch; what lies
                beyond becomes padding. ``None``: the images fill the batch.

        Returns:
            float32 [B, 3, H', W'], H' and W' being multiples of ``pad_size_divisor``.
        """
        pixels = images.permute(0, 3, 1, 2)
        if not self.network_is_rgb:
            pixels = pixels.flip(1)
        pixels = pixels.float()
        if self.normalizes:
            pixels = (pixels - self.mean) / self.std
        height, width = images.shape[1], images.shape[2]
        if image_sizes is not None:
            sizes = image_sizes[:, :, None, None]
            rows = torch.arange(height, device=images.device)[:, None] < sizes[:, :1]
            columns = torch.arange(width, device=images.device) < sizes[:, 1:]
            pixels = torch.where(rows & columns, pixels, self.pad_value)
        if self.pad_size_divisor > 1:
            pad = (0, -width % self.pad_size_divisor, 0, -height % self.pad_size_divisor)
            if any(pad):
                pixels = F.pad(pixels, pad, value=self.pad_value)
        return pixels


def _can_normalize(mean: Sequence[float], std: Sequence[float]) -> bool:
    return len(mean) in (1, 3) and len(std) == len(mean) and min(std) > 0
