"""Masks move as the image moves: bitmaps exactly, polygons to within their outline."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from deploykit.training.data.masks import BitmapMasks, PolygonMasks
from deploykit.training.data.polygons import clip_polygon, fill_polygons, polygon_area

HEIGHT, WIDTH = 40, 60
SHAPES = [
    [[5.0, 5, 30, 5, 30, 25, 5, 25]],
    [[20.0, 30, 55, 12, 50, 38]],
    [[1.0, 1, 9, 1, 9, 9], [40.0, 2, 58, 2, 58, 14, 40, 14]],
]


def polygons():
    return [[np.array(part).reshape(-1, 2) for part in shape] for shape in SHAPES]


def polygon_masks():
    return PolygonMasks(polygons(), HEIGHT, WIDTH)


def bitmap_masks():
    return BitmapMasks(polygon_masks().to_bitmaps())


def iou(a, b):
    union = (a | b).sum()
    return 1.0 if union == 0 else (a & b).sum() / union


def test_polygons_fill_as_pycocotools_fills_them():
    for bitmap, shape in zip(polygon_masks().to_bitmaps(), SHAPES, strict=True):
        rle = coco_mask.merge(coco_mask.frPyObjects(shape, HEIGHT, WIDTH))
        assert np.array_equal(bitmap, coco_mask.decode(rle))


def test_bitmaps_flip_like_the_image():
    masks = bitmap_masks()
    for direction, code in (("horizontal", 1), ("vertical", 0), ("diagonal", -1)):
        flipped = masks.flip(direction).to_bitmaps()
        for before, after in zip(masks.bitmaps, flipped, strict=True):
            assert np.array_equal(after, cv2.flip(before, code))


@pytest.mark.parametrize("size", [(20, 30), (80, 120), (33, 71)])
def test_bitmaps_resize_by_the_nearest_pixel(size):
    for before, after in zip(
        bitmap_masks().bitmaps, bitmap_masks().resize(*size).bitmaps, strict=True
    ):
        assert np.array_equal(
            after, cv2.resize(before, size[::-1], interpolation=cv2.INTER_NEAREST)
        )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(-70, 70), st.integers(-50, 50)
)  # fmt: skip
def test_bitmaps_are_placed_pixel_by_pixel(height, width, dx, dy):
    masks = bitmap_masks()
    placed = masks.place(height, width, dx, dy).to_bitmaps()
    expected = np.zeros((len(masks), height, width), np.uint8)
    for index, row, column in np.argwhere(masks.bitmaps):
        if 0 <= row + dy < height and 0 <= column + dx < width:
            expected[index, row + dy, column + dx] = 1
    assert np.array_equal(placed, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(5, 70), st.integers(5, 70), st.integers(-40, 40), st.integers(-30, 30)
)  # fmt: skip
def test_polygons_are_placed_where_bitmaps_are(height, width, dx, dy):
    outlines = polygon_masks().place(height, width, dx, dy)
    pixels = bitmap_masks().place(height, width, dx, dy).to_bitmaps()
    for a, b, shape in zip(outlines.to_bitmaps(), pixels, outlines.polygons, strict=True):
        # The border may be drawn one pixel off; the length of the outline bounds that.
        length = sum(np.abs(np.diff(part, axis=0, append=part[:1])).sum() for part in shape)
        assert (a != b).sum() <= length + 1
    boxes = outlines.boxes()
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()


@pytest.mark.parametrize("operation", ["resize", "flip", "warp"])
def test_polygons_move_as_bitmaps_move(operation):
    matrix = np.array([[0.9, -0.3, 12], [0.3, 0.9, -4], [0, 0, 1]], np.float32)
    arguments = {"resize": (80, 90), "flip": ("diagonal",), "warp": (matrix, 45, 65)}[operation]
    outlines = getattr(polygon_masks(), operation)(*arguments).to_bitmaps()
    pixels = getattr(bitmap_masks(), operation)(*arguments).to_bitmaps()
    assert outlines.shape == pixels.shape
    for a, b in zip(outlines, pixels, strict=True):
        assert iou(a, b) > 0.85


def test_flipping_twice_gives_the_same_polygons():
    twice = polygon_masks().flip("diagonal").flip("horizontal").flip("vertical")
    for before, after in zip(polygons(), twice.polygons, strict=True):
        for a, b in zip(before, after, strict=True):
            assert np.allclose(a, b)


def test_areas_and_boxes():
    assert polygon_masks().areas[0] == 25 * 20
    assert polygon_masks().boxes()[2].tolist() == [1, 1, 58, 14]
    bitmaps = np.zeros((2, 10, 12), np.uint8)
    bitmaps[0, 2:5, 3:9] = 1
    masks = BitmapMasks(bitmaps)
    assert masks.areas.tolist() == [18, 0]
    assert masks.boxes().tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]


def test_select_and_concatenate_keep_order():
    for masks in (polygon_masks(), bitmap_masks()):
        both = masks.select(np.array([2, 0])).concatenate(
            [masks.select(np.array([False, True, False]))]
        )
        expected = bitmap_masks().bitmaps[[2, 0, 1]]
        assert np.array_equal(both.to_bitmaps(), expected)
    mixed = polygon_masks().concatenate([bitmap_masks()])
    assert np.array_equal(mixed.to_bitmaps(), bitmap_masks().bitmaps[[0, 1, 2, 0, 1, 2]])


def test_masks_of_nothing():
    for masks in (PolygonMasks([], 5, 6), BitmapMasks(np.zeros((0, 5, 6), np.uint8))):
        assert masks.resize(7, 8).flip("horizontal").to_bitmaps().shape == (0, 7, 8)
        assert masks.place(3, 4, 1, 1).to_bitmaps().shape == (0, 3, 4)
        assert masks.boxes().shape == (0, 4)
        assert masks.areas.shape == (0,)
    # An instance that has no polygon keeps its place.
    empty = PolygonMasks([[], [np.array([[0.0, 0], [4, 0], [4, 4]])]], 5, 6)
    assert empty.to_bitmaps().sum(axis=(1, 2))[0] == 0
    assert empty.areas.tolist() == [0, 8]


def test_operations_leave_their_input_alone():
    outlines, pixels = polygon_masks(), bitmap_masks()
    for masks in (outlines, pixels):
        masks.flip("diagonal")
        masks.resize(9, 9)
        masks.crop(3, 4, 20, 20)
        masks.warp(np.eye(3, dtype=np.float32), 9, 9)
    for before, after in zip(polygons(), outlines.polygons, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert np.array_equal(pixels.bitmaps, bitmap_masks().bitmaps)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_clipped_polygons_cover_the_window_s_part(data):
    """Area by brute force: count sample points that lie in both polygon and window."""
    center = np.array(data.draw(st.tuples(st.floats(-10, 40), st.floats(-10, 40))))
    corners = data.draw(st.integers(3, 8))
    radii = np.array([data.draw(st.floats(3, 30)) for _ in range(corners)])
    angles = np.arange(corners) * 2 * np.pi / corners
    star = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    clipped = clip_polygon(star, height=24, width=32)
    scale = 8
    grid = np.zeros((24 * scale, 32 * scale), np.uint8)
    cv2.fillPoly(grid, [np.round(star * scale).astype(np.int32)], 1)
    expected = grid.sum() / scale**2
    area = polygon_area(clipped) if len(clipped) >= 3 else 0.0
    assert abs(area - expected) < 0.04 * 2 * np.pi * radii.max() + 8
    if len(clipped):
        assert clipped.min() >= 0
        assert clipped[:, 0].max() <= 32
        assert clipped[:, 1].max() <= 24


def test_a_concave_polygon_that_leaves_and_returns_fills_both_parts():
    comb = np.array([[2.0, 2], [8, 2], [8, -5], [14, -5], [14, 2], [20, 2], [20, 10], [2, 10]])
    comb[:, 1] -= 4  # the middle tooth's root stays out of the window
    clipped = clip_polygon(comb, height=20, width=30)
    assert np.array_equal(fill_polygons([clipped], 20, 30), fill_polygons([comb], 30, 40)[:20, :30])
