"""Features of regions from the pyramid level that fits their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.weight_init import InitConfig
from deploykit.training.ops.multilevel_roi_align import multilevel_roi_align
from deploykit.training.registry import MODELS


@MODELS.register()
class SingleRoIExtractor(nn.Module):
    """Crop regions out of a feature pyramid, each out of one level.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv:1612.03144.

    Args:
        roi_layer: ``dict(type="RoIAlign", output_size=..., sampling_ratio=0, aligned=True)``.
        out_channels: Channels of the features.
        featmap_strides: Pixels per feature cell of each level, finest first.
        finest_scale: Regions of less than twice this size, in pixels, come from the first level.
        init_cfg: Must be ``None``; there are no weights.

    Raises:
        ConfigError: The layer is not an averaging RoIAlign, or an argument does not fit.
    """

    def __init__(
        self,
        roi_layer: Mapping[str, Any],
        out_channels: int,
        featmap_strides: Sequence[int],
        finest_scale: int = 56,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None or not featmap_strides or min(featmap_strides) <= 0:
            raise ConfigError(
                "SingleRoIExtractor: featmap_strides must be positive and init_cfg None, got "
                f"{list(featmap_strides)} and {init_cfg!r}"
            )
        self.out_channels = out_channels
        self.spatial_scales = [1.0 / stride for stride in featmap_strides]
        self.finest_scale = finest_scale
        self.output_size, self.sampling_ratio, self.aligned = _read_layer(roi_layer)

    def forward(self, feats: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Crop regions.

        Args:
            feats: float [B, C, H_i, W_i] per level; levels beyond ``featmap_strides`` are not used.
            rois: float32 [R, 5], (image, x1, y1, x2, y2) in pixels of the network input.

        Returns:
            Like the features, [R, C, *output_size].
        """
        used = list(feats[: len(self.spatial_scales)])
        crops = multilevel_roi_align(
            used,
            rois.float(),
            self.output_size,
            self.sampling_ratio,
            self.spatial_scales,
            self.finest_scale,
            self.aligned,
        )
        return cast(Tensor, crops)


def _read_layer(roi_layer: Mapping[str, Any]) -> tuple[list[int], int, bool]:
    options = dict(roi_layer)
    kind = options.pop("type", None)
    size = options.pop("output_size", None)
    ratio = options.pop("sampling_ratio", 0)
    aligned = options.pop("aligned", True)
    pool_mode = options.pop("pool_mode", "avg")
    options.pop("use_torchvision", None)  # both of MMCV's implementations compute the same
    size = [size, size] if isinstance(size, int) else size
    if (
        kind != "RoIAlign"
        or pool_mode != "avg"
        or options
        or not isinstance(size, list | tuple)
        or len(size) != 2
    ):
        raise ConfigError(
            "SingleRoIExtractor: roi_layer must be dict(type='RoIAlign', output_size=int or "
            f"(height, width), sampling_ratio=int, aligned=bool), got {dict(roi_layer)!r}"
        )
    return [int(side) for side in size], int(ratio), bool(aligned)
