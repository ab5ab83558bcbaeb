"""CSPNeXtPAFPN, the neck of RTMDet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.backbones.cspnext import (
    CONV_INIT,
    DEFAULT_ACTIVATION,
    DEFAULT_NORM,
)
from deploykit.training.models.layers.conv_module import ConvModule, conv_type
from deploykit.training.models.layers.csp_layer import CSPLayer
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS


@MODELS.register()
class CSPNeXtPAFPN(nn.Module):
    """Path aggregation network with CSPNeXt blocks: once down the pyramid and once up.

    Sources: Liu et al., "PANet", arXiv:1803.01534; "RTMDet", arXiv:2212.07784. Parameter names are
    those of MMDetection 3.x.

    Args:
        in_channels: Channels of the features, finest first.
        out_channels: Channels of every output.
        num_csp_blocks: Blocks in each CSP layer.
        use_depthwise: Use depthwise separable convolutions throughout.
        expand_ratio: Hidden channels of the CSP layers as a fraction of their output.
        upsample_cfg: ``mode`` of the interpolation; coarser features always take the size of the
            next finer ones, so ``scale_factor`` must be 2.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers.
        act_cfg: Config of the activations.
        init_cfg: How ``init_weights`` fills the weights.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_csp_blocks: int = 3,
        use_depthwise: bool = False,
        expand_ratio: float = 0.5,
        upsample_cfg: Mapping[str, Any] | None = None,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] = DEFAULT_NORM,
        act_cfg: Mapping[str, Any] = DEFAULT_ACTIVATION,
        init_cfg: InitConfig = CONV_INIT,
    ) -> None:
        super().__init__()
        upsample = {"scale_factor": 2, "mode": "nearest", **(upsample_cfg or {})}
        if upsample["scale_factor"] != 2 or upsample["mode"] not in ("nearest", "bilinear"):
            raise ConfigError(
                "CSPNeXtPAFPN: upsample_cfg must be dict(scale_factor=2, mode='nearest' or "
                f"'bilinear'), got {upsample_cfg!r}"
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.upsample_mode = str(upsample["mode"])
        self.init_cfg = init_cfg
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        conv = conv_type(use_depthwise)

        def csp_layer(inputs: int, outputs: int) -> CSPLayer:
            return CSPLayer(
                inputs,
                outputs,
                expand_ratio=expand_ratio,
                num_blocks=num_csp_blocks,
                add_identity=False,
                use_depthwise=use_depthwise,
                use_cspnext_block=True,
                **shared,
            )

        finer_to_coarser = list(zip(self.in_channels[:-1], self.in_channels[1:], strict=True))
        self.reduce_layers = nn.ModuleList(
            ConvModule(coarse, fine, 1, **shared) for fine, coarse in reversed(finer_to_coarser)
        )
        self.top_down_blocks = nn.ModuleList(
            csp_layer(2 * fine, fine) for fine, _ in reversed(finer_to_coarser)
        )
        self.downsamples = nn.ModuleList(
            conv(fine, fine, 3, stride=2, padding=1, **shared) for fine, _ in finer_to_coarser
        )
        self.bottom_up_blocks = nn.ModuleList(
            csp_layer(2 * fine, coarse) for fine, coarse in finer_to_coarser
        )
        self.out_convs = nn.ModuleList(
            conv(channels, out_channels, 3, padding=1, **shared) for channels in self.in_channels
        )

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "neck")

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse the features of all scales.

        Args:
            inputs: float32 [B, in_channels[i], H_i, W_i], finest first, each half the size of the
                one before.

        Returns:
            One float32 [B, out_channels, H_i, W_i] per input.
        """
        if len(inputs) != len(self.in_channels):
            raise ConfigError(
                f"CSPNeXtPAFPN expects {len(self.in_channels)} feature maps (in_channels), got "
                f"{len(inputs)}; check out_indices of the backbone"
            )
        current = inputs[-1]
        # laterals collects the reduced maps coarsest first and is turned round for the way up.
        laterals = []
        finer = reversed(inputs[:-1])
        for reduce, block, fine in zip(
            self.reduce_layers, self.top_down_blocks, finer, strict=True
        ):
            reduced = reduce(current)
            laterals.append(reduced)
            upsampled = F.interpolate(reduced, size=fine.shape[-2:], mode=self.upsample_mode)
            current = block(torch.cat((upsampled, fine), dim=1))
        outputs = [current]
        for downsample, block, lateral in zip(
            self.downsamples, self.bottom_up_blocks, reversed(laterals), strict=True
        ):
            outputs.append(block(torch.cat((downsample(outputs[-1]), lateral), dim=1)))
        return tuple(conv(out) for conv, out in zip(self.out_convs, outputs, strict=True))
