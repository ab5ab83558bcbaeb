"""Data sets made of data sets."""

import math

import numpy as np
import pytest

from deploykit.errors import ConfigError, DatasetError
from deploykit.training.data import build_dataloader, build_dataset
from deploykit.training.data.transforms import Transform

RESIZE = {"type": "Resize", "scale": (32, 32)}


def ids(dataset):
    return [dataset.record(index).image_id for index in range(len(dataset))]


def test_concatenation(coco_folder):
    parts = [coco_folder("a", images=3, seed=1), coco_folder("b", images=4, seed=2)]
    dataset = build_dataset(
        {"type": "ConcatDataset", "datasets": [part.config(RESIZE) for part in parts]}
    )
    assert len(dataset) == 7
    assert ids(dataset) == [0, 1, 2, 0, 1, 2, 3]
    paths = [dataset[index].meta["img_path"] for index in range(7)]
    assert ["/a/" in path for path in paths] == [True] * 3 + [False] * 4
    assert dataset.classes == ("cat", "dog", "owl")
    assert len(dataset.reports()) == 2
    assert dataset.image_size(6) == (dataset.record(6).height, dataset.record(6).width)
    with pytest.raises(IndexError):
        dataset[7]
    assert dataset[-1].meta["img_path"] == paths[-1]


def test_concatenated_data_sets_must_agree_on_classes(coco_folder):
    one = coco_folder("a").config(RESIZE)
    other = coco_folder("b").config(RESIZE, metainfo={"classes": ("dog", "cat", "owl")})
    with pytest.raises(DatasetError, match="metainfo"):
        build_dataset({"type": "ConcatDataset", "datasets": [one, other]})
    with pytest.raises(ConfigError, match="at least one"):
        build_dataset({"type": "ConcatDataset", "datasets": []})


def test_repetition(coco_folder):
    inner = coco_folder(images=3).config(RESIZE, {"type": "RandomFlip", "prob": 0.5})
    dataset = build_dataset({"type": "RepeatDataset", "dataset": inner, "times": 4})
    assert ids(dataset) == [0, 1, 2] * 4
    loader = build_dataloader(
        {
            "batch_size": 12,
            "dataset": dataset,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        }
    )
    (batch,) = loader
    flips = {}
    for meta in batch.metas:
        flips.setdefault(meta["img_id"], set()).add(meta["flip"])
    assert any(len(each) == 2 for each in flips.values())  # repeats are drawn anew
    with pytest.raises(ConfigError, match="times"):
        build_dataset({"type": "RepeatDataset", "dataset": inner, "times": 0})


def test_rare_classes_are_repeated(coco_folder):
    folder = coco_folder(images=10)
    folder.content["annotations"] = []
    for image in range(10):
        folder.add_annotation(image, [1, 1, 9, 9], 1)
    folder.add_annotation(3, [5, 5, 9, 9], 6)
    for image in (4, 5):
        folder.add_annotation(image, [5, 5, 9, 9], 11)
    folder.write()
    threshold = 0.9
    dataset = build_dataset(
        {
            "type": "ClassBalancedDataset",
            "dataset": folder.config(RESIZE),
            "oversample_thr": threshold,
        }
    )
    expected = {3: math.ceil(math.sqrt(threshold / 0.1)), 4: math.ceil(math.sqrt(threshold / 0.2))}
    found = ids(dataset)
    assert found.count(3) == expected[3] == 3
    assert found.count(4) == found.count(5) == expected[4] == 3
    assert all(found.count(image) == 1 for image in (0, 1, 2, 6, 7, 8, 9))
    with pytest.raises(ConfigError, match="oversample_thr"):
        build_dataset({"type": "ClassBalancedDataset", "dataset": dataset, "oversample_thr": 0})


def test_lazy_wrappers_load_when_needed(coco_folder):
    folder = coco_folder(images=3)
    inner = folder.config(RESIZE)
    del inner["type"]
    config = {"type": "CocoDataset", **inner}
    from deploykit.training.registry import DATASETS

    (folder.root / "ann.json").rename(folder.root / "later.json")
    dataset = DATASETS.build(
        {"type": "ConcatDataset", "datasets": [config, config], "lazy_init": True}
    )
    (folder.root / "later.json").rename(folder.root / "ann.json")
    assert len(dataset) == 6


