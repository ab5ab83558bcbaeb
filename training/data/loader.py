"""``DetectionLoader``: batches from a data set, by worker processes or in this one.

What a batch holds is a function of (seed, epoch, rank, position) and, where transforms keep caches,
of how the batches are dealt out to the workers. The request that travels to a worker carries the
epoch, so that workers that live on need not be told, and a batch that was requested early cannot be
made with the wrong one.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, get_worker_info

from deploykit.errors import DatasetError, DeploykitError
from deploykit.training.data.collate import collate
from deploykit.training.data.dataset import DetectionDataset, UnusableSampleError
from deploykit.training.data.report import PROBLEM_KINDS, AnnotationReport
from deploykit.training.data.sample import Sample
from deploykit.training.structures import Batch

logger = logging.getLogger(__name__)

# Problems met while reading are logged one by one up to this number, then only counted.
PROBLEMS_LOGGED = 10

# Sets the streams for samples and for filling caches apart in the seed sequence.
_SAMPLE_STREAM, _CACHE_STREAM = 0, 1


@dataclass(frozen=True)
class _Request:
    """What a worker is asked for.

    Args:
        run: Number of this pass over the loader; a new one starts with fresh caches.
        epoch: The epoch, for the seeds.
        position: How many samples of the epoch came before this batch in this process.
        indices: The samples of the batch.
    """

    run: int
    epoch: int
    position: int
    indices: tuple[int, ...]


@dataclass
class _Delivery:
    """What comes back: a batch (unless every sample was left out), or an error."""

    batch: Batch | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    error: DeploykitError | None = None
    trace: str = ""

    def pin_memory(self) -> _Delivery:
        if self.batch is not None:
            self.batch = _pinned(self.batch)
        return self


class _WorkerError(Exception):
    """Carries the traceback of a worker process as the cause of the error it raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _BatchSource(Dataset[_Delivery]):
    """Makes batches; lives in each worker process."""

    def __init__(
        self,
        dataset: DetectionDataset,
        seed: int,
        rank: int,
        make_batch: Callable[[Sequence[Sample]], Batch],
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.make_batch = make_batch
        self._run = -1

    def __getitems__(self, request: _Request) -> _Delivery:
        problems: list[tuple[str, str]] = []
        try:
            self._start_run(request, problems)
            samples = []
            for offset, index in enumerate(request.indices):
                try:
                    sample = self.dataset.fetch(index, self._rng(request, offset))
                except UnusableSampleError as error:
                    problems += error.problems
                    continue
                problems += sample.problems
                samples.append(sample)
            return _Delivery(self.make_batch(samples) if samples else None, problems)
        except DeploykitError as error:
            # Sent back by value: torch would wrap it into a message with a traceback inside.
            return _Delivery(None, problems, error, traceback.format_exc())

    def _start_run(self, request: _Request, problems: list[tuple[str, str]]) -> None:
        if request.run != self._run:
            self._run = request.run
            worker = get_worker_info()
            key = (request.epoch, self.rank, worker.id if worker else 0, _CACHE_STREAM)
            problems += self.dataset.begin_epoch(np.random.default_rng((self.seed, *key)))

    def _rng(self, request: _Request, offset: int) -> np.random.Generator:
        key = (request.epoch, self.rank, request.position + offset, _SAMPLE_STREAM)
        return np.random.default_rng((self.seed, *key))


class _Requests:
    """Turns the batches of a batch sampler into requests."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler
        self.run = -1
        self.epoch = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[_Request]:
        self.run += 1
        position = 0
        skipped, self.skipped = self.skipped, 0
        for number, indices in enumerate(self.batch_sampler):
            if number >= skipped:
                yield _Request(self.run, self.epoch, position, tuple(indices))
            position += len(indices)


class DetectionLoader:
    """Iterates over batches.

    Args:
        dataset: The data set.
        batch_sampler: Batches of indices.
        seed: Seed of everything that the transforms draw.
        num_workers: Worker processes; 0 makes the batches in this one.
        rank: This process among those that train together; gets its own random numbers.
        persistent_workers: Whether workers live on from epoch to epoch.
        pin_memory: Whether batches are put into pinned memory (with CUDA alone).
        prefetch_factor: Batches that each worker makes ahead.
        make_batch: What turns samples into a batch.

    Attributes:
        report: Problems met while reading images, over the life of the loader.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_sampler: BatchSampler,
        *,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        persistent_workers: bool = True,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        make_batch: Callable[[Sequence[Sample]], Batch] = collate,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.persistent_workers = persistent_workers and num_workers > 0
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.prefetch_factor = prefetch_factor
        self.make_batch = make_batch
        self.report = AnnotationReport("while reading images")
        self._logged: set[str] = set()
        self._requests = _Requests(batch_sampler)
        self._loader: DataLoader[_Delivery] | None = None

    @property
    def batch_size(self) -> int:
        """Samples per batch."""
        return int(self.batch_sampler.batch_size)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self._requests.epoch = epoch
        set_epoch = getattr(self.batch_sampler.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the next iteration, without making them.

        The others are the same as without this if ``dataset.keeps_caches`` is false.

        Args:
            batches: How many.
        """
        self._requests.skipped = batches

    def switch_pipeline(self, transforms: Sequence[Any]) -> None:
        """Use another pipeline from the next iteration on; workers are started anew.

        Args:
            transforms: Config dicts or transforms.

        Raises:
            ConfigError: The pipeline cannot be built.
        """
        self.dataset.set_pipeline(transforms)
        self.close()

    def skip_transforms(self, types: Sequence[str]) -> None:
        """Leave out transforms of a ``MultiImageMixDataset`` from the next iteration on.

        Args:
            types: Their type names, e.g. ``("Mosaic", "RandomAffine", "MixUp")``.
        """
        self.dataset.skip_transforms(types)
        self.close()

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        loader, self._loader = self._loader, None
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch.

        Raises:
            DatasetError: No usable sample could be had, a transform failed, or a worker died.
            MediaError: An image cannot be read and the configuration says to stop.
        """
        with warnings.catch_warnings():
            # torch's advice on more workers than cores is a paragraph, given twice.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            if self._loader is None:
                self._loader = self._start()
            deliveries = iter(self._loader)
        while (delivery := self._next(deliveries)) is not None:
            self._note(delivery.problems)
            if delivery.error is not None:
                self.close()
                raise delivery.error from _WorkerError(delivery.trace)
            if delivery.batch is not None:
                yield delivery.batch

    def _next(self, deliveries: Iterator[_Delivery]) -> _Delivery | None:
        try:
            return next(deliveries, None)
        except RuntimeError as error:
            # torch has no class of its own for a worker that the system killed.
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise DatasetError(
                f"a data loading worker died, most often for lack of memory or of shared memory "
                f"(/dev/shm); use fewer num_workers than {self.num_workers} or a smaller "
                f"prefetch_factor ({str(error).splitlines()[0]})"
            ) from error

    def _start(self) -> DataLoader[_Delivery]:
        cores = os.cpu_count() or 1
        if self.num_workers > cores:
            logger.info("%d data workers share %d cores", self.num_workers, cores)
        source = _BatchSource(self.dataset, self.seed, self.rank, self.make_batch)
        return DataLoader(
            source,
            # Requests go through the door for batches of indices; torch only passes them on.
            batch_sampler=self._requests,  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=_as_is,  # type: ignore[arg-type]
            worker_init_fn=_init_worker,
            persistent_workers=self.persistent_workers,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            # An own generator, so that iterating leaves torch's global one alone.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _note(self, problems: list[tuple[str, str]]) -> None:
        for kind, example in problems:
            self.report.add(kind, example)
            if example in self._logged or len(self._logged) >= PROBLEMS_LOGGED:
                continue
            self._logged.add(example)
            logger.warning("%s: %s", PROBLEM_KINDS[kind].meaning, example)
            if len(self._logged) == PROBLEMS_LOGGED:
                logger.warning("further problems with images are counted, not logged one by one")


def _as_is(delivery: _Delivery) -> _Delivery:
    return delivery


def _init_worker(worker_id: int) -> None:
    # One thread per worker: the workers are the parallelism.
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)


def _pinned(batch: Batch) -> Batch:
    for target in batch.targets:
        target.boxes = target.boxes.pin_memory()
        target.labels = target.labels.pin_memory()
        target.ignored_boxes = target.ignored_boxes.pin_memory()
        if target.masks is not None:
            target.masks = target.masks.pin_memory()
    batch.images = batch.images.pin_memory()
    batch.image_sizes = batch.image_sizes.pin_memory()
    return batch
