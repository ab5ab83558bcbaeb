"""A sampler that takes everything."""

from __future__ import annotations

from deploykit.training.models.assigners.assignment import BACKGROUND, Assignment
from deploykit.training.models.samplers.sampling import Sampling, make_sampling
from deploykit.training.registry import TASK_UTILS


@TASK_UTILS.register()
class PseudoSampler:
    """Take all positive and all negative priors; for losses that weigh them, such as focal loss."""

    add_gt_as_proposals = False

    def sample(self, assignment: Assignment) -> Sampling:
        """Return the assigned priors; ``avg_factor`` counts the positive ones."""
        positive = assignment.gt_index >= 0
        negative = assignment.gt_index == BACKGROUND
        return make_sampling(assignment, positive, negative, count_negatives=False)
