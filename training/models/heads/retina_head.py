"""Heads of RetinaNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.heads.anchor_head import AnchorHead
from deploykit.training.models.layers.conv_module import ConvModule
from deploykit.training.models.weight_init import (
    InitConfig,
    bias_for_probability,
    normal_init,
)
from deploykit.training.registry import MODELS

RETINA_ANCHORS: Mapping[str, Any] = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 3,
    "ratios": (0.5, 1.0, 2.0),
    "strides": (8, 16, 32, 64, 128),
}
# Class scores start at 0.01, so that the background does not swamp the first steps.
RETINA_INIT: Mapping[str, Any] = {
    "type": "Normal",
    "layer": "Conv2d",
    "std": 0.01,
    "override": {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
}


@MODELS.register()
class RetinaHead(AnchorHead):
    """Two stacks of convolutions, for classes and for boxes, that all levels share.

    Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002. Parameter names
    are those of MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        stacked_convs: Number of convolutions in each stack.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers, or ``None``.
        anchor_generator: Config of the anchor generator.
        init_cfg: How ``init_weights`` fills the weights.
        **options: As in ``AnchorHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        anchor_generator: Mapping[str, Any] = RETINA_ANCHORS,
        init_cfg: InitConfig = RETINA_INIT,
        **options: Any,
    ) -> None:
        # Assigned before super().__init__, which calls _build_layers; plain values may be.
        self.stacked_convs = _check_depth("RetinaHead", stacked_convs)
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        super().__init__(
            num_classes,
            in_channels,
            anchor_generator=anchor_generator,
            init_cfg=init_cfg,
            **options,
        )

    def _build_layers(self) -> None:
        self.cls_convs = _stack(self)
        self.reg_convs = _stack(self)
        self.retina_cls, self.retina_reg = _predictors(self)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.retina_cls(_in_sequence(self.cls_convs, feat))
        return scores, self.retina_reg(_in_sequence(self.reg_convs, feat))


@MODELS.register()
class RetinaSepBNHead(AnchorHead):
    """RetinaNet's head with convolutions shared by the levels and norms of their own.

    Parameter names are those of MMDetection 3.x.

    Args:
        num_classes: Number of classes.
        num_ins: Number of levels.
        in_channels: Channels of the features.
        stacked_convs: Number of convolutions in each stack.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers, or ``None``.
        init_cfg: Must be ``None``; the weights are initialised as those of ``RetinaHead``.
        **options: As in ``AnchorHead``.
    """

    def __init__(
        self,
        num_classes: int,
        num_ins: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
        **options: Any,
    ) -> None:
        if init_cfg is not None:
            raise ConfigError("RetinaSepBNHead: init_cfg must be None")
        self.num_ins = num_ins
        self.stacked_convs = _check_depth("RetinaSepBNHead", stacked_convs)
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        super().__init__(num_classes, in_channels, init_cfg=None, **options)
        if self.prior_generator.num_levels != num_ins:
            raise ConfigError(
                f"RetinaSepBNHead: num_ins is {num_ins}, but the anchor generator has "
                f"{self.prior_generator.num_levels} levels"
            )

    def init_weights(self) -> None:
        """Fill the weights with small normal noise; class scores start at 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                normal_init(module, std=0.01)
        normal_init(self.retina_cls, std=0.01, bias=bias_for_probability(0.01))

    def _build_layers(self) -> None:
        self.cls_convs = nn.ModuleList(_stack(self) for _ in range(self.num_ins))
        self.reg_convs = nn.ModuleList(_stack(self) for _ in range(self.num_ins))
        for stacks in (self.cls_convs, self.reg_convs):
            first, *others = (cast(nn.ModuleList, stack) for stack in stacks)
            for stack in others:
                for layer, shared in zip(stack, first, strict=True):
                    layer.conv = shared.conv
        self.retina_cls, self.retina_reg = _predictors(self)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.retina_cls(_in_sequence(self.cls_convs[level], feat))
        return scores, self.retina_reg(_in_sequence(self.reg_convs[level], feat))


def _check_depth(name: str, stacked_convs: int) -> int:
    if stacked_convs < 0:
        raise ConfigError(f"{name}: stacked_convs must not be negative, got {stacked_convs}")
    return stacked_convs


def _stack(head: RetinaHead | RetinaSepBNHead) -> nn.ModuleList:
    return nn.ModuleList(
        ConvModule(
            head.feat_channels if index else head.in_channels,
            head.feat_channels,
            3,
            padding=1,
            conv_cfg=head.conv_cfg,
            norm_cfg=head.norm_cfg,
            act_cfg={"type": "ReLU"},
        )
        for index in range(head.stacked_convs)
    )


def _predictors(head: RetinaHead | RetinaSepBNHead) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return the last convolutions, for classes and for boxes."""
    channels = head.feat_channels if head.stacked_convs else head.in_channels
    anchors = head.num_base_priors
    return (
        nn.Conv2d(channels, anchors * head.cls_out_channels, 3, padding=1),
        nn.Conv2d(channels, anchors * 4, 3, padding=1),
    )


def _in_sequence(layers: nn.Module, x: Tensor) -> Tensor:
    """Run a ``ModuleList`` as if it were a ``Sequential``."""
    for layer in cast(nn.ModuleList, layers):
        x = layer(x)
    return x
