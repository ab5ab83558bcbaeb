"""The stacks of convolutions before the last layers of dense heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from deploykit.training.models.layers.conv_module import ConvModule

GROUP_NORM: Mapping[str, Any] = {"type": "GN", "num_groups": 32, "requires_grad": True}
RELU: Mapping[str, Any] = {"type": "ReLU"}


def conv_tower(
    in_channels: int,
    channels: int,
    count: int,
    conv_cfg: Mapping[str, Any] | None = None,
    norm_cfg: Mapping[str, Any] | None = None,
    bias: bool | Literal["auto"] = "auto",
    last_conv_cfg: Mapping[str, Any] | None = None,
) -> nn.Sequential:
    """Return 3x3 convolutions, each with norm and ReLU, that keep the size of a feature map.

    Args:
        in_channels: Channels of the features.
        channels: Channels of every convolution.
        count: Number of convolutions; 0 makes the identity.
        conv_cfg: Type of the convolutions.
        norm_cfg: Config of the norm layers, or ``None``.
        bias: Whether the convolutions have a bias; ``"auto"``: only without a norm.
        last_conv_cfg: Type of the last convolution, if it is another one.

    Raises:
        ConfigError: A type of convolution or norm is not supported.
    """
    return nn.Sequential(
        *(
            ConvModule(
                channels if index else in_channels,
                channels,
                3,
                padding=1,
                bias=bias,
                conv_cfg=last_conv_cfg if last_conv_cfg and index == count - 1 else conv_cfg,
                norm_cfg=norm_cfg,
                act_cfg=RELU,
            )
            for index in range(count)
        )
    )