class Recorder(Transform):
    """Lets a test see what comes by."""

    def __init__(self):
        self.seen = []

    def __call__(self, sample, rng):
        self.seen.append(sample.image.shape)
        return sample


def yolox(folder, *after, **options):
    inner = folder.config(**options)
    inner["pipeline"] = inner["pipeline"][:-1]
    return {
        "type": "MultiImageMixDataset",
        "dataset": inner,
        "pipeline": [
            {"type": "Mosaic", "img_scale": (40, 40)},
            {"type": "RandomAffine", "scaling_ratio_range": (0.5, 1.5), "border": (-20, -20)},
            {"type": "MixUp", "img_scale": (40, 40), "ratio_range": (0.8, 1.6)},
            {"type": "YOLOXHSVRandomAug"},
            *after,
            {"type": "PackDetInputs"},
        ],
    }


def test_yolox_mixing(coco_folder):
    dataset = build_dataset(yolox(coco_folder()))
    assert len(dataset) == 8
    for index in range(8):
        sample = dataset.fetch(index, np.random.default_rng(index))
        assert sample.image.shape == (40, 40, 3)
        assert sample.meta["img_id"] == index
        assert len(sample.boxes) == len(sample.labels)
        again = dataset.fetch(index, np.random.default_rng(index))
        assert np.array_equal(sample.image, again.image)
        assert np.array_equal(sample.boxes, again.boxes)


def test_the_number_of_workers_does_not_matter_for_yolox(coco_folder):
    folder = coco_folder()
    results = []
    for workers in (0, 2):
        loader = build_dataloader(
            {"batch_size": 3, "dataset": yolox(folder), "num_workers": workers}, seed=4
        )
        results.append([batch.images.clone() for batch in loader])
        loader.close()
    assert all((a == b).all() for a, b in zip(*results, strict=True))


def test_mixing_can_be_switched_off_for_the_last_epochs(coco_folder):
    folder = coco_folder()
    loader = build_dataloader(
        {"batch_size": 1, "dataset": yolox(folder), "num_workers": 2, "persistent_workers": True}
    )
    assert {tuple(batch.images.shape) for batch in loader} == {(1, 40, 40, 3)}
    loader.skip_transforms(("Mosaic", "RandomAffine", "MixUp"))
    plain = build_dataset(folder.config())
    for batch in loader:
        record = plain.record(batch.metas[0]["img_id"])
        assert batch.images.shape == (1, record.height, record.width, 3)
    loader.close()
    other = build_dataloader({"batch_size": 1, "dataset": folder.config()})
    with pytest.raises(ConfigError, match="MultiImageMixDataset"):
        other.skip_transforms(("Mosaic",))


def test_broken_partners_are_replaced_and_counted(coco_folder):
    folder = coco_folder()
    for index in (1, 2, 3):
        folder.image_path(index).write_bytes(b"broken")
    loader = build_dataloader({"batch_size": 4, "dataset": yolox(folder)}, seed=1)
    for batch in loader:
        assert batch.images.shape[1:] == (40, 40, 3)
    assert loader.report.counts["unreadable_image"] > 3  # as partners too


def test_wrong_pipelines_are_refused(coco_folder):
    folder = coco_folder()
    config = yolox(folder)
    config["pipeline"].insert(0, {"type": "CachedMosaic"})
    with pytest.raises(ConfigError, match="keeps its own cache"):
        build_dataset(config)
    nothing = yolox(folder, {"type": "FilterAnnotations", "min_gt_bbox_wh": (900, 900)})
    with pytest.raises(DatasetError, match="FilterAnnotations gave no sample"):
        build_dataset(nothing)[0]


def test_a_transform_that_fails_in_the_mix_names_itself(coco_folder):
    class Boom(Transform):
        def __call__(self, sample, rng):
            raise KeyError("img")

    dataset = build_dataset(yolox(coco_folder()))
    dataset.set_pipeline([Boom()])
    with pytest.raises(DatasetError, match=r"0\.png: Boom failed: KeyError"):
        dataset[0]


def test_partners_come_from_the_data_set_itself(coco_folder):
    recorder = Recorder()
    folder = coco_folder()
    config = yolox(folder)
    config["dataset"]["pipeline"].append(recorder)
    dataset = build_dataset(config)
    dataset[0]
    assert len(recorder.seen) == 1 + 3 + 1  # the sample, three for the mosaic, one to mix in
