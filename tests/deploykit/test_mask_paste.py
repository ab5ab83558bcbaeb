from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deploykit.errors import UsageError
from deploykit.mask_paste import paste_masks


def sampled_by_torch(logits, box, height, width) -> np.ndarray:
    """Probabilities of the whole image, by the definition: a grid over the box."""
    x0, y0, x1, y1 = torch.tensor(box, dtype=torch.float32)
    x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=2)
    mask = torch.from_numpy(logits).sigmoid()[None, None]
    return F.grid_sample(mask, grid[None], align_corners=False)[0, 0].numpy()


corner = st.floats(-20, 40, width=32)
extent = st.floats(0.5, 50, width=32)


@given(corner, corner, extent, extent, st.integers(0, 10**6), st.sampled_from([0.5, 0.8]))
@settings(max_examples=100, deadline=None)
def test_equals_grid_sample(x, y, w, h, seed, threshold):
    logits = np.random.default_rng(seed).normal(0, 3, (1, 7, 5)).astype(np.float32)
    box = (x, y, x + w, y + h)
    expected = sampled_by_torch(logits[0], box, 33, 47)
    masks = paste_masks(logits, np.array([box], np.float32), (33, 47), threshold)
    assert masks.shape == (1, 33, 47)
    decided = np.abs(expected - threshold) > 1e-4
    np.testing.assert_array_equal(masks[0][decided], (expected >= threshold)[decided])


def test_several_masks_do_not_mix():
    logits = np.random.default_rng(0).normal(0, 3, (3, 28, 28))
    boxes = np.array([[2, 3, 20, 30], [10, 10, 50, 40], [-5, -5, 8, 8]], np.float64)
    together = paste_masks(logits, boxes, (48, 64))
    for index in range(3):
        alone = paste_masks(logits[index : index + 1], boxes[index : index + 1], (48, 64))
        np.testing.assert_array_equal(together[index], alone[0])


def test_boxes_without_an_area_or_outside_of_the_image():
    logits = np.full((4, 28, 28), 9.0)
    boxes = np.array(
        [[-30, -30, -10, -10], [100, 100, 120, 120], [np.nan, 0, 9, 9], [5, 5, 5, 9]], np.float32
    )
    masks = paste_masks(logits, boxes, (20, 30))
    assert not masks[:3].any()
    assert masks[3].any(axis=0).nonzero()[0].tolist() == [4, 5]  # the columns around x = 5


def test_large_logits_do_not_overflow():
    with np.errstate(over="raise", invalid="raise"):
        masks = paste_masks(np.full((1, 4, 4), -1e4), np.array([[0, 0, 8, 8]]), (8, 8))
    assert not masks.any()


def test_nothing_to_paste():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (5, 6)).shape == (0, 5, 6)


def test_as_many_masks_as_boxes():
    with pytest.raises(UsageError, match=r"\[2, h, w\]"):
        paste_masks(np.zeros((1, 28, 28)), np.zeros((2, 4)), (5, 6))
