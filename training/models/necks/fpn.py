"""Feature pyramid network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import ConvModule
from deploykit.training.models.weight_init import InitConfig, initialize
from deploykit.training.registry import MODELS

EXTRA_SOURCES = ("on_input", "on_lateral", "on_output")
XAVIER_INIT: Mapping[str, Any] = {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"}


@MODELS.register()
class FPN(nn.Module):
    """Feature pyramid network: coarse features are added to finer ones, from the top down.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv:1612.03144; extra
    levels as in "Focal Loss for Dense Object Detection", arXiv:1708.02002. Parameter names are
    those of MMDetection 3.x.

    Args:
        in_channels: Channels of the features, finest first.
        out_channels: Channels of every output.
        num_outs: Number of outputs.
        start_level: First of the features that is used.
        end_level: Last of the features that is used; -1 is the last one. Only then there may be
            more outputs than features.
        add_extra_convs: What the further outputs are computed from by convolutions of stride 2:
            ``"on_input"`` (also ``True``) the last feature, ``"on_lateral"`` its lateral,
            ``"on_output"`` the last output. ``False``: the last output, taking every other pixel.
        relu_before_extra_convs: Put a ReLU before those convolutions, but the first one.
        no_norm_on_lateral: Leave out the norm of the lateral convolutions.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norm layers, or ``None``.
        act_cfg: Config of the activations, or ``None``.
        upsample_cfg: Arguments of ``torch.nn.functional.interpolate``; without a ``scale_factor``
            features are resized to the size of the next finer ones.
        init_cfg: How ``init_weights`` fills the weights.

    Raises:
        ConfigError: The arguments do not describe a pyramid.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        no_norm_on_lateral: bool = False,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        act_cfg: Mapping[str, Any] | None = None,
        upsample_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = XAVIER_INIT,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.start_level = start_level
        self.last_level = len(self.in_channels) - 1 if end_level == -1 else end_level
        self.extra_source = _extra_source(add_extra_convs)
        self.relu_before_extra_convs = relu_before_extra_convs
        self.upsample_cfg = {"mode": "nearest"} if upsample_cfg is None else dict(upsample_cfg)
        self.init_cfg = init_cfg
        self._check_levels()
        shared: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        lateral = {**shared, "norm_cfg": None if no_norm_on_lateral else norm_cfg}
        used = self.in_channels[start_level : self.last_level + 1]
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, **lateral) for channels in used
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, **shared) for _ in used
        )
        if self.extra_source is not None:
            for extra in range(num_outs - len(used)):
                from_input = extra == 0 and self.extra_source == "on_input"
                channels = used[-1] if from_input else out_channels
                self.fpn_convs.append(
                    ConvModule(channels, out_channels, 3, stride=2, padding=1, **shared)
                )

    def init_weights(self) -> None:
        """Fill the weights as ``init_cfg`` says."""
        initialize(self, self.init_cfg, "neck")

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Merge features.

        Args:
            feats: float32 [B, in_channels[i], H_i, W_i] per level, finest first.

        Returns:
            ``num_outs`` tensors float32 [B, out_channels, H, W], finest first.
        """
        used = list(feats[self.start_level : self.last_level + 1])
        laterals = [conv(feat) for conv, feat in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(used) - 1, 0, -1):
            finer = laterals[level - 1]
            laterals[level - 1] = finer + self._upsample(laterals[level], finer)
        outputs = [
            conv(lateral)
            for conv, lateral in zip(self.fpn_convs[: len(used)], laterals, strict=True)
        ]
        if self.extra_source is None:
            while len(outputs) < self.num_outs:
                # A pooling, or a slice of a channels-last tensor, would tie exported graphs to even
                # or to odd sizes.
                outputs.append(outputs[-1].contiguous()[:, :, ::2, ::2])
            return tuple(outputs)
        sources = {"on_input": used[-1], "on_lateral": laterals[-1], "on_output": outputs[-1]}
        source = sources[self.extra_source]
        for conv in self.fpn_convs[len(used) :]:
            outputs.append(conv(source))
            source = F.relu(outputs[-1]) if self.relu_before_extra_convs else outputs[-1]
        return tuple(outputs)

    def _upsample(self, coarse: Tensor, finer: Tensor) -> Tensor:
        if "scale_factor" in self.upsample_cfg:
            return F.interpolate(coarse, **self.upsample_cfg)
        return F.interpolate(coarse, size=finer.shape[2:], **self.upsample_cfg)

    def _check_levels(self) -> None:
        levels = len(self.in_channels)
        used = self.last_level - self.start_level + 1
        is_last = self.last_level == levels - 1
        if not 0 <= self.start_level <= self.last_level < levels:
            raise ConfigError(
                f"FPN: start_level and end_level must be in order and below {levels}, the number "
                f"of in_channels, got {self.start_level} and {self.last_level}"
            )
        if self.num_outs < used or (self.num_outs > used and not is_last):
            expected = f"at least {used}" if is_last else f"{used}, as end_level is not the last"
            raise ConfigError(f"FPN: num_outs must be {expected}, got {self.num_outs}")


def _extra_source(add_extra_convs: bool | str) -> str | None:
    if isinstance(add_extra_convs, bool):
        return "on_input" if add_extra_convs else None
    if add_extra_convs not in EXTRA_SOURCES:
        raise ConfigError(
            f"FPN: add_extra_convs must be a bool or one of {EXTRA_SOURCES}, got "
            f"{add_extra_convs!r}"
        )
    return add_extra_convs
