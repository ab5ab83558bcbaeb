"""FSAF's assignment and box coder against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.center_region_assigner import CenterRegionAssigner
from deploykit.training.models.coders.tblr import TBLRBBoxCoder
from deploykit.training.structures import Targets


def part_inside(prior, box):
    width = max(0.0, min(prior[2], box[2]) - max(prior[0], box[0]))
    height = max(0.0, min(prior[3], box[3]) - max(prior[1], box[1]))
    return width * height / ((prior[2] - prior[0]) * (prior[3] - prior[1]))


def scaled(box, scale):
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * scale
    return np.concatenate((center - half, center + half))


def holds(box, prior):
    center = (prior[:2] + prior[2:]) / 2
    return (center > box[:2]).all() and (center < box[2:]).all()


def slow_assignment(priors, boxes, labels, ignored, options):
    """One prior after the other."""
    index, shadows = [], []
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    for prior in priors:
        least = options["min_pos_iof"]
        core = [
            i
            for i, box in enumerate(boxes)
            if part_inside(prior, scaled(box, options["pos_scale"])) > least and holds(box, prior)
        ]
        own = min(core, key=lambda i: areas[i]) if core else -1
        shadow = {
            i
            for i, box in enumerate(boxes)
            if i != own
            and (i in core or part_inside(prior, scaled(box, options["neg_scale"])) > least)
        }
        if any(holds(scaled(box, 0.5), prior) for box in ignored):
            own = -2
        if own >= 0 and labels[own] in {labels[i] for i in shadow}:
            if options["foreground_dominate"]:
                shadow = {i for i in shadow if labels[i] != labels[own]}
            else:
                own = -1
        index.append(own)
        shadows.append([i in shadow for i in range(len(boxes))])
    return index, shadows


@given(
    seed=st.integers(0, 10**6),
    objects=st.integers(1, 7),
    regions=st.integers(0, 2),
    dominate=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_assignment_is_that_of_the_rules(seed, objects, regions, dominate):
    random = np.random.default_rng(seed)

    def make(count, least, most):
        corner = random.uniform(0, 70, (count, 2))
        size = random.uniform(least, most, (count, 2))
        return np.concatenate((corner, corner + size), axis=1).astype(np.float32)

    priors, boxes, ignored = make(60, 6, 10), make(objects, 10, 60), make(regions, 20, 40)
    labels = random.integers(0, 3, objects)
    options = {
        "pos_scale": 0.3,
        "neg_scale": 0.6,
        "min_pos_iof": 0.01,
        "foreground_dominate": dominate,
    }
    target = Targets(torch.tensor(boxes), torch.tensor(labels), torch.tensor(ignored))
    found = CenterRegionAssigner(**options).assign(torch.tensor(priors), target)
    index, shadows = slow_assignment(priors, boxes, labels, ignored, options)
    assert found.gt_index.tolist() == index
    assert found.shadowed.tolist() == shadows


@given(st.lists(st.floats(0, 50), min_size=8, max_size=8))
def test_distances_lead_back_to_the_box(numbers):
    values = torch.tensor(numbers, dtype=torch.float64).view(2, 4)
    boxes = torch.cat((values[:, :2], values[:, :2] + values[:, 2:] + 1), dim=1)
    anchor, box = boxes
    coder = TBLRBBoxCoder((1.0, 2.0, 4.0, 8.0))
    distances = coder.encode(anchor, box)
    torch.testing.assert_close(coder.decode(anchor, distances), box)
    size = anchor[2:] - anchor[:2]
    center = (anchor[:2] + anchor[2:]) / 2
    expected = [
        (center[1] - box[1]) / size[1],
        (box[3] - center[1]) / size[1] / 2,
        (center[0] - box[0]) / size[0] / 4,
        (box[2] - center[0]) / size[0] / 8,
    ]
    torch.testing.assert_close(distances, torch.stack(expected))


def test_boxes_are_clipped_where_there_are_limits():
    anchor, distances = torch.tensor([4.0, 4, 8, 8]), torch.full((4,), 9.0)
    limits = torch.tensor([20.0, 10, 20, 10])
    assert TBLRBBoxCoder(1.0).decode(anchor, distances, limits).tolist() == [0, 0, 20, 10]
    unclipped = TBLRBBoxCoder(1.0, clip_border=False).decode(anchor, distances, limits)
    assert unclipped.tolist() == [-30, -30, 42, 42]


@pytest.mark.parametrize("normalizer", [0.0, [1, 2], [1, 2, 3, -4]])
def test_impossible_divisors_are_refused(normalizer):
    with pytest.raises(ConfigError, match="normalizer"):
        TBLRBBoxCoder(normalizer)
