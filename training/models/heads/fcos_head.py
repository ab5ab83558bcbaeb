"""Head of FCOS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND
from deploykit.training.models.box_overlaps import box_area
from deploykit.training.models.heads.anchor_free_head import AnchorFreeHead
from deploykit.training.models.heads.conv_tower import GROUP_NORM
from deploykit.training.models.heads.dense_detections import DenseMaps, all_rows
from deploykit.training.models.layers.scale import Scale
from deploykit.training.models.losses.reduction import mean_over_workers
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets, objects_of_images

INF = 1e8
REGRESS_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, INF))
LOSS_CENTERNESS: Mapping[str, Any] = {
    "type": "CrossEntropyLoss",
    "use_sigmoid": True,
    "loss_weight": 1.0,
}


@MODELS.register()
class FCOSHead(AnchorFreeHead):
    """Every point within an object predicts it, best from the middle.

    An object is predicted at the level in whose range the largest distance to a side lies. Scores
    are multiplied with a predicted centerness, which is low near the sides.

    Source: Tian et al., "FCOS", arXiv:1904.01355; centre sampling and what goes with it:
    arXiv:2006.09214.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        regress_ranges: (least, greatest) distance in pixels to the farthest side, per level.
        center_sampling: Only points near the centre of an object predict it.
        center_sample_radius: How near, in strides.
        norm_on_bbox: Predict distances in strides and cut off at 0, instead of their logarithms.
        centerness_on_reg: Predict the centerness from what boxes are predicted from.
        loss_centerness: Config of the loss of the centerness.
        norm_cfg: Config of the norm layers, or ``None``.
        cls_predictor_cfg: Must be ``None``.
        **options: As in ``AnchorFreeHead``.

    Raises:
        ConfigError: An argument is not supported, or there is not a range for every level.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        regress_ranges: Sequence[Sequence[float]] = REGRESS_RANGES,
        center_sampling: bool = False,
        center_sample_radius: float = 1.5,
        norm_on_bbox: bool = False,
        centerness_on_reg: bool = False,
        loss_centerness: Mapping[str, Any] = LOSS_CENTERNESS,
        norm_cfg: Mapping[str, Any] | None = GROUP_NORM,
        cls_predictor_cfg: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if cls_predictor_cfg is not None:
            raise ConfigError("FCOSHead: cls_predictor_cfg is not supported, it must be None")
        super().__init__(num_classes, in_channels, norm_cfg=norm_cfg, **options)
        self.regress_ranges = [(float(low), float(high)) for low, high in regress_ranges]
        if len(self.regress_ranges) != len(self.strides):
            raise ConfigError(
                f"FCOSHead: regress_ranges must be one per level, got {len(self.regress_ranges)} "
                f"for {len(self.strides)} strides"
            )
        self.center_sampling = center_sampling
        self.center_sample_radius = center_sample_radius
        self.norm_on_bbox = norm_on_bbox
        self.centerness_on_reg = centerness_on_reg
        self.loss_centerness = MODELS.build(loss_centerness)

    def loss_by_feat(self, outputs: DenseMaps, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the losses of predictions.

        Args:
            outputs: Class logits, distances and centerness logits, as ``forward`` returned them.
            targets: Ground truth per image.

        Returns:
            Scalars ``loss_cls``, ``loss_bbox`` (weighted by the true centerness) and
            ``loss_centerness``, averaged over the points that predict an object.
        """
        cls_scores, bbox_preds, centernesses = outputs
        sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
        priors = self.prior_generator.grid_priors(sizes, cls_scores[0].device)
        ranges = torch.cat(
            [
                priors.new_tensor(limits).expand(height * width, 2)
                for limits, (height, width) in zip(self.regress_ranges, sizes, strict=True)
            ]
        )
        logits = all_rows(cls_scores, self.num_classes)
        index = torch.stack([self._objects(priors, ranges, target) for target in targets])
        image, point = torch.nonzero(index >= 0, as_tuple=True)
        labels, boxes = objects_of_images(targets, image, index[image, point])
        all_labels = torch.full_like(index, self.num_classes)
        all_labels[image, point] = labels
        count = mean_over_workers(logits.new_tensor(len(image))).clamp(min=1.0)
        points, strides = priors[point, :2], priors[point, 2:]
        distances = all_rows(bbox_preds, 4)[image, point]
        wanted = self.bbox_coder.encode(points, boxes)
        centerness = centerness_of(wanted)
        weight = mean_over_workers(centerness.sum()).clamp(min=1e-6)
        if self.norm_on_bbox:
            distances, wanted = distances / strides, wanted / strides
        loss_cls = self.loss_cls(logits.flatten(0, 1), all_labels.flatten(), avg_factor=count)
        loss_bbox = self.loss_bbox(
            self.bbox_coder.decode(points, distances),
            self.bbox_coder.decode(points, wanted),
            weight=centerness,
            avg_factor=weight,
        )
        loss_centerness = self.loss_centerness(
            all_rows(centernesses, 1)[image, point, 0], centerness, avg_factor=count
        )
        return {
            "loss_cls": loss_cls,
            "loss_bbox": loss_bbox,
            "loss_centerness": loss_centerness,
        }

    def _objects(self, priors: Tensor, ranges: Tensor, target: Targets) -> Tensor:
        """Return int64 [P]: the object that each point predicts, or ``BACKGROUND``."""
        boxes = target.boxes
        if len(boxes) == 0:
            return torch.full((len(priors),), BACKGROUND, device=priors.device)
        points, strides = priors[:, None, :2], priors[:, None, 2:]
        distances = self.bbox_coder.encode(points, boxes)
        if self.center_sampling:
            center = (boxes[:, :2] + boxes[:, 2:]) / 2
            reach = strides * self.center_sample_radius
            low = torch.maximum(center - reach, boxes[:, :2])
            high = torch.minimum(center + reach, boxes[:, 2:])
            inside = ((points > low) & (points < high)).all(dim=-1)
        else:
            inside = distances.amin(dim=-1) > 0
        farthest = distances.amax(dim=-1)
        in_range = (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
        # Of several objects the smallest one.
        area = torch.where(inside & in_range, box_area(boxes), INF)
        least, index = area.min(dim=1)
        return torch.where(least < INF, index, BACKGROUND)

    def _build_layers(self) -> None:
        super()._build_layers()
        self.conv_centerness = nn.Conv2d(self.feat_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        cls_feat, reg_feat = self.cls_convs(feat), self.reg_convs(feat)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        distance = self.scales[level](self.conv_reg(reg_feat)).float()
        if self.norm_on_bbox:
            distance = distance.clamp(min=0) * self.strides[level]
        else:
            distance = distance.exp()
        return self.conv_cls(cls_feat), distance, centerness


def centerness_of(distances: Tensor) -> Tensor:
    """Return how central points are in their boxes: 1 in the middle, 0 at the sides.

    Args:
        distances: float32 [N, 4], from the point to the left, top, right and bottom side.

    Returns:
        float32 [N].
    """
    horizontal, vertical = distances[:, 0::2], distances[:, 1::2]
    return torch.sqrt(
        horizontal.amin(dim=1)
        / horizontal.amax(dim=1)
        * (vertical.amin(dim=1) / vertical.amax(dim=1))
    )
