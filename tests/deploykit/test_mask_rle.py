import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from deploykit.errors import UsageError
from deploykit.mask_rle import decode_mask, encode_mask


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
@settings(max_examples=150, deadline=None)
def test_same_bytes_as_pycocotools(mask: np.ndarray) -> None:
    ours = encode_mask(mask)
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours["size"] == theirs["size"]
    assert ours["counts"].encode() == theirs["counts"]
    np.testing.assert_array_equal(decode_mask(ours), mask)
    np.testing.assert_array_equal(decode_mask(theirs), mask)


def test_long_runs() -> None:
    mask = np.zeros((1000, 1200), bool)
    mask[300:900, 100:1100] = True
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask)["counts"].encode() == theirs["counts"]
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_plain_counts_are_read() -> None:
    mask = decode_mask({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


@given(st.text(max_size=12), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_garbage_is_decoded_or_refused(counts: str, height: int, width: int) -> None:
    try:
        mask = decode_mask({"size": [height, width], "counts": counts})
    except UsageError:
        return
    assert mask.shape == (height, width)


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 3]},
        {"size": [2], "counts": "06"},
        {"size": [2, 3], "counts": [1, 2]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": "P"},
    ],
)
def test_malformed_masks_are_refused(rle: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="RLE"):
        decode_mask(rle)
