from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from deploykit.errors import UsageError
from deploykit.training.config import Config, load_config
from deploykit.training.data.drawn_dataset import write_drawn_dataset
from deploykit.training.engine import overrides
from deploykit.training.recipes import find_config


@pytest.fixture
def recipe() -> Config:
    return load_config(find_config("rtmdet_tiny"))


def test_epochs_move_what_counts_epochs(recipe: Config) -> None:
    before = json.dumps(recipe)
    changed = overrides.with_epochs(recipe, 30)
    assert json.dumps(recipe) == before
    assert changed["train_cfg"]["max_epochs"] == 30
    assert changed["train_cfg"]["dynamic_intervals"] == [(28, 1)]
    warmup, cosine = changed["param_scheduler"]
    assert (warmup["begin"], warmup["end"]) == (0, 1000)
    assert (cosine["begin"], cosine["end"], cosine["T_max"]) == (15, 30, 15)
    switch = next(h for h in changed["custom_hooks"] if h["type"] == "PipelineSwitchHook")
    assert switch["switch_epoch"] == 28


def test_phases_without_length_are_left_out() -> None:
    config = Config(
        dict(
            train_cfg=dict(max_epochs=100, val_interval=10),
            param_scheduler=[
                dict(type="LinearLR", begin=0, end=2),
                dict(type="MultiStepLR", begin=0, end=100, milestones=[60, 90]),
            ],
        )
    )
    changed = overrides.with_epochs(config, 10)
    assert changed["param_scheduler"] == [
        dict(type="MultiStepLR", begin=0, end=10, milestones=[6, 9])
    ]
    assert changed["train_cfg"]["val_interval"] == 10


@pytest.mark.parametrize("epochs", [0, -3])
def test_epochs_must_be_positive(recipe: Config, epochs: int) -> None:
    with pytest.raises(UsageError, match="--epochs"):
        overrides.with_epochs(recipe, epochs)
    with pytest.raises(UsageError, match="max_epochs"):
        overrides.with_epochs(Config(dict(train_cfg=dict(max_iters=5))), 3)


def test_image_size_scales_every_size(recipe: Config) -> None:
    changed = overrides.with_image_size(recipe, (320, 160))
    sizes = {
        (transform["type"], key): transform[key]
        for transform in changed["train_dataloader"]["dataset"]["pipeline"]
        for key in ("img_scale", "scale", "crop_size", "size")
        if key in transform
    }
    assert sizes == {
        ("CachedMosaic", "img_scale"): (160, 320),
        ("RandomResize", "scale"): (320, 640),
        ("RandomCrop", "crop_size"): (160, 320),
        ("Pad", "size"): (160, 320),
        ("CachedMixUp", "img_scale"): (160, 320),
    }
    switched = next(h for h in changed["custom_hooks"] if "switch_pipeline" in h)
    assert [t["size"] for t in switched["switch_pipeline"] if t["type"] == "Pad"] == [(160, 320)]
    for loader in ("val_dataloader", "test_dataloader"):
        pipeline = changed[loader]["dataset"]["pipeline"]
        assert [t["scale"] for t in pipeline if t["type"] == "Resize"] == [(160, 320)]
    assert recipe["test_dataloader"]["dataset"]["pipeline"][1]["scale"] == (640, 640)


def test_image_size_reaches_into_random_choices(recipe: Config) -> None:
    dataset = recipe["train_dataloader"]["dataset"]
    small = [dict(type="Resize", scale=(320, 160)), dict(type="RandomCrop", crop_size=(64, 64))]
    dataset["pipeline"] = [
        dict(type="RandomChoice", transforms=[dict(type="Resize", scale=(1280, 640)), small]),
        dict(type="Pad", size=(640, 640)),
    ]
    choice, pad = overrides.with_image_size(recipe, (320, 160))["train_dataloader"]["dataset"][
        "pipeline"
    ]
    assert pad["size"] == (160, 320)
    single, pair = choice["transforms"]
    assert single["scale"] == (320, 320)
    assert (pair[0]["scale"], pair[1]["crop_size"]) == ((80, 80), (16, 32))


def test_data_root_moves_data_sets_and_annotation_files(recipe: Config) -> None:
    changed = overrides.with_data_root(recipe, "/data/mine")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert changed[loader]["dataset"]["data_root"] == "/data/mine/"
    expected = "/data/mine/annotations/instances_val2017.json"
    assert changed["val_evaluator"]["ann_file"] == expected
    assert changed["test_evaluator"]["ann_file"] == expected
    with pytest.raises(UsageError, match="data_root"):
        overrides.with_data_root(Config(), "x")


