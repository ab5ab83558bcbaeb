"""Channel attention of CSPNeXt."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels.

    Source: "RTMDet", arXiv:2212.07784; a squeeze-and-excitation block with one layer.

    Args:
        channels: Channels of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.act = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        gate = self.act(self.fc(x.mean((2, 3), keepdim=True)))
        return cast(Tensor, x * gate)
