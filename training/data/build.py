"""Builds data sets and loaders from the dicts of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler

from deploykit.errors import ConfigError
from deploykit.training.data.dataset import DetectionDataset
from deploykit.training.data.loader import DetectionLoader
from deploykit.training.data.samplers import DefaultSampler, InfiniteSampler
from deploykit.training.registry import DATASETS, SAMPLERS

_COLLATES = ("pseudo_collate", "default_collate", "collate")


def build_dataset(config: Mapping[str, Any] | DetectionDataset) -> DetectionDataset:
    """Build a data set and load its annotations.

    Args:
        config: ``dict(type="CocoDataset", ...)``; a data set is returned as it is.

    Raises:
        ConfigError: The config does not describe a data set.
        DatasetError: The annotations cannot be used.
    """
    dataset = config if isinstance(config, DetectionDataset) else DATASETS.build(config)
    if not isinstance(dataset, DetectionDataset):
        raise ConfigError(f"'{type(dataset).__name__}' is not a data set")
    dataset.full_init()
    return dataset


def build_dataloader(
    config: Mapping[str, Any], seed: int = 0, num_workers: int | None = None
) -> DetectionLoader:
    """Build a loader from a config's ``train_dataloader``, ``val_dataloader``...

    Args:
        config: ``batch_size``, ``dataset``, ``sampler`` and, if wanted, ``num_workers``,
            ``batch_sampler``, ``drop_last``, ``persistent_workers``, ``pin_memory``,
            ``prefetch_factor``.
        seed: Seed of the order and of everything that the transforms draw.
        num_workers: Worker processes instead of those of the config.

    Raises:
        ConfigError: A key is missing, unknown or makes no sense.
        DatasetError: The annotations cannot be used.
    """
    options = dict(config)
    for key in ("batch_size", "dataset"):
        if key not in options:
            raise ConfigError(
                f"a dataloader needs '{key}'; it has {', '.join(options) or 'nothing'}"
            )
    batch_size = _whole(options.pop("batch_size"), "batch_size", 1)
    workers = _whole(options.pop("num_workers", 0), "num_workers", 0)
    if num_workers is not None:
        workers = _whole(num_workers, "num_workers", 0)
    drop_last = bool(options.pop("drop_last", False))
    persistent = bool(options.pop("persistent_workers", False))
    pin_memory = bool(options.pop("pin_memory", False))
    prefetch = options.pop("prefetch_factor", None)
    _check_collate(options.pop("collate_fn", None))
    sampler_config = dict(options.pop("sampler", None) or {"type": "DefaultSampler"})
    batch_sampler_config = options.pop("batch_sampler", None)
    dataset_config = options.pop("dataset")
    if options:
        raise ConfigError(f"unknown keys of a dataloader: {', '.join(map(str, options))}")
    if seed < 0:
        raise ConfigError(f"seed must be >= 0, got {seed}")
    dataset = build_dataset(dataset_config)
    sampler = SAMPLERS.build(sampler_config, dataset=dataset, seed=seed)
    if not isinstance(sampler, DefaultSampler | InfiniteSampler):
        raise ConfigError(f"'{sampler_config['type']}' cannot be used as 'sampler' of a dataloader")
    return DetectionLoader(
        dataset,
        _build_batch_sampler(batch_sampler_config, dataset, sampler, batch_size, drop_last),
        seed=seed,
        num_workers=workers,
        rank=sampler.rank,
        persistent_workers=persistent,
        pin_memory=pin_memory,
        prefetch_factor=None if prefetch is None else _whole(prefetch, "prefetch_factor", 1),
    )


def _build_batch_sampler(
    config: Mapping[str, Any] | None,
    dataset: DetectionDataset,
    sampler: DefaultSampler | InfiniteSampler,
    batch_size: int,
    drop_last: bool,
) -> BatchSampler:
    if config is None:
        return BatchSampler(sampler, batch_size, drop_last)
    batch_sampler = SAMPLERS.build(
        config, sampler=sampler, batch_size=batch_size, drop_last=drop_last, dataset=dataset
    )
    if not isinstance(batch_sampler, BatchSampler):
        raise ConfigError(f"'{config.get('type')}' cannot be used as 'batch_sampler'")
    return batch_sampler


def _check_collate(value: Any) -> None:
    name = value.get("type") if isinstance(value, Mapping) else value
    if name is not None and name not in _COLLATES:
        raise ConfigError(
            f"collate_fn '{name}' is not known; leave it out, samples are always made a Batch"
        )


def _whole(value: Any, name: str, smallest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(f"{name} must be a whole number >= {smallest}, got {value!r}")
    return value
