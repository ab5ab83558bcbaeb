from __future__ import annotations

import json

import cv2
import pytest

from deploykit.cli import main
from deploykit.demo.run import MIN_TILES, TILE, Demo, cut_tiles
from deploykit.training.data.drawn_dataset import write_drawn_dataset
from deploykit.training.recipes import find_config

SMALL = """
_base_ = {base!r}
scale = (128, 128)
model = dict(
    backbone=dict(widen_factor=0.0625),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
    test_cfg=dict(max_per_img=20),
)
train_pipeline = {{{{_base_.train_pipeline}}}}
train_pipeline[2]["scale"] = scale
train_pipeline[3]["crop_size"] = (64, 96)
train_pipeline[6]["size"] = (96, 96)
test_pipeline = {{{{_base_.test_pipeline}}}}
test_pipeline[1]["scale"] = scale
test_pipeline[2]["size"] = scale
train_dataloader = dict(
    num_workers=0,
    batch_size=2,
    persistent_workers=False,
    dataset=dict(times=1, dataset=dict(pipeline=train_pipeline)),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
"""


def test_tiles_cover_the_images_and_are_at_least_fifty(tmp_path):
    from deploykit.exporters.parity_images import draw_scene

    for index, size in enumerate([(700, 400), (200, 900), (100, 100)]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), draw_scene(index, size))
    tiles = sorted(cut_tiles(tmp_path, tmp_path / "tiles").glob("*.png"))
    assert len(tiles) >= MIN_TILES
    for tile in tiles:
        height, width = cv2.imread(str(tile)).shape[:2]
        assert height <= TILE and width <= TILE
    corner = cv2.imread(str(tmp_path / "0.png"))[-1, -1]
    last = [tile for tile in tiles if tile.name.startswith("0-")][-1]
    assert (cv2.imread(str(last))[-1, -1] == corner).all()


@pytest.mark.slow
def test_the_users_own_data_becomes_a_config_that_trains_and_is_measured(tmp_path):
    write_drawn_dataset(tmp_path / "mine", ("circle", "square"))
    annotations, images = tmp_path / "mine" / "annotations" / "train.json", tmp_path / "mine"
    recipe = tmp_path / "small.py"
    recipe.write_text(SMALL.format(base=str(find_config("rtmdet_demo"))))
    out = tmp_path / "out"
    demo = Demo(out, annotations, images / "train", recipe=str(recipe))
    data = demo._prepare_data()
    assert data.classes == ["circle", "square"]
    config = demo._write_config(data)
    assert main(["train", str(config), "--work-dir", str(out / "training"), "--epochs", "1"]) == 0
    result = out / "metrics.json"
    best = str(out / "training" / "best.pth")
    assert main(["test", str(config), best, "--json", str(result)]) == 0
    scores = json.loads(result.read_text())["metrics"]
    assert 0 <= scores["coco/bbox_mAP"] <= scores["coco/bbox_mAP_50"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "photos"], "--images needs --annotations"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--annotations", "no-such.json"], "cannot read"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
