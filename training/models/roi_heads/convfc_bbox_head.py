"""Box heads with convolutions and fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import ConvModule
from deploykit.training.models.roi_heads.bbox_head import PREDICTOR_INIT, BBoxHead
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.registry import MODELS

FC_INIT: Mapping[str, Any] = {
    "type": "Xavier",
    "distribution": "uniform",
    "override": [{"name": "shared_fcs"}, {"name": "cls_fcs"}, {"name": "reg_fcs"}],
}


@MODELS.register()
class ConvFCBBoxHead(BBoxHead):
    """Shared convolutions and fully connected layers, then the same for classes and for boxes.

    Each part puts its convolutions before its fully connected layers. Parameter names are those of
    MMDetection 3.x.

    Args:
        num_shared_convs: Number of shared 3x3 convolutions.
        num_shared_fcs: Number of shared fully connected layers.
        num_cls_convs: Number of convolutions for classes; only without shared layers of the other
            kind.
        num_cls_fcs: Number of fully connected layers for classes.
        num_reg_convs: Number of convolutions for boxes, likewise.
        num_reg_fcs: Number of fully connected layers for boxes.
        conv_out_channels: Channels of the convolutions.
        fc_out_channels: Channels of the fully connected layers.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norms after convolutions, or ``None``.
        init_cfg: How ``init_weights`` fills the weights.
        **options: As in ``BBoxHead``.

    Raises:
        ConfigError: There are no layers, or convolutions after fully connected ones.
    """

    default_init = (*PREDICTOR_INIT, FC_INIT)

    def __init__(
        self,
        num_shared_convs: int = 0,
        num_shared_fcs: int = 0,
        num_cls_convs: int = 0,
        num_cls_fcs: int = 0,
        num_reg_convs: int = 0,
        num_reg_fcs: int = 0,
        conv_out_channels: int = 256,
        fc_out_channels: int = 1024,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: InitConfig = None,
        **options: Any,
    ) -> None:
        self.depths = {
            "shared": (num_shared_convs, num_shared_fcs),
            "cls": (num_cls_convs, num_cls_fcs),
            "reg": (num_reg_convs, num_reg_fcs),
        }
        name = type(self).__name__
        counts = [count for depth in self.depths.values() for count in depth]
        if min(counts) < 0 or max(counts) == 0:
            raise ConfigError(f"{name}: expected at least one layer, got {self.depths}")
        if num_shared_fcs and (num_cls_convs or num_reg_convs):
            raise ConfigError(f"{name}: no convolutions can follow shared fully connected layers")
        self.conv_out_channels = conv_out_channels
        self.fc_out_channels = fc_out_channels
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        super().__init__(init_cfg=init_cfg, **options)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """See ``BBoxHead.forward``."""
        shared = self._run("shared", crops)
        classes, boxes = self._run("cls", shared), self._run("reg", shared)
        if classes.dim() > 2:
            classes = self._flatten(classes)
        if boxes.dim() > 2:
            boxes = self._flatten(boxes)
        return self.fc_cls(classes), self.fc_reg(boxes)

    def _build_layers(self) -> tuple[int, int]:
        area = 1 if self.with_avg_pool else self.roi_feat_area
        channels, is_flat = self._build_branch("shared", self.in_channels, area)
        ends = []
        for branch in ("cls", "reg"):
            own, own_is_flat = self._build_branch(branch, channels, 1 if is_flat else area)
            ends.append(own if is_flat or own_is_flat else own * area)
        return ends[0], ends[1]

    def _build_branch(self, name: str, channels: int, area: int) -> tuple[int, bool]:
        """Add the layers of a branch; return its channels, and whether it ends flattened."""
        num_convs, num_fcs = self.depths[name]
        convs, fcs = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_convs):
            convs.append(
                ConvModule(
                    channels,
                    self.conv_out_channels,
                    3,
                    padding=1,
                    conv_cfg=self.conv_cfg,
                    norm_cfg=self.norm_cfg,
                    act_cfg={"type": "ReLU"},
                )
            )
            channels = self.conv_out_channels
        for index in range(num_fcs):
            inputs = channels * area if index == 0 else channels
            fcs.append(nn.Linear(inputs, self.fc_out_channels))
            channels = self.fc_out_channels
        self.add_module(f"{name}_convs", convs)
        self.add_module(f"{name}_fcs", fcs)
        return channels, num_fcs > 0

    def _run(self, name: str, x: Tensor) -> Tensor:
        for conv in getattr(self, f"{name}_convs"):
            x = conv(x)
        for fc in getattr(self, f"{name}_fcs"):
            x = F.relu(fc(self._flatten(x) if x.dim() > 2 else x))
        return x


@MODELS.register()
class Shared2FCBBoxHead(ConvFCBBoxHead):
    """Two shared fully connected layers, the box head of Faster R-CNN with FPN.

    Args:
        fc_out_channels: Channels of the layers.
        **options: As in ``ConvFCBBoxHead``.
    """

    def __init__(self, fc_out_channels: int = 1024, **options: Any) -> None:
        super().__init__(num_shared_fcs=2, fc_out_channels=fc_out_channels, **options)


@MODELS.register()
class Shared4Conv1FCBBoxHead(ConvFCBBoxHead):
    """Four shared convolutions and a fully connected layer.

    Source: Wu and He, "Group Normalization", arXiv:1803.08494.

    Args:
        fc_out_channels: Channels of the fully connected layer.
        **options: As in ``ConvFCBBoxHead``.
    """

    def __init__(self, fc_out_channels: int = 1024, **options: Any) -> None:
        super().__init__(
            num_shared_convs=4, num_shared_fcs=1, fc_out_channels=fc_out_channels, **options
        )
