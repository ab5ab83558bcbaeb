"""Cross stage partial layers of CSPDarknet and CSPNeXt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.training.models.layers.channel_attention import ChannelAttention
from deploykit.training.models.layers.conv_module import (
    ConvModule,
    DepthwiseSeparableConvModule,
    conv_type,
)


class DarknetBottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution with a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Hidden channels as a fraction of ``out_channels``.
        add_identity: Whether to add the input, where the channels agree.
        use_depthwise: Whether the second convolution is depthwise separable.
        conv_cfg: As in ``ConvModule``.
        norm_cfg: As in ``ConvModule``.
        act_cfg: As in ``ConvModule``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: float = 0.5,
        add_identity: bool = True,
        use_depthwise: bool = False,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        hidden = int(out_channels * expansion)
        self.conv1 = ConvModule(in_channels, hidden, 1, **shared)
        self.conv2 = conv_type(use_depthwise)(hidden, out_channels, 3, padding=1, **shared)
        self.add_identity = add_identity and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        out = self.conv2(self.conv1(x))
        return cast(Tensor, out + x if self.add_identity else out)


class CSPNeXtBlock(nn.Module):
    """A 3x3 convolution and a large-kernel depthwise separable one with a shortcut.

    Source: "RTMDet", arXiv:2212.07784, section 3.2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Hidden channels as a fraction of ``out_channels``.
        add_identity: Whether to add the input, where the channels agree.
        use_depthwise: Whether the first convolution is depthwise separable too.
        kernel_size: Kernel size of the second convolution.
        conv_cfg: As in ``ConvModule``.
        norm_cfg: As in ``ConvModule``.
        act_cfg: As in ``ConvModule``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: float = 0.5,
        add_identity: bool = True,
        use_depthwise: bool = False,
        kernel_size: int = 5,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        hidden = int(out_channels * expansion)
        self.conv1 = conv_type(use_depthwise)(in_channels, hidden, 3, padding=1, **shared)
        self.conv2 = DepthwiseSeparableConvModule(
            hidden, out_channels, kernel_size, padding=kernel_size // 2, **shared
        )
        self.add_identity = add_identity and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        out = self.conv2(self.conv1(x))
        return cast(Tensor, out + x if self.add_identity else out)


class CSPLayer(nn.Module):
    """Half of the channels through a stack of blocks, the other half around it.

    Source: Wang et al., "CSPNet", arXiv:1911.11929.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expand_ratio: Channels of each half as a fraction of ``out_channels``.
        num_blocks: Number of blocks.
        add_identity: Whether the blocks have shortcuts.
        use_depthwise: Whether the blocks use depthwise separable convolutions.
        use_cspnext_block: ``CSPNeXtBlock`` instead of ``DarknetBottleneck``.
        channel_attention: Whether to gate the channels before the last convolution.
        conv_cfg: As in ``ConvModule``.
        norm_cfg: As in ``ConvModule``.
        act_cfg: As in ``ConvModule``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expand_ratio: float = 0.5,
        num_blocks: int = 1,
        add_identity: bool = True,
        use_depthwise: bool = False,
        use_cspnext_block: bool = False,
        channel_attention: bool = False,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        block = CSPNeXtBlock if use_cspnext_block else DarknetBottleneck
        half = int(out_channels * expand_ratio)
        self.main_conv = ConvModule(in_channels, half, 1, **shared)
        self.short_conv = ConvModule(in_channels, half, 1, **shared)
        self.final_conv = ConvModule(2 * half, out_channels, 1, **shared)
        self.blocks = nn.Sequential(
            *(
                block(half, half, 1.0, add_identity, use_depthwise, **shared)
                for _ in range(num_blocks)
            )
        )
        self.attention = ChannelAttention(2 * half) if channel_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        out = torch.cat((self.blocks(self.main_conv(x)), self.short_conv(x)), dim=1)
        if self.attention is not None:
            out = self.attention(out)
        return cast(Tensor, self.final_conv(out))
