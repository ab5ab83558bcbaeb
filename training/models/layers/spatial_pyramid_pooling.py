"""Spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import ConvModule


class SPPBottleneck(nn.Module):
    """Concatenate max-poolings of growing size between two 1x1 convolutions.

    Source: He et al., "Spatial Pyramid Pooling", arXiv:1406.4729, as used in YOLOv3-SPP.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_sizes: Odd sizes of the max-poolings (stride 1), in growing order.
        conv_cfg: As in ``ConvModule``.
        norm_cfg: As in ``ConvModule``.
        act_cfg: As in ``ConvModule``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int] = (5, 9, 13),
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(kernel_sizes)
        if not sizes or sizes != tuple(sorted(sizes)) or any(k < 1 or k % 2 == 0 for k in sizes):
            raise ConfigError(f"SPP kernel sizes must be odd and in growing order, got {sizes}")
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        hidden = in_channels // 2
        self.kernel_sizes = sizes
        self.conv1 = ConvModule(in_channels, hidden, 1, **shared)
        self.conv2 = ConvModule(hidden * (len(sizes) + 1), out_channels, 1, **shared)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        pooled = [self.conv1(x)]
        reached = 1
        for size in self.kernel_sizes:
            # A max over k pixels of maxima over m pixels is the max over k + m - 1, so each
            # pooling continues from the one before instead of starting anew.
            step = size - reached + 1
            pooled.append(F.max_pool2d(pooled[-1], step, stride=1, padding=step // 2))
            reached = size
        return cast(Tensor, self.conv2(torch.cat(pooled, dim=1)))
