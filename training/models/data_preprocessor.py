"""What happens to the pixels inside the graph: channel order, normalisation and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        batch_augments: ``None``, or one ``dict(type="BatchFixedSizePad", size=(height, width))``:
            while training, batches are padded to at least that size, with ``img_pad_value``.

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
        batch_augments: Sequence[Mapping[str, Any]] | None = None,
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
        if mask_pad_value != 0 or pad_size_divisor < 1:
            raise ConfigError(
                "data_preprocessor: mask_pad_value must be 0, and pad_size_divisor at least 1, got "
                f"{mask_pad_value} and {pad_size_divisor}"
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
        self.training_size, self.training_pad_value = _fixed_size(batch_augments)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Prepare a batch.

        Args:
            images: uint8 or float32 [B, H, W, 3], RGB, 0..255.
            image_sizes: int [B, 2], (height, width) of the images within the batch; what lies
                beyond becomes padding. ``None``: the images fill the batch.

        Returns:
            float32 [B, 3, H', W'], H' and W' being multiples of ``pad_size_divisor``, or while
            training at least the size of ``BatchFixedSizePad``.
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
        if self.training and self.training_size is not None:
            bottom = max(0, self.training_size[0] - pixels.shape[2])
            right = max(0, self.training_size[1] - pixels.shape[3])
            pixels = F.pad(pixels, (0, right, 0, bottom), value=self.training_pad_value)
        return pixels

    def padded_sizes(self, image_sizes: Tensor) -> Tensor:
        """Return what the sizes of images become by padding them one by one.

        Args:
            image_sizes: int [B, 2], (height, width) in pixels.

        Returns:
            int [B, 2], multiples of ``pad_size_divisor``, or while training at least the size of
            ``BatchFixedSizePad``.
        """
        divisor = self.pad_size_divisor
        sizes = torch.div(image_sizes + divisor - 1, divisor, rounding_mode="floor") * divisor
        if self.training and self.training_size is not None:
            sizes = torch.maximum(sizes, sizes.new_tensor(self.training_size))
        return sizes


def _can_normalize(mean: Sequence[float], std: Sequence[float]) -> bool:
    return len(mean) in (1, 3) and len(std) == len(mean) and min(std) > 0


def _fixed_size(
    batch_augments: Sequence[Mapping[str, Any]] | None,
) -> tuple[tuple[int, int] | None, float]:
    """Return the (height, width) that training batches are padded to, and with what."""
    if not batch_augments:
        return None, 0.0
    options = dict(batch_augments[0])
    size = options.get("size")
    if (
        len(batch_augments) != 1
        or options.get("type") != "BatchFixedSizePad"
        or not isinstance(size, list | tuple)
        or len(size) != 2
        or options.get("mask_pad_value", 0) != 0
    ):
        raise ConfigError(
            "data_preprocessor: batch_augments must be one dict(type='BatchFixedSizePad', "
            f"size=(height, width)), got {list(batch_augments)!r}"
        )
    return (int(size[0]), int(size[1])), float(options.get("img_pad_value", 0))
