"""Batches are a function of seed, epoch and position, whoever makes them; errors reach the user."""

import hashlib
import itertools
import logging
import os
import random
import signal
import warnings

import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError, DatasetError, MediaError
from deploykit.training.data import AspectRatioBatchSampler, build_dataloader, collate
from deploykit.training.data.sample import Sample
from deploykit.training.data.transforms import Transform

RESIZE = {"type": "Resize", "scale": (32, 32), "keep_ratio": True}
FLIP = {"type": "RandomFlip", "prob": 0.5}
PAD = {"type": "Pad", "size": (32, 32)}
PLAIN = (RESIZE, {"type": "YOLOXHSVRandomAug"}, FLIP, PAD)
CACHED = (
    {"type": "CachedMosaic", "img_scale": (32, 32), "max_cached_images": 8},
    {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.5, 1.5), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (32, 32)},
    FLIP,
    PAD,
    {"type": "CachedMixUp", "img_scale": (32, 32), "ratio_range": (1.0, 1.0)},
)


class Failing(Transform):
    """Raises on one image."""

    def __init__(self, error):
        self.error = error

    def __call__(self, sample, rng):
        if sample.record.image_id == 3:
            raise self.error
        return sample


class Tagging(Transform):
    """Notes which process made the sample."""

    def __call__(self, sample, rng):
        sample.meta["img_id"] = (sample.record.image_id, os.getpid())
        return sample


def loader_of(folder, *transforms, seed=0, workers=0, dataset=None, **options):
    folder.write()
    config = {
        "batch_size": 3,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "dataset": folder.config(*transforms, **(dataset or {})),
    }
    return build_dataloader(config | options, seed=seed)