@pytest.mark.parametrize("root", ["/sets", "/sets/"])
def test_mmdet_datasets_moves_every_path(
    recipe: Config, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.delenv("MMDET_DATASETS", raising=False)
    assert overrides.with_environment_data_root(recipe) is recipe
    old = recipe["data_root"]
    monkeypatch.setenv("MMDET_DATASETS", root)
    changed = overrides.with_environment_data_root(recipe)
    assert changed["data_root"] == "/sets/"
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert changed[loader]["dataset"]["data_root"] == "/sets/"
    assert changed["val_evaluator"]["ann_file"] == "/sets/annotations/instances_val2017.json"
    assert recipe["data_root"] == recipe["val_dataloader"]["dataset"]["data_root"] == old


def test_data_sets_within_wrappers() -> None:
    leaf = dict(type="CocoDataset", data_root="a/")
    wrapped = dict(
        type="ConcatDataset", datasets=[dict(type="RepeatDataset", dataset=dict(leaf)), dict(leaf)]
    )
    config = Config(dict(train_dataloader=dict(dataset=wrapped)))
    changed = overrides.with_data_root(config, "b")
    leaves = list(overrides.leaf_datasets(changed["train_dataloader"]["dataset"]))
    assert [entry["data_root"] for entry in leaves] == ["b/", "b/"]


def test_precision_batch_size_and_workers(recipe: Config) -> None:
    assert overrides.with_amp(recipe, "bf16")["optim_wrapper"]["dtype"] == "bfloat16"
    assert "dtype" not in overrides.with_amp(recipe, "auto")["optim_wrapper"]
    assert overrides.with_amp(recipe, "auto")["optim_wrapper"]["type"] == "AmpOptimWrapper"
    assert overrides.with_batch_size(recipe, 3)["train_dataloader"]["batch_size"] == 3
    assert overrides.with_workers(recipe, 1)["val_dataloader"]["num_workers"] == 1
    with pytest.raises(UsageError):
        overrides.with_batch_size(recipe, 0)
    with pytest.raises(UsageError):
        overrides.with_workers(recipe, -1)


def test_drawn_data_is_a_coco_data_set_of_the_classes(tmp_path: Path, recipe: Config) -> None:
    classes = ("a", "b", "c")
    write_drawn_dataset(tmp_path, classes, counts=(3, 2), size=(90, 120), seed=5)
    changed = overrides.with_drawn_data(recipe, tmp_path)
    assert changed["val_evaluator"]["ann_file"] == str(tmp_path / "annotations/val.json")
    dataset = changed["train_dataloader"]["dataset"]
    annotations = Path(dataset["data_root"]) / dataset["ann_file"]
    content = json.loads(annotations.read_text())
    assert [c["name"] for c in content["categories"]] == list(classes)
    assert len(content["images"]) == 3
    assert {a["image_id"] for a in content["annotations"]} == {1, 2, 3}
    for entry in content["images"]:
        path = tmp_path / dataset["data_prefix"]["img"] / entry["file_name"]
        assert cv2.imread(str(path)).shape == (90, 120, 3)
    for annotation in content["annotations"]:
        left, top, width, height = annotation["bbox"]
        assert left >= 0
        assert top >= 0
        assert left + width <= 120
        assert top + height <= 90
        assert annotation["area"] == width * height > 0


def test_drawing_is_a_function_of_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_drawn_dataset(tmp_path / name, ("x",), counts=(1, 1), size=(60, 60), seed=seed)
    a, b, c = ((tmp_path / n / "train/00000.jpg").read_bytes() for n in "abc")
    assert a == b != c


def test_objects_are_drawn_within_their_boxes(tmp_path: Path) -> None:
    write_drawn_dataset(tmp_path, ("x",), counts=(6, 1), size=(120, 160), objects=(1, 1))
    content = json.loads((tmp_path / "annotations/train.json").read_text())
    for entry, annotation in zip(content["images"], content["annotations"], strict=True):
        image = cv2.imread(str(tmp_path / "train" / entry["file_name"])).astype(int)
        red = (abs(image - (46, 46, 230)) < 45).all(axis=-1)  # the colour of class 0, BGR
        parts = cv2.connectedComponentsWithStats(red.astype("uint8"))[2]
        largest = max(parts[1:].tolist(), key=lambda part: part[cv2.CC_STAT_AREA])
        assert largest[:4] == pytest.approx(annotation["bbox"], abs=3)
