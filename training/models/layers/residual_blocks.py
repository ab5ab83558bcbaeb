"""Residual blocks of ResNet and ResNeXt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deploykit.training.models.layers.conv_module import check_conv_cfg
from deploykit.training.models.layers.normalization import build_norm

Style = Literal["pytorch", "caffe"]


class ResidualBlock(nn.Module):
    """A branch of convolutions around which the input goes, and a ReLU after their sum.

    Args:
        downsample: What the input goes through where the branch changes its shape, or ``None``.
        with_cp: Compute the branch again in the backward pass instead of keeping its activations.
    """

    expansion: ClassVar[int]

    def __init__(self, downsample: nn.Module | None, with_cp: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.with_cp = with_cp
        self.norm_names: list[str] = []

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer that ends the branch."""
        return cast(nn.Module, getattr(self, self.norm_names[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H / stride, W / stride]."""
        if self.with_cp and x.requires_grad:
            total = checkpoint(self._sum, x, use_reentrant=False)
        else:
            total = self._sum(x)
        return cast(Tensor, self.relu(total))

    def _sum(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self._branch(x) + identity

    def _branch(self, x: Tensor) -> Tensor:
        last = len(self.norm_names)
        for number, norm_name in enumerate(self.norm_names, start=1):
            x = getattr(self, norm_name)(getattr(self, f"conv{number}")(x))
            if number < last:
                x = self.relu(x)
        return x

    def _add(self, conv: nn.Conv2d, norm_cfg: Mapping[str, Any]) -> None:
        """Append a convolution and its norm to the branch, as ``conv1`` and ``bn1`` and so on."""
        number = len(self.norm_names) + 1
        self.add_module(f"conv{number}", conv)
        kind, norm = build_norm(norm_cfg, conv.out_channels)
        self.add_module(f"{kind}{number}", norm)
        self.norm_names.append(f"{kind}{number}")


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, for ResNet-18 and -34.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the convolutions and of the output.
        stride: Stride of the first convolution.
        dilation: Dilation of the first convolution.
        downsample: See ``ResidualBlock``.
        style: Accepted for the sake of ``Bottleneck``; makes no difference here.
        with_cp: See ``ResidualBlock``.
        norm_cfg: Config of the norm layers.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: Style,
        with_cp: bool,
        norm_cfg: Mapping[str, Any],
    ) -> None:
        super().__init__(downsample, with_cp)
        first = nn.Conv2d(in_channels, channels, 3, stride, dilation, dilation, bias=False)
        self._add(first, norm_cfg)
        self._add(nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm_cfg)


class Bottleneck(ResidualBlock):
    """A 3x3 convolution between two 1x1 convolutions, for ResNet-50 and deeper, and ResNeXt.

    Sources: He et al., "Deep Residual Learning", arXiv:1512.03385; Xie et al., "Aggregated Residual
    Transformations", arXiv:1611.05431.

    Args:
        in_channels: Channels of the input.
        channels: A quarter of the channels of the output.
        stride: Stride of the block.
        dilation: Dilation of the 3x3 convolution.
        downsample: See ``ResidualBlock``.
        style: ``"pytorch"`` has the stride in the 3x3 convolution, ``"caffe"`` in the first one.
        with_cp: See ``ResidualBlock``.
        norm_cfg: Config of the norm layers.
        groups: Channel groups of the 3x3 convolution.
        group_width: Channels of each group, at 64 ``channels``, where there is more than one group.
        base_channels: ``channels`` at which ``group_width`` counts.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: Style,
        with_cp: bool,
        norm_cfg: Mapping[str, Any],
        groups: int = 1,
        group_width: int = 4,
        base_channels: int = 64,
    ) -> None:
        super().__init__(downsample, with_cp)
        first, second = (1, stride) if style == "pytorch" else (stride, 1)
        width = channels
        if groups > 1:
            width = math.floor(channels * (group_width / base_channels)) * groups
        self._add(nn.Conv2d(in_channels, width, 1, first, bias=False), norm_cfg)
        self._add(
            nn.Conv2d(width, width, 3, second, dilation, dilation, groups, bias=False), norm_cfg
        )
        self._add(nn.Conv2d(width, channels * self.expansion, 1, bias=False), norm_cfg)


def residual_stage(
    block: type[ResidualBlock],
    in_channels: int,
    channels: int,
    num_blocks: int,
    stride: int = 1,
    dilation: int = 1,
    style: Style = "pytorch",
    avg_down: bool = False,
    with_cp: bool = False,
    conv_cfg: Mapping[str, Any] | None = None,
    norm_cfg: Mapping[str, Any] | None = None,
    **block_options: Any,
) -> nn.Sequential:
    """Build a stage: blocks of which the first one changes the resolution and the channels.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        in_channels: Channels of the input.
        channels: Channels of the blocks; the output has ``channels * block.expansion``.
        num_blocks: Number of blocks.
        stride: Stride of the first block.
        dilation: Dilation of the 3x3 convolutions.
        style: See ``Bottleneck``.
        avg_down: Let an average pooling take the stride of the shortcut ("Bag of Tricks",
            arXiv:1812.01187, ResNet-D).
        with_cp: See ``ResidualBlock``.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers; batch norms by default.
        **block_options: Further arguments of the block.

    Raises:
        ConfigError: ``conv_cfg`` or ``norm_cfg`` are not supported.
    """
    check_conv_cfg(conv_cfg)
    norm_cfg = norm_cfg or {"type": "BN"}
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        layers: list[nn.Module] = []
        if avg_down:
            layers.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
        conv_stride = 1 if avg_down else stride
        layers.append(nn.Conv2d(in_channels, out_channels, 1, conv_stride, bias=False))
        layers.append(build_norm(norm_cfg, out_channels)[1])
        downsample = nn.Sequential(*layers)
    shared: dict[str, Any] = {
        "dilation": dilation,
        "style": style,
        "with_cp": with_cp,
        "norm_cfg": norm_cfg,
        **block_options,
    }
    build: Callable[..., ResidualBlock] = block
    first = build(in_channels, channels, stride=stride, downsample=downsample, **shared)
    others = [
        build(out_channels, channels, stride=1, downsample=None, **shared)
        for _ in range(1, num_blocks)
    ]
    return nn.Sequential(first, *others)
