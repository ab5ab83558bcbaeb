"""From the dense predictions of a one-stage head to detections, in fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.ops.batched_nms import batched_nms

# boxes f32 [B, K, 4], scores f32 [B, K], labels i32 [B, K], num_dets i32 [B]
DetectionTensors = tuple[Tensor, Tensor, Tensor, Tensor]
# What a dense head predicts: kinds of maps [B, A * D, H, W], each one map per level.
DenseMaps = tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class LevelPredictions:
    """What a head predicts at the N priors of one level.

    Args:
        logits: float32 [B, N, C], whose sigmoids are scores.
        priors: float32 [N, D], points or boxes in pixels of the network input.
        offsets: float32 [B, N, E], what a box coder makes boxes of.
        quality_logits: float32 [B, N], whose sigmoid is how well the box will fit, or ``None``.
    """

    logits: Tensor
    priors: Tensor
    offsets: Tensor
    quality_logits: Tensor | None = None


@dataclass(frozen=True)
class ScoredPredictions:
    """The most promising predictions of all levels, K per image.

    Args:
        scores: float32 [B, K]; 0 where the class score was not above the threshold.
        labels: int64 [B, K], classes.
        priors: float32 [B, K, D].
        offsets: float32 [B, K, E].
    """

    scores: Tensor
    labels: Tensor
    priors: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class DenseTestConfig:
    """The ``test_cfg`` of a one-stage detector.

    Args:
        score_thr: Candidates must score higher than this.
        nms_pre: Candidates kept per level before suppression; ``None`` keeps all.
        min_bbox_size: Boxes must be wider and higher than this, in pixels of the network input;
            negative: no such rule.
        iou_threshold: Boxes that overlap a better one of their class by more are suppressed.
        class_agnostic: Boxes of other classes suppress too.
        max_per_img: Number of detections per image, K.
    """

    score_thr: float = 0.05
    nms_pre: int | None = 1000
    min_bbox_size: float = -1.0
    iou_threshold: float = 0.5
    class_agnostic: bool = False
    max_per_img: int = 100

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> DenseTestConfig:
        """Read a ``test_cfg`` dict with MMDetection's keys.

        Raises:
            ConfigError: A key is unknown, or the suppression is not plain ``nms``.
        """
        options = {"score_thr": 0.0, **(config or {})}
        nms = dict(options.pop("nms", None) or {"type": "nms", "iou_threshold": 0.5})
        # split_thr bounds memory in MMDetection and does not change the result.
        unknown = options.keys() - {
            "score_thr", "nms_pre", "min_bbox_size", "max_per_img", "multi_label"
        } | nms.keys() - {"type", "iou_threshold", "class_agnostic", "split_thr"}  # fmt: skip
        if unknown:
            raise ConfigError(f"test_cfg: unknown keys {sorted(unknown)}")
        if nms.pop("type", "nms") != "nms":
            raise ConfigError("test_cfg.nms.type must be 'nms'; soft NMS has no fixed shape")
        if not options.pop("multi_label", True):
            raise ConfigError("test_cfg.multi_label=False is not supported")
        nms_pre = options.pop("nms_pre", -1)
        nms.pop("split_thr", None)
        result = cls(nms_pre=nms_pre if nms_pre > 0 else None, **options, **nms)
        if result.max_per_img < 1:
            raise ConfigError(f"test_cfg.max_per_img must be positive, got {result.max_per_img}")
        return result


def top_candidates(logits: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the best (location, class) pairs of one level.

    Args:
        logits: float32 [B, C, H, W].
        count: How many to pick; all if ``None`` or more than there are.

    Returns:
        Logits float32 [B, k], classes int64 [B, k] and locations int64 [B, k] (row-major index into
        the H * W cells), best first.
    """
    num_classes = logits.shape[1]
    # Location-major order, so that the divisions below are by a constant even in dynamic shapes.
    flat = logits.permute(0, 2, 3, 1).flatten(1)
    total = flat.shape[1]
    picked = total if count is None else torch.sym_min(count, total)  # type: ignore[no-untyped-call]
    values, index = flat.topk(picked, dim=1)
    location = torch.div(index, num_classes, rounding_mode="floor")
    return values, index - location * num_classes, location


