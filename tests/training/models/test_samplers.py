from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import ConfigError
from deploykit.training.models.assigners.assignment import Assignment
from deploykit.training.models.assigners.padded_targets import PaddedTargets
from deploykit.training.models.samplers.pseudo_sampler import PseudoSampler
from deploykit.training.models.samplers.random_sampler import RandomSampler
from deploykit.training.models.samplers.sampling import add_objects
from deploykit.training.structures import Targets


def assignment_of(rows) -> Assignment:
    index = torch.tensor(rows)
    return Assignment(index, torch.zeros(index.shape))


indices = st.lists(st.lists(st.integers(-2, 3), min_size=30, max_size=30), min_size=1, max_size=3)


@given(
    rows=indices,
    num=st.integers(1, 40),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    bound=st.sampled_from([-1, 0, 1, 2.5]),
)
@settings(max_examples=100, deadline=None)
def test_random_sampler_takes_as_many_as_it_may(rows, num, fraction, bound):
    sampler = RandomSampler(num, fraction, neg_pos_ub=bound)
    sampling = sampler.sample(assignment_of(rows))
    total = 0
    for image, row in enumerate(torch.tensor(rows)):
        positives = int((row >= 0).sum())
        expected = min(positives, int(num * fraction))
        assert int(sampling.positive[image].sum()) == expected
        wanted = num - expected
        if bound >= 0:
            wanted = min(wanted, int(bound * max(1, expected)))
        negatives = min(int((row == -1).sum()), wanted)
        assert int(sampling.negative[image].sum()) == negatives
        assert (row[sampling.positive[image]] >= 0).all()
        assert (row[sampling.negative[image]] == -1).all()
        total += max(1, expected) + max(1, negatives)
    assert int(sampling.avg_factor) == total


def test_same_generator_same_samples():
    assignment = assignment_of([[0] * 50 + [-1] * 500, [-1] * 550])
    sampler = RandomSampler(64, 0.5)

    def draw(seed):
        sampler.generator = torch.Generator().manual_seed(seed)
        sampling = sampler.sample(assignment)
        return torch.cat((sampling.positive, sampling.negative))

    state = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(first, draw(1))
    assert not torch.equal(first, draw(2))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    sampler.generator = None
    sampler.sample(assignment)
    assert not torch.equal(state, torch.get_rng_state())


def test_every_candidate_is_equally_likely():
    assignment = assignment_of([[-1] * 20])
    sampler = RandomSampler(5, 0.5)
    sampler.generator = torch.Generator().manual_seed(0)
    rounds = 4000
    counts = sum(sampler.sample(assignment).negative[0].float() for _ in range(rounds))
    # A quarter of the rounds each, standard deviation 27.
    assert (counts - rounds / 4).abs().max() < 5 * 27.4


def test_pseudo_sampler_takes_everything():
    sampling = PseudoSampler().sample(assignment_of([[0, -1, -2, 3], [-1, -1, -2, -2]]))
    assert sampling.positive.tolist() == [[True, False, False, True], [False] * 4]
    assert sampling.negative.tolist() == [[False, True, False, False], [True, True, False, False]]
    assert int(sampling.avg_factor) == 3  # two, and one for the image without


def test_objects_stand_before_the_proposals():
    targets = PaddedTargets.from_targets(
        [
            Targets(torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3]]), torch.tensor([4, 5])),
            Targets(torch.tensor([[7.0, 7, 9, 9]]), torch.tensor([6])),
        ]
    )
    proposals = torch.full((2, 3, 4), 5.0)
    assignment = Assignment(torch.tensor([[1, -1, -2], [0, -1, -1]]), torch.full((2, 3), 0.6))
    boxes, added = add_objects(proposals, assignment, targets)
    assert boxes.shape == (2, 5, 4)
    assert torch.equal(boxes[:, :2], targets.boxes)
    assert torch.equal(boxes[:, 2:], proposals)
    assert added.gt_index.tolist() == [[0, 1, 1, -1, -2], [0, -2, 0, -1, -1]]
    assert added.overlap[:, :2].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("options", [(0, 0.5), (10, 1.5), (10, -0.1)])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ConfigError, match="RandomSampler"):
        RandomSampler(*options)
