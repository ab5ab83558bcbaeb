"""Samplers: in which order, and by which process, the samples of an epoch are seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch.utils.data import BatchSampler, Sampler

from deploykit.errors import ConfigError
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.registry import SAMPLERS


def _rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None or world_size is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        world_size = torch.distributed.get_world_size() if distributed else 1
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be within 0..{world_size - 1}, got {rank}")
    return rank, world_size


@SAMPLERS.register()
class DefaultSampler(Sampler[int]):
    """Every sample once per epoch, dealt out to the processes in turn.

    The order is a function of seed and epoch alone; it is the one MMEngine draws for the same sum
    of the two.

    Args:
        dataset: The data set.
        shuffle: Whether to shuffle.
        seed: Seed of the shuffle, the same in every process.
        round_up: Whether to repeat samples so that each process sees equally many.
        rank: This process; by default as ``torch.distributed`` says.
        world_size: Number of processes; by default as ``torch.distributed`` says.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        shuffle: bool = True,
        seed: int = 0,
        round_up: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank, self.world_size = _rank_and_world_size(rank, world_size)
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.round_up = round_up
        self.total = self.size
        if round_up:
            self.total = math.ceil(self.size / self.world_size) * self.world_size

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        repeated = itertools.islice(itertools.cycle(order), self.total)
        return itertools.islice(repeated, self.rank, None, self.world_size)

    def __len__(self) -> int:
        return len(range(self.rank, self.total, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch


@SAMPLERS.register()
class InfiniteSampler(Sampler[int]):
    """An endless stream of samples, reshuffled every time round, for training by iterations.

    Args:
        dataset: The data set.
        shuffle: Whether to shuffle.
        seed: Seed of the shuffle, the same in every process.
        rank: This process; by default as ``torch.distributed`` says.
        world_size: Number of processes; by default as ``torch.distributed`` says.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank, self.world_size = _rank_and_world_size(rank, world_size)
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = seed

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            if self.shuffle:
                yield from torch.randperm(self.size, generator=generator).tolist()
            else:
                yield from range(self.size)

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._stream(), self.rank, None, self.world_size)

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""


@SAMPLERS.register()
class AspectRatioBatchSampler(BatchSampler):
    """Batches of images that are all wider than high, or all not, so that little is padded.

    Args:
        sampler: Where the indices come from.
        batch_size: Samples per batch.
        drop_last: Whether to leave out an incomplete last batch.
        dataset: The data set, for the sizes of its images.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        drop_last: bool = False,
        *,
        dataset: DetectionDataset,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.dataset = dataset

    def __iter__(self) -> Iterator[list[int]]:
        buckets: tuple[list[int], list[int]] = ([], [])
        for index in self.sampler:
            height, width = self.dataset.image_size(index)
            bucket = buckets[0 if width < height else 1]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()
        # What is left of the two kinds is mixed, as in MMDetection.
        rest = buckets[0] + buckets[1]
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch
