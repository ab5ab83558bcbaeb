"""Convolution, normalisation and activation as one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.layers.activation import build_activation
from deploykit.training.models.layers.normalization import build_norm
from deploykit.training.models.weight_init import constant_init, kaiming_init


class ConvModule(nn.Module):
    """Convolution -> normalisation -> activation.

    Submodules are ``conv``, the norm under its short name (``bn``, ``gn``...) and ``activate``, as
    in MMCV.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the kernel.
        stride: Stride of the convolution.
        padding: Zero padding at each side.
        dilation: Dilation of the kernel.
        groups: Number of channel groups.
        bias: Whether the convolution has a bias; ``"auto"``: only without a norm.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layer, or ``None``.
        act_cfg: Config of the activation, or ``None``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool | Literal["auto"] = "auto",
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_conv_cfg(conv_cfg)
        with_bias = norm_cfg is None if bias == "auto" else bias
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, with_bias
        )
        self.norm_name: str | None = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        self.activate = None if act_cfg is None else build_activation(act_cfg)
        self._reset_parameters(act_cfg or {})

    @property
    def norm(self) -> nn.Module | None:
        """The norm layer, if there is one."""
        return None if self.norm_name is None else cast(nn.Module, getattr(self, self.norm_name))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H', W']."""
        x = self.conv(x)
        if self.norm_name is not None:
            x = getattr(self, self.norm_name)(x)
        return x if self.activate is None else cast(Tensor, self.activate(x))

    def _reset_parameters(self, act_cfg: Mapping[str, Any]) -> None:
        if act_cfg.get("type") == "LeakyReLU":
            slope = act_cfg.get("negative_slope", 0.01)
            kaiming_init(self.conv, a=slope, nonlinearity="leaky_relu")
        else:
            kaiming_init(self.conv)
        if self.norm is not None:
            constant_init(self.norm, 1.0)


class DepthwiseSeparableConvModule(nn.Module):
    """A depthwise convolution followed by a pointwise one, each with norm and activation.

    Source: Howard et al., "MobileNets", arXiv:1704.04861.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Size of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        padding: Zero padding of the depthwise convolution.
        conv_cfg: As in ``ConvModule``.
        norm_cfg: As in ``ConvModule``, for both convolutions.
        act_cfg: As in ``ConvModule``, for both convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.depthwise_conv = ConvModule(
            in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, **shared
        )
        self.pointwise_conv = ConvModule(in_channels, out_channels, 1, **shared)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H', W']."""
        return cast(Tensor, self.pointwise_conv(self.depthwise_conv(x)))


def conv_type(use_depthwise: bool) -> type[ConvModule] | type[DepthwiseSeparableConvModule]:
    """Return the module class for an architecture with or without depthwise convolutions."""
    return DepthwiseSeparableConvModule if use_depthwise else ConvModule


def check_conv_cfg(conv_cfg: Mapping[str, Any] | None) -> None:
    """Refuse convolution types other than the plain one.

    Raises:
        ConfigError: ``conv_cfg`` asks for something else than ``Conv2d``.
    """
    if conv_cfg is not None and dict(conv_cfg) not in ({"type": "Conv2d"}, {"type": "Conv"}):
        raise ConfigError(f"conv_cfg must be None or dict(type='Conv2d'), got {conv_cfg!r}")
