"""The images of a parity check."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from deploykit.errors import DatasetError, MediaError
from deploykit.exporters.parity_images import choose_images, draw_scene


@pytest.fixture
def data_set(tmp_path):
    """A config whose validation set has 20 images, of which 19 are on disk."""
    (tmp_path / "val").mkdir()
    names = [f"{number:02}.png" for number in range(20)]
    for name in names[1:]:
        cv2.imwrite(str(tmp_path / "val" / name), np.zeros((4, 4, 3), np.uint8))
    entries = [{"file_name": name} for name in names]
    (tmp_path / "val.json").write_text(json.dumps({"images": entries}))
    dataset = {
        "data_root": str(tmp_path),
        "ann_file": "val.json",
        "data_prefix": {"img": "val/"},
        "pipeline": [{"type": "LoadImageFromFile"}],
    }
    wrapped = {"type": "RepeatDataset", "times": 2, "dataset": dataset}
    return {"val_dataloader": {"dataset": wrapped}}, tmp_path


def test_named_images_come_first(data_set):
    config, root = data_set
    images, source = choose_images([root / "val" / "07.png"], config)
    assert [path.name for path in images] == ["07.png"]
    assert source == "1 image given"


def test_validation_images_are_spread_evenly_and_exist(data_set):
    config, _ = data_set
    images, source = choose_images([], config, limit=4)
    assert [path.name for path in images] == ["01.png", "05.png", "10.png", "15.png"]
    assert all(path.is_file() for path in images)
    assert source == "4 of 19 images of the validation set"


def test_drawn_images_are_the_last_resort():
    images, source = choose_images([], {})
    assert source == f"{len(images)} drawn images"
    assert len({image.shape for image in images}) == len(images) >= 4
    np.testing.assert_array_equal(images[2], choose_images([], {})[0][2])


def test_drawn_images_have_edges_and_texture():
    image = draw_scene(3, (96, 128))
    assert image.shape == (96, 128, 3) and image.dtype == np.uint8
    assert (image != draw_scene(4, (96, 128))).mean() > 0.9
    assert image.std() > 25


def test_missing_images_are_an_error(tmp_path):
    with pytest.raises(MediaError, match=r"gone\.png"):
        choose_images([tmp_path / "gone.png"], {})


def test_damaged_annotations_are_an_error(data_set):
    config, root = data_set
    (root / "val.json").write_text("{")
    with pytest.raises(DatasetError, match="not a COCO annotation file"):
        choose_images([], config)
