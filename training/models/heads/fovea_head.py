"""Head of FoveaBox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND
from deploykit.training.models.box_overlaps import box_area
from deploykit.training.models.heads.anchor_free_head import AnchorFreeHead
from deploykit.training.models.heads.dense_detections import DenseMaps, all_rows
from deploykit.training.registry import MODELS
from deploykit.training.structures import Targets, objects_of_images

BASE_EDGES = (16, 32, 64, 128, 256)
SCALE_RANGES = ((8, 32), (16, 64), (32, 128), (64, 256), (128, 512))
# Distances that are trained, in base edges.
LEAST, GREATEST = 1 / 16, 16.0


@MODELS.register()
class FoveaHead(AnchorFreeHead):
    """The cells in the middle of an object predict it, at every level that its size fits.

    Source: Kong et al., "FoveaBox: Beyond Anchor-based Object Detector", arXiv:1904.03797.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        base_edge_list: Unit of the distances of each level, in pixels.
        scale_ranges: (least, greatest) square root of the area of objects, per level.
        sigma: The part of an object's width and height that predicts it.
        with_deform: Must be ``False``; deformable convolutions are not supported.
        deform_groups: Without effect, see ``with_deform``.
        **options: As in ``AnchorFreeHead``.

    Raises:
        ConfigError: An argument is not supported, or there is not one of each for every level.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        base_edge_list: Sequence[int] = BASE_EDGES,
        scale_ranges: Sequence[Sequence[float]] = SCALE_RANGES,
        sigma: float = 0.4,
        with_deform: bool = False,
        deform_groups: int = 4,
        **options: Any,
    ) -> None:
        if with_deform:
            raise ConfigError("FoveaHead: with_deform=True is not supported")
        super().__init__(num_classes, in_channels, **options)
        self.base_edges = [float(edge) for edge in base_edge_list]
        self.scale_ranges = [(float(low), float(high)) for low, high in scale_ranges]
        self.sigma = sigma
        if not len(self.base_edges) == len(self.scale_ranges) == len(self.strides):
            raise ConfigError(
                "FoveaHead: base_edge_list, scale_ranges and strides must be one per level, got "
                f"{len(self.base_edges)}, {len(self.scale_ranges)} and {len(self.strides)}"
            )

    def loss_by_feat(self, outputs: DenseMaps, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Compute the losses of predictions.

        Args:
            outputs: Class logits and logarithms of distances, as ``forward`` returned them.
            targets: Ground truth per image.

        Returns:
            Scalars ``loss_cls``, averaged over the points that predict an object and as many more
            as there are images, and ``loss_bbox``.
        """
        cls_scores, bbox_preds = outputs
        sizes = [(score.shape[2], score.shape[3]) for score in cls_scores]
        device = cls_scores[0].device
        priors = torch.cat(
            [self._level_priors(level, size, device) for level, size in enumerate(sizes)]
        )
        index = torch.stack([self._objects(sizes, target) for target in targets])
        image, point = torch.nonzero(index >= 0, as_tuple=True)
        labels, boxes = objects_of_images(targets, image, index[image, point])
        all_labels = torch.full_like(index, self.num_classes)
        all_labels[image, point] = labels
        points, edges = priors[point, :2], priors[point, 2:]
        wanted = self.bbox_coder.encode(points, boxes) / edges
        loss_cls = self.loss_cls(
            all_rows(cls_scores, self.num_classes).flatten(0, 1),
            all_labels.flatten(),
            avg_factor=float(len(image) + len(targets)),
        )
        loss_bbox = self.loss_bbox(
            all_rows(bbox_preds, 4)[image, point],
            wanted.clamp(min=LEAST, max=GREATEST).log(),
            avg_factor=float(len(image)),
        )
        return {"loss_cls": loss_cls, "loss_bbox": loss_bbox}

    def _objects(self, sizes: Sequence[tuple[int, int]], target: Targets) -> Tensor:
        """Return int64 [P]: the object that each point predicts, or ``BACKGROUND``."""
        boxes = target.boxes
        count, device = len(boxes), boxes.device
        scale = box_area(boxes).sqrt()
        levels = []
        for stride, (low, high), (height, width) in zip(
            self.strides, self.scale_ranges, sizes, strict=True
        ):
            if count == 0:
                levels.append(torch.full((height * width,), BACKGROUND, device=device))
                continue
            corner = boxes[:, :2] / stride
            half = 0.5 * (boxes[:, 2:] / stride - corner)
            last = torch.tensor([width - 1, height - 1], device=device)
            first_cell = (corner + (1 - self.sigma) * half - 0.5).ceil().long()
            last_cell = (corner + (1 + self.sigma) * half - 0.5).floor().long()
            first_cell = first_cell.clamp(min=0).minimum(last)
            last_cell = last_cell.clamp(min=0).minimum(last)
            columns = torch.arange(width, device=device)
            rows = torch.arange(height, device=device)[:, None]
            x1, y1 = (first_cell[:, i, None, None] for i in range(2))
            x2, y2 = (last_cell[:, i, None, None] for i in range(2))
            middle = (columns >= x1) & (columns <= x2) & (rows >= y1) & (rows <= y2)
            fits = ((scale >= low) & (scale <= high))[:, None, None]
            # Of several objects the smallest one, of equal ones the last.
            sizes_there = torch.where(middle & fits, scale[:, None, None], float("inf"))
            least, index = sizes_there.flip(0).min(dim=0)
            index = torch.where(least.isfinite(), count - 1 - index, BACKGROUND)
            levels.append(index.flatten())
        return torch.cat(levels)

    def _level_priors(self, level: int, size: tuple[int, int], device: torch.device) -> Tensor:
        points = super()._level_priors(level, size, device)
        return torch.cat((points, torch.full_like(points[:, :1], self.base_edges[level])), dim=1)

    def _decode(self, priors: Tensor, offsets: Tensor, limits: Tensor) -> Tensor:
        distances = offsets.exp() * priors[..., 2:]
        # As in MMDetection, the last pixel is the limit and not its far side.
        return super()._decode(priors[..., :2], distances, limits - 1)

    def _forward_level(self, level: int, feat: Tensor) -> tuple[Tensor, ...]:
        return self.conv_cls(self.cls_convs(feat)), self.conv_reg(self.reg_convs(feat))
