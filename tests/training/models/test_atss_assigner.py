"""Adaptive training sample selection against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.atss_assigner import ATSSAssigner
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.structures import Targets


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inside = width * height
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def slow_assignment(levels, objects, masks, topk):
    """The paper's algorithm 1 for one image, prior by prior; -2 where the mask is not set."""
    priors = np.concatenate(levels)
    mask = np.concatenate(masks)
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    best = np.zeros(len(priors))
    index = np.where(mask, -1, -2)
    for number, box in enumerate(objects):
        middle = (box[:2] + box[2:]) / 2
        candidates, start = [], 0
        for level in levels:
            own = [i for i in range(start, start + len(level)) if mask[i]]
            own.sort(key=lambda i: np.hypot(*(centers[i] - middle)))
            candidates += own[:topk]
            start += len(level)
        overlaps = [iou(priors[i], box) for i in candidates]
        threshold = np.mean(overlaps) + np.std(overlaps, ddof=1)
        for i, overlap in zip(candidates, overlaps, strict=True):
            inside = min(*(centers[i] - box[:2]), *(box[2:] - centers[i])) > 0.01
            if overlap >= threshold and inside and overlap > best[i]:
                best[i], index[i] = overlap, number
    return index


@given(seed=st.integers(0, 10**6), count=st.integers(0, 6), topk=st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_assignment_is_that_of_the_paper(seed, count, topk):
    random = np.random.default_rng(seed)

    def boxes(number):  # without any symmetry, so that no two distances are equal
        corner = random.uniform(0, 80, (number, 2))
        return np.concatenate((corner, corner + random.uniform(4, 60, (number, 2))), axis=1)

    levels = [boxes(20), boxes(8), boxes(3)]
    masks = [random.random(len(level)) < 0.8 for level in levels]
    objects = boxes(count)
    target = Targets(torch.tensor(objects).float(), torch.zeros(count, dtype=torch.int64))
    other = Targets(torch.tensor([[0.0, 0, 30, 30]]), torch.tensor([0]))
    assignment = ATSSAssigner(topk).assign(
        torch.tensor(np.concatenate(levels)).float(),
        [len(level) for level in levels],
        PaddedTargets.from_targets([other, target]),
        torch.stack([torch.tensor(np.concatenate(masks))] * 2),
    )
    expected = slow_assignment(levels, objects, masks, topk)
    assert assignment.gt_index[1].tolist() == expected.tolist()
    assert (assignment.overlap[1][assignment.gt_index[1] < 0] == 0).all()


def test_priors_in_ignored_regions_are_not_trained():
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60], [51, 50, 61, 60]])
    target = Targets(
        torch.tensor([[50.0, 50, 60, 60]]),
        torch.tensor([1]),
        ignored_boxes=torch.tensor([[18.0, 18, 32, 32]]),
    )
    mask = torch.ones(1, 4, dtype=torch.bool)
    targets = PaddedTargets.from_targets([target])
    found = ATSSAssigner(4, ignore_iof_thr=0.5).assign(priors, [4], targets, mask)
    assert found.gt_index.tolist() == [[-1, -2, 0, -1]]
    found = ATSSAssigner(4).assign(priors, [4], targets, mask)
    assert found.gt_index.tolist() == [[-1, -1, 0, -1]]


@pytest.mark.parametrize("options", [{"topk": 0}, {"topk": 9, "iou_calculator": {"type": "X"}}])
def test_options_that_are_not_supported_are_refused(options):
    with pytest.raises(ConfigError, match="ATSSAssigner"):
        ATSSAssigner(**options)
