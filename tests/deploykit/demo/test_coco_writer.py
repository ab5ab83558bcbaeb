from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from deploykit.demo.coco_writer import CocoWriter, rle_of_mask

masks = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
def test_run_lengths_decode_to_the_mask_in_pycocotools(mask):
    rle = rle_of_mask(mask)
    decoded = coco_mask.decode(coco_mask.frPyObjects(rle, *mask.shape))
    np.testing.assert_array_equal(decoded, mask)


@given(masks)
def test_area_and_box_are_those_of_the_mask(mask):
    writer = CocoWriter(["thing"])
    image = writer.add_image("a.png", *mask.shape)
    assert writer.add_mask(image, mask, label=0) == bool(mask.any())
    for annotation in writer.annotations:
        x, y, width, height = annotation["bbox"]
        covered = np.zeros_like(mask)
        covered[y : y + height, x : x + width] = True
        assert annotation["area"] == mask.sum()
        assert (mask <= covered).all()
        for row in (y, y + height - 1):
            assert mask[row].any()
        for column in (x, x + width - 1):
            assert mask[:, column].any()


def test_slivers_are_left_out():
    writer = CocoWriter(["thing"])
    mask = np.zeros((8, 8), dtype=bool)
    mask[2, 2:5] = True
    assert not writer.add_mask(1, mask, label=0, min_area=4)
    assert writer.add_mask(1, mask, label=0, min_area=3)


def test_pycocotools_reads_the_file(tmp_path):
    writer = CocoWriter(["a", "b"])
    mask = np.zeros((10, 20), dtype=bool)
    mask[3:6, 4:9] = True
    image = writer.add_image("one.png", 10, 20)
    writer.add_mask(image, mask, label=1)
    writer.write(tmp_path / "sub" / "coco.json")
    coco = COCO(tmp_path / "sub" / "coco.json")
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert coco.loadCats(annotation["category_id"])[0]["name"] == "b"
    np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    assert json.loads((tmp_path / "sub" / "coco.json").read_text())["images"][0]["height"] == 10
