"""ResNet and ResNeXt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import check_conv_cfg
from deploykit.training.models.layers.normalization import build_norm
from deploykit.training.models.layers.residual_blocks import (
    BasicBlock,
    Bottleneck,
    ResidualBlock,
    residual_stage,
)
from deploykit.training.models.weight_init import InitConfig, constant_init, initialize
from deploykit.training.registry import MODELS

BATCH_NORM: Mapping[str, Any] = {"type": "BN", "requires_grad": True}
DEFAULT_INIT: tuple[Mapping[str, Any], ...] = (
    {"type": "Kaiming", "layer": "Conv2d"},
    {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
)


@MODELS.register()
class ResNet(nn.Module):
    """Residual network.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385. Parameter
    names are those of MMDetection 3.x, which for the plain network are torchvision's.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Channels of the image.
        stem_channels: Channels of the stem; ``base_channels`` by default.
        base_channels: Channels of the first stage's blocks, doubled with every stage.
        num_stages: Number of stages, 1 to 4.
        strides: Stride of each stage; the stem has stride 4.
        dilations: Dilation of each stage.
        out_indices: Which stages to return.
        style: ``"pytorch"`` strides in the 3x3 convolution of a bottleneck, ``"caffe"`` in the
            first 1x1 convolution.
        deep_stem: Three 3x3 convolutions instead of the 7x7 one (ResNet-C).
        avg_down: Average pooling in the shortcuts that stride (ResNet-D).
        frozen_stages: Freeze the stem and this many stages; -1 freezes nothing.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers.
        norm_eval: Keep the statistics of the batch norms fixed while training.
        dcn: Must be ``None``; deformable convolutions are not supported.
        stage_with_dcn: Without effect, see ``dcn``.
        plugins: Must be ``None``; they are not supported.
        with_cp: Compute activations again in the backward pass, to save memory.
        zero_init_residual: Without pretrained weights, start with branches that add nothing.
        pretrained: The checkpoint of a ``Pretrained`` ``init_cfg``.
        init_cfg: How ``init_weights`` fills the weights.

    Raises:
        ConfigError: The arguments do not describe a network, or one that is not supported.
    """

    ARCHITECTURES: ClassVar[dict[int, tuple[type[ResidualBlock], tuple[int, ...]]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] = BATCH_NORM,
        norm_eval: bool = True,
        dcn: Mapping[str, Any] | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: Sequence[Mapping[str, Any]] | None = None,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if depth not in self.ARCHITECTURES:
            known = ", ".join(map(str, self.ARCHITECTURES))
            raise ConfigError(f"{name}: unknown depth {depth}, expected one of {known}")
        if dcn is not None or plugins is not None:
            raise ConfigError(f"{name}: dcn and plugins are not supported, they must be None")
        if pretrained is not None and init_cfg is not None:
            raise ConfigError(f"{name}: give either pretrained or init_cfg")
        if style not in ("pytorch", "caffe"):
            raise ConfigError(f"{name}: style must be 'pytorch' or 'caffe', got {style!r}")
        _check_stages(name, num_stages, strides, dilations, out_indices, frozen_stages)
        check_conv_cfg(conv_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.zero_init_residual = zero_init_residual
        self.init_cfg: InitConfig = init_cfg
        if pretrained is not None:
            self.init_cfg = {"type": "Pretrained", "checkpoint": pretrained}
        block, depths = self.ARCHITECTURES[depth]
        channels = stem_channels or base_channels
        self._build_stem(in_channels, channels, deep_stem, norm_cfg)
        stride = 4
        self.out_strides: tuple[int, ...] = ()
        self.out_channels: tuple[int, ...] = ()
        for index in range(num_stages):
            stage = residual_stage(
                block,
                channels,
                base_channels * 2**index,
                depths[index],
                stride=strides[index],
                dilation=dilations[index],
                style=style,  # type: ignore[arg-type]
                avg_down=avg_down,
                with_cp=with_cp,
                norm_cfg=norm_cfg,
                **self._block_options(base_channels),
            )
            self.add_module(f"layer{index + 1}", stage)
            channels = base_channels * 2**index * block.expansion
            stride *= strides[index]
            if index in self.out_indices:
                self.out_strides += (stride,)
                self.out_channels += (channels,)
        self.num_stages = num_stages
        self._freeze()

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says, what it does not cover in He's way."""
        entries = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or ()
        if all(entry.get("type") == "Pretrained" for entry in entries):
            initialize(self, DEFAULT_INIT, "backbone")
            if self.zero_init_residual and not entries:
                for module in self.modules():
                    if isinstance(module, ResidualBlock):
                        constant_init(module.last_norm, 0.0)
        initialize(self, self.init_cfg, "backbone")

    def train(self, mode: bool = True) -> ResNet:
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
        for layer in self._stem_layers():
            x = layer(x)
        x = self.maxpool(x)
        outputs = []
        for index in range(self.num_stages):
            x = getattr(self, f"layer{index + 1}")(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)

    def _block_options(self, base_channels: int) -> dict[str, Any]:
        """Return further arguments of the blocks."""
        return {}

    def _build_stem(
        self, in_channels: int, channels: int, deep: bool, norm_cfg: Mapping[str, Any]
    ) -> None:
        self.deep_stem = deep
        if deep:
            layers: list[nn.Module] = []
            widths = (in_channels, channels // 2, channels // 2, channels)
            for index, (inputs, outputs) in enumerate(pairwise(widths)):
                stride = 2 if index == 0 else 1
                layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
                layers.append(build_norm(norm_cfg, outputs)[1])
                layers.append(nn.ReLU(inplace=True))
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
            kind, norm = build_norm(norm_cfg, channels)
            self.norm1_name = f"{kind}1"
            self.add_module(self.norm1_name, norm)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def _stem_layers(self) -> list[nn.Module]:
        if self.deep_stem:
            return [self.stem]
        return [self.conv1, cast(nn.Module, getattr(self, self.norm1_name)), self.relu]

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stages = [getattr(self, f"layer{index + 1}") for index in range(self.frozen_stages)]
        for layer in [*self._stem_layers(), *stages]:
            layer.eval()
            layer.requires_grad_(False)


@MODELS.register()
class ResNetV1d(ResNet):
    """ResNet-D: a stem of three 3x3 convolutions, and average pooling in the shortcuts.

    Source: He et al., "Bag of Tricks for Image Classification", arXiv:1812.01187.

    Args:
        depth: 18, 34, 50, 101 or 152.
        **options: As in ``ResNet``.
    """

    def __init__(self, depth: int, **options: Any) -> None:
        super().__init__(depth, deep_stem=True, avg_down=True, **options)


@MODELS.register()
class ResNeXt(ResNet):
    """ResNet whose 3x3 convolutions work on groups of channels.

    Source: Xie et al., "Aggregated Residual Transformations", arXiv:1611.05431.

    Args:
        depth: 50, 101 or 152.
        groups: Number of groups.
        base_width: Channels of each group in the first stage.
        **options: As in ``ResNet``.
    """

    ARCHITECTURES: ClassVar[dict[int, tuple[type[ResidualBlock], tuple[int, ...]]]] = {
        depth: ResNet.ARCHITECTURES[depth] for depth in (50, 101, 152)
    }

    def __init__(self, depth: int, groups: int = 1, base_width: int = 4, **options: Any) -> None:
        # Assigned before super().__init__, which builds the blocks; plain values may be.
        self.groups = groups
        self.base_width = base_width
        super().__init__(depth, **options)

    def _block_options(self, base_channels: int) -> dict[str, Any]:
        return {
            "groups": self.groups,
            "group_width": self.base_width,
            "base_channels": base_channels,
        }


def _check_stages(
    name: str,
    num_stages: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    if not 1 <= num_stages <= 4 or len(strides) != num_stages or len(dilations) != num_stages:
        raise ConfigError(
            f"{name}: num_stages must be from 1 to 4, with as many strides and dilations, got "
            f"{num_stages} stages, strides {tuple(strides)}, dilations {tuple(dilations)}"
        )
    if not out_indices or any(index not in range(num_stages) for index in out_indices):
        raise ConfigError(
            f"{name}: out_indices must be from 0 to {num_stages - 1}, got {tuple(out_indices)}"
        )
    if frozen_stages not in range(-1, num_stages + 1):
        raise ConfigError(
            f"{name}: frozen_stages must be from -1 to {num_stages}, got {frozen_stages}"
        )
