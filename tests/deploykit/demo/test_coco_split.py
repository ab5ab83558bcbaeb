from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.demo.coco_split import split_coco
from deploykit.errors import DatasetError


def make(folder: Path, count: int = 10) -> tuple[Path, dict]:
    (folder / "photos").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}]}
    for index in range(count):
        name = f"{index}.png"
        cv2.imwrite(str(folder / "photos" / name), np.zeros((8, 8, 3), np.uint8))
        content["images"].append({"id": index, "file_name": name, "height": 8, "width": 8})
        content["annotations"].append(
            {"id": index, "image_id": index, "category_id": 7, "bbox": [1, 1, 3, 3], "area": 9}
        )
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path, content


def test_every_image_and_object_lands_in_exactly_one_part(tmp_path):
    path, content = make(tmp_path)
    classes, counts = split_coco(path, tmp_path / "photos", tmp_path / "out")
    assert classes == ["cat"]
    parts = [
        json.loads((tmp_path / "out" / "annotations" / f"{name}.json").read_text())
        for name in ("train", "val")
    ]
    for key in ("images", "annotations"):
        ids = [row["id"] for part in parts for row in part[key]]
        assert sorted(ids) == [row["id"] for row in content[key]]
    for part in parts:
        images = {row["id"] for row in part["images"]}
        assert {row["image_id"] for row in part["annotations"]} == images
    assert counts["val"] == {"images": 2, "objects": 2}
    assert counts["train"] == {"images": 8, "objects": 8}


def test_the_split_is_the_same_every_time(tmp_path):
    path, _ = make(tmp_path)
    texts = []
    for name in ("a", "b"):
        split_coco(path, tmp_path / "photos", tmp_path / name)
        texts.append((tmp_path / name / "annotations" / "val.json").read_text())
    assert texts[0] == texts[1]


def test_missing_images_are_named_and_left_out(tmp_path):
    path, _ = make(tmp_path)
    (tmp_path / "photos" / "3.png").unlink()
    _, counts = split_coco(path, tmp_path / "photos", tmp_path / "out")
    assert counts["missing"] == ["3.png"]
    assert counts["train"]["images"] + counts["val"]["images"] == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "empty list 'images'"),
        ('{"images": [{}]}', "'id'"),
        ('{"images": [{"id": 1}], "annotations": 3}', "no list 'annotations'"),
    ],
)
def test_a_file_that_is_not_coco_says_so(tmp_path, text, message):
    path, _ = make(tmp_path)
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        split_coco(path, tmp_path / "photos", tmp_path / "out")


def test_wrong_folders_say_what_is_missing(tmp_path):
    path, _ = make(tmp_path)
    with pytest.raises(DatasetError, match="not a folder"):
        split_coco(path, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"0 of the 10 images .* exist"):
        split_coco(path, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DatasetError, match="cannot read"):
        split_coco(tmp_path / "no.json", tmp_path / "photos", tmp_path / "out")
