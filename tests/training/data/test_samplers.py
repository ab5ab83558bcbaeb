"""Samplers: coverage, order, and how samples are dealt out to processes."""

import itertools
from collections import Counter

import pytest
import torch

from deploykit.errors import ConfigError
from deploykit.training.data import (
    AspectRatioBatchSampler,
    DefaultSampler,
    InfiniteSampler,
)


class Sized:
    """The little that samplers need of a data set."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def image_size(self, index):
        return self.sizes[index]


def of_length(count):
    return Sized([(1, 1)] * count)


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_every_sample_is_seen_once(count, world_size):
    parts = [
        list(DefaultSampler(of_length(count), round_up=False, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert sorted(itertools.chain(*parts)) == list(range(count))


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_rounding_up_gives_every_process_equally_many(count, world_size):
    samplers = [
        DefaultSampler(of_length(count), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(sampler) for sampler in samplers}
    assert len({len(part) for part in parts}) == 1
    assert set(itertools.chain(*parts)) == set(range(count))
    most, least = max(Counter(itertools.chain(*parts)).values()), 1
    assert most - least <= -(-world_size // count)


def test_the_order_is_mmengine_s():
    """A permutation from a generator seeded with seed + epoch, dealt out in turn."""
    sampler = DefaultSampler(of_length(11), seed=40, rank=1, world_size=2)
    sampler.set_epoch(2)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(42)).tolist()
    assert list(sampler) == (order + order)[:12][1::2]


def test_epochs_differ_and_repeat():
    sampler = DefaultSampler(of_length(50), seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    plain = DefaultSampler(of_length(5), shuffle=False)
    assert list(plain) == [0, 1, 2, 3, 4]


def test_infinite_sampler_passes_over_everything_again_and_again():
    stream = list(itertools.islice(iter(InfiniteSampler(of_length(6), seed=3)), 18))
    rounds = [stream[i : i + 6] for i in (0, 6, 12)]
    assert all(sorted(each) == list(range(6)) for each in rounds)
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]
    halves = [
        list(itertools.islice(iter(InfiniteSampler(of_length(6), seed=3, rank=r, world_size=2)), 9))
        for r in (0, 1)
    ]
    assert [x for pair in zip(*halves, strict=True) for x in pair] == stream
    plain = InfiniteSampler(of_length(3), shuffle=False)
    assert list(itertools.islice(iter(plain), 5)) == [0, 1, 2, 0, 1]


def test_ranks_must_exist():
    with pytest.raises(ConfigError, match="rank"):
        DefaultSampler(of_length(3), rank=2, world_size=2)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_hold_images_of_one_orientation(drop_last):
    sizes = [(10, 20) if i % 3 else (20, 10) for i in range(23)]
    dataset = Sized(sizes)
    sampler = DefaultSampler(dataset, seed=5)
    batches = AspectRatioBatchSampler(sampler, 4, drop_last, dataset=dataset)
    made = list(batches)
    assert len(made) == len(batches)
    wide = [[sizes[i][1] >= sizes[i][0] for i in batch] for batch in made]
    mixed = sum(len(set(each)) > 1 for each in wide)
    assert mixed <= 1  # the rest at the end
    seen = list(itertools.chain(*made))
    if drop_last:
        assert all(len(batch) == 4 for batch in made)
        assert len(set(seen)) == len(seen) == 20
    else:
        assert sorted(seen) == list(range(23))
    assert list(batches) == made  # nothing is left over from the first pass