def digest(batch):
    parts = [batch.images.numpy().tobytes(), batch.image_sizes.numpy().tobytes()]
    for target in batch.targets:
        parts += [target.boxes.numpy().tobytes(), target.labels.numpy().tobytes()]
    parts.append(repr([meta["img_id"] for meta in batch.metas]).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def epochs_of(loader, epochs):
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        found.append([digest(batch) for batch in loader])
    loader.close()
    return found


def test_a_batch_holds_what_it_promises(coco_folder):
    loader = loader_of(coco_folder(), RESIZE, dataset={"with_mask": True})
    assert len(loader) == 3
    seen = []
    for batch in loader:
        count, height, width, channels = batch.images.shape
        assert batch.images.dtype == torch.uint8
        assert channels == 3
        assert batch.image_sizes.dtype == torch.int32
        assert batch.image_sizes.max(dim=0).values.tolist() == [height, width]
        assert len(batch.targets) == len(batch.metas) == count
        for row, (target, meta) in enumerate(zip(batch.targets, batch.metas, strict=True)):
            high, wide = batch.image_sizes[row].tolist()
            assert meta["img_shape"] == (high, wide)
            assert batch.images[row, high:].sum() == batch.images[row, :, wide:].sum() == 0
            assert target.boxes.dtype == torch.float32
            assert target.labels.dtype == torch.int64
            assert target.masks.shape == (len(target.boxes), height, width)
            # RGB: a mask covers pixels as bright as the label says.
            for label, mask in zip(target.labels, target.masks.bool(), strict=True):
                assert batch.images[row][mask].float().median() == 120 + 60 * int(label)
            seen.append(meta["img_id"])
    assert sorted(seen) == list(range(8))


def test_collate_turns_bgr_to_rgb(make_sample):
    image = np.zeros((4, 5, 3), np.uint8)
    image[..., 0] = 255  # blue in OpenCV's order
    batch = collate([make_sample(image)])
    assert batch.images[0, 0, 0].tolist() == [0, 0, 255]
    mixed = collate([make_sample(image), make_sample(image.astype(np.float32) + 0.5)])
    assert mixed.images.dtype == torch.float32
    assert mixed.images[0, 0, 0].tolist() == [0, 0, 255]
    assert mixed.images[1, 0, 0].tolist() == [0.5, 0.5, 255.5]
    with pytest.raises(DatasetError, match="at least one"):
        collate([])
    with pytest.raises(DatasetError, match="H, W, 3"):
        collate([make_sample(np.zeros((4, 5, 4), np.uint8))])


def test_without_caches_the_number_of_workers_does_not_matter(coco_folder):
    folder = coco_folder()
    expected = epochs_of(loader_of(folder, *PLAIN, seed=5), (0, 1, 2))
    assert len({tuple(each) for each in expected}) == 3
    for workers in (1, 2):
        assert epochs_of(loader_of(folder, *PLAIN, seed=5, workers=workers), (0, 1, 2)) == expected
    assert epochs_of(loader_of(folder, *PLAIN, seed=6), (0,)) != expected[:1]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_with_caches_an_epoch_is_a_function_of_seed_and_epoch(coco_folder, workers, persistent):
    folder = coco_folder(images=20)
    options = {"workers": workers, "seed": 5, "persistent_workers": persistent}
    straight = epochs_of(loader_of(folder, *CACHED, **options), (0, 1, 2))
    assert len({tuple(each) for each in straight}) == 3
    # As after a resume: a new loader that begins with a later epoch, or goes back.
    resumed = epochs_of(loader_of(folder, *CACHED, **options), (2, 1))
    assert resumed == [straight[2], straight[1]]


def test_an_epoch_that_was_broken_off_leaves_no_trace(coco_folder):
    folder = coco_folder(images=20)
    for workers in (0, 2):
        expected = epochs_of(loader_of(folder, *CACHED, workers=workers), (1, 1))
        assert expected[0] == expected[1]
        loader = loader_of(folder, *CACHED, workers=workers)
        loader.set_epoch(0)
        for _ in itertools.islice(loader, 2):
            pass
        assert epochs_of(loader, (1,)) == expected[:1]


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_batches_do_not_change_the_others(coco_folder, workers):
    loader = loader_of(coco_folder(), *PLAIN, workers=workers)
    assert not loader.dataset.keeps_caches
    whole, again = epochs_of(loader, [1, 2])
    loader.set_epoch(1)
    loader.skip(2)
    assert [digest(batch) for batch in loader] == whole[2:]
    assert epochs_of(loader, [2]) == [again]
    loader.close()


def test_the_first_samples_of_an_epoch_are_mixed_already(coco_folder):
    folder = coco_folder(images=20)
    mosaic = {"type": "CachedMosaic", "img_scale": (32, 32)}
    for workers in (0, 2):
        loader = loader_of(folder, mosaic, workers=workers)
        sizes = [tuple(batch.images.shape[1:3]) for batch in loader]
        assert set(sizes) == {(64, 64)}
        loader.close()


def test_more_workers_than_cores_are_mentioned_in_one_line(coco_folder, caplog, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    loader = loader_of(coco_folder(), *PLAIN, workers=2)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        list(loader)
    loader.close()
    assert [record.getMessage() for record in caplog.records] == ["2 data workers share 1 cores"]


def test_processes_get_random_numbers_of_their_own(coco_folder):
    folder = coco_folder()
    sampler = {"type": "DefaultSampler", "shuffle": False, "world_size": 1, "rank": 0}
    loader = loader_of(folder, *PLAIN, sampler=sampler)
    other = loader_of(folder, *PLAIN, sampler=sampler)
    other.rank = 1
    assert epochs_of(loader, (0,)) != epochs_of(other, (0,))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(coco_folder, workers):
    loader = loader_of(coco_folder(), *CACHED, workers=workers)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    for _ in loader:
        pass
    loader.close()
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after


def test_workers_live_on_and_are_replaced_with_the_pipeline(coco_folder):
    folder = coco_folder(images=12)
    folder.write()
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, RESIZE, PAD]
    loader = loader_of(folder, workers=2, dataset={"pipeline": [*pipeline, Tagging()]})

    def pids():
        return {meta["img_id"][1] for batch in loader for meta in batch.metas}

    first = pids()
    assert len(first) == 2
    assert os.getpid() not in first
    loader.set_epoch(1)
    assert pids() == first
    larger = {"type": "Resize", "scale": (48, 40)}
    loader.switch_pipeline([*pipeline[:2], larger, Tagging()])
    loader.set_epoch(2)
    assert {tuple(batch.images.shape[1:3]) for batch in loader} == {(40, 48)}
    assert pids().isdisjoint(first)
    loader.close()
    with pytest.raises(ConfigError, match="unknown transform"):
        loader.switch_pipeline([{"type": "Nonsense"}])


def test_switching_the_pipeline_equals_having_begun_with_it(coco_folder):
    folder = coco_folder()
    expected = epochs_of(loader_of(folder, *PLAIN, workers=2), (3,))
    loader = loader_of(folder, *CACHED, workers=2)
    loader.set_epoch(2)
    for _ in loader:
        pass
    loader.switch_pipeline(folder.config(*PLAIN)["pipeline"])
    assert epochs_of(loader, (3,)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_arrive_as_they_were_raised(coco_folder, workers):
    folder = coco_folder()
    folder.image_path(3).write_bytes(b"broken")
    loader = loader_of(folder, *PLAIN, workers=workers, dataset={"on_error": "raise"})
    with pytest.raises(MediaError) as caught:
        list(loader)
    loader.close()
    message = str(caught.value)
    assert "3.png" in message
    assert "\n" not in message
    assert "DataLoader" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_a_transform_names_the_image_and_keeps_its_traceback(coco_folder, workers):
    folder = coco_folder()
    pipeline = [{"type": "LoadImageFromFile"}, Failing(ZeroDivisionError("oops"))]
    loader = loader_of(folder, workers=workers, dataset={"pipeline": pipeline})
    with pytest.raises(
        DatasetError, match=r"3\.png: Failing failed: ZeroDivisionError: oops"
    ) as caught:
        list(loader)
    loader.close()
    assert "raise self.error" in str(caught.value.__cause__)


def test_a_worker_that_the_system_kills_gives_a_clear_error(coco_folder):
    class Suicidal(Transform):
        def __call__(self, sample, rng):
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline = [{"type": "LoadImageFromFile"}, Suicidal()]
    loader = loader_of(coco_folder(), workers=1, dataset={"pipeline": pipeline})
    with pytest.raises(DatasetError, match="worker died.*num_workers") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_counted_and_logged(coco_folder, workers, caplog):
    folder = coco_folder()
    for index in (2, 5):
        folder.image_path(index).write_bytes(b"broken")
    loader = loader_of(folder, *PLAIN, workers=workers)
    with caplog.at_level(logging.WARNING):
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            seen = [meta["img_id"] for batch in loader for meta in batch.metas]
            assert len(seen) == 8
            assert not {2, 5} & set(seen)
    loader.close()
    assert loader.report.counts["unreadable_image"] >= 4
    # Every image is logged once, however often it comes up.
    assert sum("2.png" in record.getMessage() for record in caplog.records) == 1
    assert "5.png" in caplog.text


def test_many_broken_images_do_not_flood_the_log(coco_folder, caplog):
    folder = coco_folder(images=20)
    for index in range(15):
        folder.image_path(index).write_bytes(b"broken")
    loader = loader_of(folder, *PLAIN)
    with caplog.at_level(logging.WARNING):
        list(loader)
    assert loader.report.counts["unreadable_image"] >= 15
    assert len(caplog.records) == 11
    assert "counted, not logged" in caplog.text


def test_a_validation_image_that_is_left_out_is_missing_not_replaced(coco_folder):
    folder = coco_folder()
    folder.image_path(4).write_bytes(b"broken")
    sampler = {"type": "DefaultSampler", "shuffle": False}
    options = {"sampler": sampler, "batch_size": 1}
    loader = loader_of(folder, RESIZE, dataset={"test_mode": True, "on_error": "skip"}, **options)
    assert [meta["img_id"] for batch in loader for meta in batch.metas] == [0, 1, 2, 3, 5, 6, 7]
    assert loader.report.counts == {"unreadable_image": 1}
    strict = loader_of(folder, RESIZE, dataset={"test_mode": True}, **options)
    with pytest.raises(MediaError, match=r"4\.png"):
        list(strict)


def test_aspect_ratio_batches_from_a_config(coco_folder):
    loader = loader_of(
        coco_folder(images=12), RESIZE, batch_sampler={"type": "AspectRatioBatchSampler"}
    )
    assert isinstance(loader.batch_sampler, AspectRatioBatchSampler)
    batches = [[meta["img_id"] for meta in batch.metas] for batch in loader]
    assert sorted(itertools.chain(*batches)) == list(range(12))
    assert loader.batch_size == 3


def test_endless_training(coco_folder):
    loader = loader_of(coco_folder(), *PLAIN, sampler={"type": "InfiniteSampler"})
    first = [digest(batch) for batch in itertools.islice(loader, 7)]
    assert len(set(first)) == 7
    assert [digest(batch) for batch in itertools.islice(loader, 7)] == first


def test_drop_last(coco_folder):
    loader = loader_of(coco_folder(), RESIZE, PAD, drop_last=True)
    assert [len(batch.metas) for batch in loader] == [3, 3]
    assert len(loader) == 2


def test_num_workers_of_the_caller_wins(coco_folder):
    folder = coco_folder()
    config = {"batch_size": 2, "num_workers": 4, "dataset": folder.config(RESIZE)}
    assert build_dataloader(config).num_workers == 4
    assert build_dataloader(config, num_workers=0).num_workers == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch_factor": 0}, "prefetch_factor"),
        ({"shuffle": True}, "unknown keys"),
        ({"collate_fn": {"type": "yolo_collate"}}, "yolo_collate"),
        ({"sampler": {"type": "AspectRatioBatchSampler"}}, "AspectRatioBatchSampler"),
        ({"batch_sampler": {"type": "Nonsense"}}, "Nonsense"),
        ({"dataset": {"type": "VOCDataset"}}, "VOCDataset"),
        ({"dataset": {"type": "CocoDataset", "ann_fil": "x"}}, "ann_fil"),
    ],
)
def test_senseless_configs_are_refused(coco_folder, change, message):
    config = {"batch_size": 2, "dataset": coco_folder().config(RESIZE)} | change
    with pytest.raises(ConfigError, match=message) as caught:
        build_dataloader(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="batch_size"):
        build_dataloader({"dataset": {}})
    with pytest.raises(ConfigError, match="seed"):
        build_dataloader({"batch_size": 2, "dataset": coco_folder("b").config(RESIZE)}, seed=-1)


def test_samples_are_cheap_to_copy(make_sample):
    sample = make_sample(np.zeros((4, 4, 3), np.uint8), [[0, 0, 2, 2]])
    copied = sample.copy()
    copied.meta["img_id"] = 9
    copied.problems.append(("invalid_mask", "x"))
    copied.boxes = copied.boxes + 1
    assert isinstance(copied, Sample)
    assert "img_id" not in sample.meta
    assert sample.problems == []
    assert sample.boxes[0, 0] == 0
    assert copied.image is sample.image


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_pinned_memory(coco_folder, workers):
    loader = loader_of(coco_folder(), *PLAIN, workers=workers, pin_memory=True)
    for batch in loader:
        assert batch.images.is_pinned()
        assert all(target.boxes.is_pinned() for target in batch.targets)
        assert batch.to("cuda", non_blocking=True).images.is_cuda
    loader.close()
