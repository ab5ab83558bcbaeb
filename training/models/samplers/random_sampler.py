"""A sampler that draws a fixed number of priors."""

from __future__ import annotations

import torch
from torch import Tensor

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import BACKGROUND, Assignment
from deploykit.training.models.samplers.sampling import Sampling, make_sampling
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class RandomSampler:
    """Draw up to ``num`` priors per image, at most a fraction of them positive.

    Too few positive priors are made up for by negative ones.

    Source: Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1.3.

    Args:
        num: Number of priors per image.
        pos_fraction: Largest fraction of positive ones.
        neg_pos_ub: Largest number of negative priors per positive one; negative: no bound.
        add_gt_as_proposals: Whether the objects themselves are proposals too (for the second stage;
            see ``add_objects``).

    Attributes:
        generator: Where randomness comes from; by default PyTorch's CPU generator, whose seed the
            config sets and whose state checkpoints keep.

    Raises:
        ConfigError: The number or the fraction is out of range.
    """

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
    ) -> None:
        if num < 1 or not 0 <= pos_fraction <= 1:
            raise ConfigError(
                "RandomSampler: num must be at least 1 and pos_fraction from 0 to 1, got "
                f"{num} and {pos_fraction}"
            )
        self.num = num
        self.num_positive = int(num * pos_fraction)
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals
        self.generator: torch.Generator | None = None

    def sample(self, assignment: Assignment) -> Sampling:
        """Draw priors of a batch.

        Args:
            assignment: Which object each prior is responsible for.

        Returns:
            The sampled priors; ``avg_factor`` counts all of them.
        """
        index = assignment.gt_index
        # Drawn on the CPU, so that a seed means the same samples on every device.
        keys = torch.rand(index.shape, generator=self.generator).to(index.device)
        wanted = torch.full_like(index[:, :1], self.num_positive)
        positive = _draw(index >= 0, keys, wanted, self.num_positive)
        found = positive.sum(dim=1, keepdim=True)
        wanted = self.num - found
        if self.neg_pos_ub >= 0:
            bound = (self.neg_pos_ub * found.clamp(min=1)).to(wanted.dtype)
            wanted = torch.minimum(wanted, bound)
        negative = _draw(index == BACKGROUND, keys, wanted, self.num)
        return make_sampling(assignment, positive, negative, count_negatives=True)


def _draw(candidates: Tensor, keys: Tensor, wanted: Tensor, most: int) -> Tensor:
    """Return bool [B, P]: the candidates with the lowest keys, ``wanted`` [B, 1] per image."""
    count = min(most, candidates.shape[1])
    if count == 0:
        return torch.zeros_like(candidates)
    ranked = keys.masked_fill(~candidates, float("inf")).topk(count, dim=1, largest=False)
    position = torch.arange(count, device=keys.device)
    chosen = ranked.values.isfinite() & (position < wanted)
    return torch.zeros_like(candidates).scatter_(1, ranked.indices, chosen)