def top_pairs(scores: Tensor, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the best (location, class) pairs, where there are many more pairs than locations.

    The pairs all lie at the best ``count`` locations by their best class, so the others are dropped
    first; that is many times faster than to rank all pairs. Equal scores at the cut may be cut
    differently.

    Args:
        scores: float32 [B, N, C], scores or logits.
        count: How many to pick; all if ``None`` or more than there are.

    Returns:
        Scores float32 [B, k], classes int64 [B, k] and locations int64 [B, k] (index into N), best
        first.
    """
    num_locations, num_classes = scores.shape[1:]
    picked = num_locations if count is None else torch.sym_min(count, num_locations)  # type: ignore[no-untyped-call]
    best, location = scores.amax(dim=2).topk(picked, dim=1)
    if num_classes == 1:
        return best, torch.zeros_like(location), location
    flat = gather_rows(scores, location).flatten(1)
    picked = flat.shape[1] if count is None else torch.sym_min(count, flat.shape[1])  # type: ignore[no-untyped-call]
    values, index = flat.topk(picked, dim=1)
    place = torch.div(index, num_classes, rounding_mode="floor")
    return values, index - place * num_classes, location.gather(1, place)


def best_predictions(
    levels: Sequence[LevelPredictions], config: DenseTestConfig
) -> ScoredPredictions:
    """Pick the (prior, class) pairs of the highest class scores at each level.

    Class scores choose, and must be above the threshold; only then they are multiplied with the
    quality.

    Args:
        levels: Predictions per level.
        config: Thresholds.
    """
    parts = []
    for level in levels:
        best, labels, place = top_pairs(level.logits, config.nms_pre)
        scores = best.sigmoid()
        kept = scores > config.score_thr
        if level.quality_logits is not None:
            scores = scores * level.quality_logits.gather(1, place).sigmoid()
        scores = torch.where(kept, scores, 0.0)
        parts.append((scores, labels, level.priors[place], gather_rows(level.offsets, place)))
    return ScoredPredictions(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def suppress_scored(
    boxes: Tensor, predictions: ScoredPredictions, config: DenseTestConfig
) -> DetectionTensors:
    """Make detections of predictions whose boxes [B, K, 4] are decoded; see ``suppress``."""
    above_zero = replace(config, score_thr=0.0)  # the threshold was for class scores alone
    return suppress(boxes, predictions.scores, predictions.labels, above_zero)


def prior_rows(level: Tensor, width: int) -> Tensor:
    """Return [B, A * width, H, W] as one float32 row per prior, [B, H * W * A, width]."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width).float()


def all_rows(levels: Sequence[Tensor], width: int) -> Tensor:
    """Return the rows of all levels, [B, P, width]; see ``prior_rows``."""
    return torch.cat([prior_rows(level, width) for level in levels], dim=1)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image.

    Args:
        values: [B, N, D].
        index: int64 [B, k].

    Returns:
        [B, k, D].
    """
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, config: DenseTestConfig
) -> DetectionTensors:
    """Filter candidates by score and size, suppress overlapping ones, and keep the best K.

    Args:
        boxes: float32 [B, N, 4], xyxy.
        scores: float32 [B, N], 0..1.
        labels: int64 [B, N].
        config: Thresholds.

    Returns:
        Boxes float32 [B, K, 4], scores float32 [B, K] (descending), labels int32 [B, K] and the
        number of detections int32 [B]. Rows past that number are zero, with label -1.
    """
    valid = scores > config.score_thr
    if config.min_bbox_size >= 0:
        size = boxes[..., 2:] - boxes[..., :2]
        valid = valid & (size > config.min_bbox_size).all(dim=-1)
    groups = torch.zeros_like(labels) if config.class_agnostic else labels
    keep = batched_nms(
        boxes,
        torch.where(valid, scores, 0.0),
        groups,
        config.iou_threshold,
        config.max_per_img,
    )
    found = keep >= 0
    index = keep.clamp(min=0)
    kept_boxes = gather_rows(boxes, index)
    return (
        torch.where(found.unsqueeze(-1), kept_boxes, 0.0),
        torch.where(found, scores.gather(1, index), 0.0),
        torch.where(found, labels.gather(1, index), -1).to(torch.int32),
        found.sum(dim=1).to(torch.int32),
    )
