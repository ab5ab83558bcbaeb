"""Mask head of the second stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ConfigError
from deploykit.training.models.layers.conv_module import ConvModule
from deploykit.training.models.roi_heads.mask_targets import mask_targets
from deploykit.training.models.roi_heads.roi_sampling import RoITrainConfig, SampledRoIs
from deploykit.training.models.weight_init import InitConfig, kaiming_init
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets

DECONV: Mapping[str, Any] = {"type": "deconv", "scale_factor": 2}
CONVOLUTIONS = ("Conv", "Conv2d")
LOSS_MASK: Mapping[str, Any] = {"type": "CrossEntropyLoss", "use_mask": True}


@MODELS.register()
class FCNMaskHead(nn.Module):
    """Convolutions, an upsampling and one mask per class.

    Source: He et al., "Mask R-CNN", arXiv:1703.06870. Parameter names are those of MMDetection 3.x.

    Args:
        num_convs: Number of convolutions before the upsampling.
        roi_feat_size: Accepted for compatibility; the size of the features decides.
        in_channels: Channels of the features.
        conv_kernel_size: Size of their kernels.
        conv_out_channels: Channels of the convolutions.
        num_classes: Number of classes.
        class_agnostic: One mask for all classes.
        upsample_cfg: ``type`` is ``"deconv"``, ``"nearest"``, ``"bilinear"`` or ``None``;
            ``scale_factor`` how many times larger the masks are.
        conv_cfg: ``None`` or ``dict(type="Conv2d")``.
        norm_cfg: Config of the norms of the convolutions, or ``None``.
        predictor_cfg: Must be ``dict(type="Conv")``.
        loss_mask: Config of the loss.
        init_cfg: Must be ``None``.

    Raises:
        ConfigError: An argument is not supported.
    """

    def __init__(
        self,
        num_convs: int = 4,
        roi_feat_size: int | tuple[int, int] = 14,
        in_channels: int = 256,
        conv_kernel_size: int = 3,
        conv_out_channels: int = 256,
        num_classes: int = 80,
        class_agnostic: bool = False,
        upsample_cfg: Mapping[str, Any] = DECONV,
        conv_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        predictor_cfg: Mapping[str, Any] | None = None,
        loss_mask: Mapping[str, Any] = LOSS_MASK,
        init_cfg: InitConfig = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None or (predictor_cfg or {}).get("type", "Conv") not in CONVOLUTIONS:
            raise ConfigError(
                "FCNMaskHead: init_cfg must be None and predictor_cfg dict(type='Conv'), got "
                f"{init_cfg!r} and {predictor_cfg!r}"
            )
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.loss_mask = MODELS.build(loss_mask)
        self.convs = nn.ModuleList()
        channels = in_channels
        for _ in range(num_convs):
            self.convs.append(
                ConvModule(
                    channels,
                    conv_out_channels,
                    conv_kernel_size,
                    padding=(conv_kernel_size - 1) // 2,
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                    act_cfg={"type": "ReLU"},
                )
            )
            channels = conv_out_channels
        self.upsample = _build_upsample(upsample_cfg, channels, conv_out_channels)
        if isinstance(self.upsample, nn.ConvTranspose2d):
            channels = conv_out_channels
        self.conv_logits = nn.Conv2d(channels, 1 if class_agnostic else num_classes, 1)

    def init_weights(self) -> None:
        """Fill the weights of the upsampling and of the masks with He's initialisation."""
        for module in (self.upsample, self.conv_logits):
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                kaiming_init(module)

    def forward(self, crops: Tensor) -> Tensor:
        """Predict masks.

        Args:
            crops: float [R, in_channels, h, w], features of the regions.

        Returns:
            Mask logits [R, C, H, W], in the frame of each region; C is 1 if they do not depend on
            the class.
        """
        for conv in self.convs:
            crops = conv(crops)
        if self.upsample is not None:
            crops = self.upsample(crops)
            if isinstance(self.upsample, nn.ConvTranspose2d):
                crops = F.relu(crops)
        logits: Tensor = self.conv_logits(crops)
        return logits

    def of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the masks of one class per region.

        Args:
            logits: float [R, C, H, W], see ``forward``.
            labels: int64 [R]; negative ones count as 0.

        Returns:
            float32 [R, H, W].
        """
        if self.class_agnostic:
            return logits[:, 0].float()
        height, width = logits.shape[2:]
        index = labels.clamp(min=0).view(-1, 1, 1, 1).expand(-1, -1, height, width)
        return logits.gather(1, index).squeeze(1).float()

    def loss(
        self,
        logits: Tensor,
        samples: SampledRoIs,
        targets: Sequence[Targets],
        config: RoITrainConfig,
    ) -> dict[str, Tensor]:
        """Compute the loss of masks.

        Args:
            logits: [R, C, H, W], for the positive regions alone.
            samples: The regions that were sampled.
            targets: Ground truth per image, with masks.
            config: Size of the mask targets.

        Returns:
            The scalar ``loss_mask``.

        Raises:
            DatasetError: The images have no masks.
        """
        positive = samples.positive
        labels = samples.gt_labels[positive]
        with torch.autocast(logits.device.type, enabled=False):
            wanted = mask_targets(
                samples.rois[positive],
                samples.gt_index[positive],
                targets,
                config.mask_size,
                config.soft_mask_target,
            )
            if self.class_agnostic:
                labels = torch.zeros_like(labels)
            return {"loss_mask": self.loss_mask(logits.float(), wanted, label=labels)}


def _build_upsample(config: Mapping[str, Any], channels: int, outputs: int) -> nn.Module | None:
    options = dict(config)
    kind, factor = options.pop("type", None), options.pop("scale_factor", None)
    if kind is None:
        return None
    if options or kind not in ("deconv", "nearest", "bilinear") or not isinstance(factor, int):
        raise ConfigError(
            "FCNMaskHead: upsample_cfg must be dict(type=..., scale_factor=int) with one of the "
            f"types 'deconv', 'nearest', 'bilinear' or None, got {dict(config)!r}"
        )
    if kind == "deconv":
        return nn.ConvTranspose2d(channels, outputs, factor, stride=factor)
    align_corners = None if kind == "nearest" else False
    return nn.Upsample(scale_factor=factor, mode=kind, align_corners=align_corners)
