"""CSPNeXt, the backbone of RTMDet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import ConvModule, conv_type
from deploykit.training.models.layers.csp_layer import CSPLayer
from deploykit.training.models.layers.spatial_pyramid_pooling import SPPBottleneck
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS

DEFAULT_NORM: Mapping[str, Any] = {"type": "BN", "momentum": 0.03, "eps": 0.001}
DEFAULT_ACTIVATION: Mapping[str, Any] = {"type": "SiLU"}
# PyTorch's own default for convolutions, with zero biases.
CONV_INIT: Mapping[str, Any] = {
    "type": "Kaiming",
    "layer": "Conv2d",
    "a": math.sqrt(5),
    "distribution": "uniform",
    "mode": "fan_in",
    "nonlinearity": "leaky_relu",
}


class Stage(NamedTuple):
    """One stage at full width and depth."""

    in_channels: int
    out_channels: int
    num_blocks: int
    add_identity: bool
    use_spp: bool


@MODELS.register()
class CSPNeXt(nn.Module):
    """Backbone of CSP layers with large-kernel depthwise convolutions.

    Source: "RTMDet: An Empirical Study of Designing Real-Time Object Detectors", arXiv:2212.07784.
    Parameter names are those of MMDetection 3.x. Output ``i`` has stride ``2 ** (i + 1)``, the stem
    being output 0.

    Args:
        arch: ``"P5"`` (four stages) or ``"P6"`` (five).
        deepen_factor: Multiplier of the number of blocks.
        widen_factor: Multiplier of the number of channels.
        out_indices: Which outputs to return.
        frozen_stages: Freeze the stem and the stages up to this one; -1 freezes nothing.
        use_depthwise: Use depthwise separable convolutions throughout.
        expand_ratio: Hidden channels of the CSP layers as a fraction of their output.
        arch_ovewrite: Rows of (in_channels, out_channels, num_blocks, add_identity, use_spp) that
            replace ``arch`` (spelled as in MMDetection).
        spp_kernel_sizes: Kernel sizes of the spatial pyramid pooling.
        channel_attention: Whether the CSP layers have channel attention.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers.
        act_cfg: Config of the activations.
        norm_eval: Keep the statistics of the batch norms fixed while training.
        init_cfg: How ``init_weights`` fills the weights.

    Raises:
        ConfigError: The arguments do not describe a network.
    """

    ARCHITECTURES: ClassVar[dict[str, tuple[Stage, ...]]] = {
        "P5": (
            Stage(64, 128, 3, True, False),
            Stage(128, 256, 6, True, False),
            Stage(256, 512, 6, True, False),
            Stage(512, 1024, 3, False, True),
        ),
        "P6": (
            Stage(64, 128, 3, True, False),
            Stage(128, 256, 6, True, False),
            Stage(256, 512, 6, True, False),
            Stage(512, 768, 3, True, False),
            Stage(768, 1024, 3, False, True),
        ),
    }

    def __init__(
        self,
        arch: str = "P5",
        deepen_factor: float = 1.0,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (2, 3, 4),
        frozen_stages: int = -1,
        use_depthwise: bool = False,
        expand_ratio: float = 0.5,
        arch_ovewrite: Sequence[Sequence[Any]] | None = None,
        spp_kernel_sizes: Sequence[int] = (5, 9, 13),
        channel_attention: bool = True,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] = DEFAULT_NORM,
        act_cfg: Mapping[str, Any] = DEFAULT_ACTIVATION,
        norm_eval: bool = False,
        init_cfg: InitConfig = CONV_INIT,
    ) -> None:
        super().__init__()
        stages = self._stages(arch, arch_ovewrite)
        _check_range("out_indices", out_indices, 0, len(stages))
        _check_range("frozen_stages", [frozen_stages], -1, len(stages))
        self.out_indices = tuple(out_indices)
        self.out_strides = tuple(2 ** (index + 1) for index in self.out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.init_cfg = init_cfg
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.stem = _stem(stages[0].in_channels * widen_factor, shared)
        self.layer_names = ["stem"]
        for number, stage in enumerate(stages, start=1):
            in_channels = int(stage.in_channels * widen_factor)
            out_channels = int(stage.out_channels * widen_factor)
            layers: list[nn.Module] = [
                conv_type(use_depthwise)(in_channels, out_channels, 3, 2, 1, **shared)
            ]
            if stage.use_spp:
                layers.append(SPPBottleneck(out_channels, out_channels, spp_kernel_sizes, **shared))
            layers.append(
                CSPLayer(
                    out_channels,
                    out_channels,
                    expand_ratio=expand_ratio,
                    num_blocks=max(round(stage.num_blocks * deepen_factor), 1),
                    add_identity=stage.add_identity,
                    use_depthwise=use_depthwise,
                    use_cspnext_block=True,
                    channel_attention=channel_attention,
                    **shared,
                )
            )
            self.add_module(f"stage{number}", nn.Sequential(*layers))
            self.layer_names.append(f"stage{number}")
        self._freeze()

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "backbone")

    def train(self, mode: bool = True) -> CSPNeXt:
        """Switch between training and evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features.

        Args:
            x: float32 [B, 3, H, W], normalised.

        Returns:
            One float32 [B, C_i, H / stride_i, W / stride_i] per output index, strides growing.
        """
        outputs = []
        for index, name in enumerate(self.layer_names):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _freeze(self) -> None:
        for name in self.layer_names[: self.frozen_stages + 1]:
            layer = cast(nn.Module, getattr(self, name))
            layer.eval()
            layer.requires_grad_(False)

    @classmethod
    def _stages(cls, arch: str, overwrite: Sequence[Sequence[Any]] | None) -> tuple[Stage, ...]:
        if overwrite is None:
            if arch not in cls.ARCHITECTURES:
                known = ", ".join(cls.ARCHITECTURES)
                raise ConfigError(f"CSPNeXt: unknown arch '{arch}', expected one of {known}")
            return cls.ARCHITECTURES[arch]
        if not overwrite or any(len(row) != len(Stage._fields) for row in overwrite):
            raise ConfigError(
                f"CSPNeXt: each row of arch_ovewrite must be {Stage._fields}, got {overwrite!r}"
            )
        return tuple(Stage(*row) for row in overwrite)


def _stem(channels: float, shared: Mapping[str, Any]) -> nn.Sequential:
    # The stem is never depthwise and ignores conv_cfg, as in MMDetection.
    half, full = int(channels // 2), int(channels)
    options = {"padding": 1, "norm_cfg": shared["norm_cfg"], "act_cfg": shared["act_cfg"]}
    return nn.Sequential(
        ConvModule(3, half, 3, stride=2, **options),
        ConvModule(half, half, 3, **options),
        ConvModule(half, full, 3, **options),
    )


def _check_range(name: str, values: Sequence[int], low: int, high: int) -> None:
    if any(value not in range(low, high + 1) for value in values):
        raise ConfigError(f"CSPNeXt: {name} must be from {low} to {high}, got {list(values)}")
