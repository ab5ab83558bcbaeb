"""What a sampler decides, and objects as proposals of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploykit.training.models.assigners.assignment import IGNORED, Assignment
from deploykit.training.models.assigners.padded_targets import PaddedTargets


@dataclass(frozen=True)
class Sampling:
    """The priors of a batch that are trained.

    Args:
        positive: bool [B, P], priors that stand for an object.
        negative: bool [B, P], priors that stand for background.
        gt_index: int64 [B, P], the object of the positive ones.
        avg_factor: Scalar, what losses are divided by: the number of sampled priors for a sampler
            that chooses, of positive ones for one that takes all; at least 1 of a kind per image.
    """

    positive: Tensor
    negative: Tensor
    gt_index: Tensor
    avg_factor: Tensor


def make_sampling(
    assignment: Assignment, positive: Tensor, negative: Tensor, count_negatives: bool
) -> Sampling:
    """Return the sampling of chosen priors.

    Args:
        assignment: Which object each prior is responsible for.
        positive: bool [B, P].
        negative: bool [B, P].
        count_negatives: Whether ``avg_factor`` counts them too.
    """
    count = positive.sum(dim=1).clamp(min=1)
    if count_negatives:
        count = count + negative.sum(dim=1).clamp(min=1)
    return Sampling(positive, negative, assignment.gt_index, count.sum())


def add_objects(
    proposals: Tensor, assignment: Assignment, targets: PaddedTargets
) -> tuple[Tensor, Assignment]:
    """Put the objects before the proposals, each one assigned to itself.

    Source: Girshick, "Fast R-CNN", arXiv:1504.08083; guarantees positive samples.

    Args:
        proposals: float32 [B, P, 4], xyxy.
        assignment: Which object each proposal is responsible for.
        targets: Ground truth of the images, G objects in the fullest one.

    Returns:
        Proposals float32 [B, G + P, 4] and their assignment.
    """
    index = torch.arange(targets.mask.shape[1], device=proposals.device)
    own_index = torch.where(targets.mask, index, IGNORED)
    boxes = torch.cat((targets.boxes, proposals), dim=1)
    return boxes, Assignment(
        torch.cat((own_index, assignment.gt_index), dim=1),
        torch.cat((targets.mask.to(assignment.overlap.dtype), assignment.overlap), dim=1),
    )
