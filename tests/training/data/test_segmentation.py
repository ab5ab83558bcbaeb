"""COCO segmentations, good and bad."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from deploykit.mask_rle import encode_mask
from deploykit.training.data.segmentation import load_bitmaps, load_polygons

SQUARE = [[2.0, 2, 8, 2, 8, 8, 2, 8]]


def drawn():
    bitmap = np.zeros((12, 16), bool)
    bitmap[3:7, 4:13] = True
    return bitmap


def test_polygons_and_both_kinds_of_rle_become_bitmaps():
    plain = {"size": [12, 16], "counts": [0, 5, 187]}
    masks, failures = load_bitmaps((SQUARE, encode_mask(drawn()), plain), 12, 16)
    assert failures == {}
    rle = coco_mask.merge(coco_mask.frPyObjects(SQUARE, 12, 16))
    assert np.array_equal(masks.bitmaps[0], coco_mask.decode(rle))
    assert np.array_equal(masks.bitmaps[1], drawn())
    assert masks.bitmaps[2].sum() == 5
    assert masks.bitmaps[2][:5, 0].all()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [["a", "b", "c", "d", "e", "f"]],
        [5],
        {"size": [12, 16]},
        {"size": [12, 16], "counts": "???"},
        {"size": [12, 16], "counts": [4, 9]},
        {"size": [12, 16], "counts": [-4, 196]},
        {"size": [16, 12], "counts": [192]},
    ],
)
def test_what_cannot_be_used_is_an_empty_mask_with_a_reason(broken):
    masks, failures = load_bitmaps((SQUARE, broken), 12, 16)
    assert list(failures) == [1]
    assert failures[1]
    assert masks.bitmaps[0].any()
    assert not masks.bitmaps[1].any()


def test_usable_parts_of_a_polygon_list_are_kept():
    masks, failures = load_polygons(([*SQUARE, [1, 2, 3]],), 12, 16)
    assert failures == {}
    assert len(masks.polygons[0]) == 1


def test_rle_does_not_become_polygons():
    masks, failures = load_polygons((encode_mask(drawn()), SQUARE), 12, 16)
    assert "poly2mask" in failures[0]
    assert masks.areas.tolist() == [0, 36]
