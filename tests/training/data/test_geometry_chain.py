"""After any chain of transforms boxes and masks lie where the objects lie in the image."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.training.data.masks import BitmapMasks, PolygonMasks
from deploykit.training.data.transforms import (
    CachedMixUp,
    CachedMosaic,
    Expand,
    FixScaleResize,
    MinIoURandomCrop,
    Pad,
    RandomAffine,
    RandomChoiceResize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)

COLOURS = [(255, 60, 60), (60, 255, 60), (60, 60, 255)]
# Padding and background are dark in every channel, so an object is found by its bright one.
DARK = 20
GEOMETRIC = {
    "resize": lambda: Resize(scale=(150, 110), keep_ratio=True, interpolation="nearest"),
    "stretch": lambda: Resize(scale=(140, 90), interpolation="nearest"),
    "fix_scale": lambda: FixScaleResize(scale=(120, 150), keep_ratio=True, interpolation="nearest"),
    "random_resize": lambda: RandomResize(
        scale=(120, 120), ratio_range=(0.7, 1.6), keep_ratio=True, interpolation="nearest"
    ),
    "choice": lambda: RandomChoiceResize(
        scales=[(90, 90), (160, 130)], keep_ratio=True, interpolation="nearest"
    ),
    "flip": lambda: RandomFlip(prob=0.8, direction=["horizontal", "vertical", "diagonal"]),
    "crop": lambda: RandomCrop(crop_size=(70, 60), allow_negative_crop=True),
    "crop_share": lambda: RandomCrop(
        crop_size=(0.6, 0.6), crop_type="relative_range", allow_negative_crop=True
    ),
    "iou_crop": lambda: MinIoURandomCrop(min_ious=(0.1, 0.3)),
    "pad": lambda: Pad(size_divisor=32, pad_val=DARK),
    "square": lambda: Pad(pad_to_square=True, pad_val=DARK),
    "expand": lambda: Expand(mean=(DARK,) * 3, ratio_range=(1, 1.8), prob=0.8),
}


RESIZING = ("resize", "stretch", "fix_scale", "random_resize", "choice")


def scene(make_sample, seed, kind):
    """Three rectangles of different colours that do not overlap, with boxes and masks."""
    rng = np.random.default_rng(seed)
    height, width = 96, 120
    image = np.full((height, width, 3), DARK, np.uint8)
    boxes, polygons = [], []
    for column, colour in enumerate(COLOURS):
        x1, y1 = int(rng.integers(40 * column + 1, 40 * column + 12)), int(rng.integers(2, 40))
        x2, y2 = x1 + int(rng.integers(14, 27)), y1 + int(rng.integers(14, 50))
        image[y1:y2, x1:x2] = colour
        boxes.append([x1, y1, x2, y2])
        polygons.append([np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)])
    masks = PolygonMasks(polygons, height, width)
    if kind == "bitmap":
        masks = BitmapMasks(masks.to_bitmaps())
    return make_sample(image, boxes, labels=[0, 1, 2], masks=masks)


def visible(image, label):
    """Where the object of a label is in the image: bool [H, W]."""
    bright = image.astype(int)
    others = [channel for channel in range(3) if channel != label]
    return (bright[..., label] > 150) & (bright[..., others].max(axis=-1) < 120)


def tight_box(where):
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def assert_aligned(sample, tolerance, complete=True):
    assert len(sample.boxes) == len(sample.labels) == len(sample.ignore_flags) == len(sample.masks)
    assert sample.meta["img_shape"] == sample.image.shape[:2]
    bitmaps = sample.masks.to_bitmaps()
    assert bitmaps.shape[1:] == sample.image.shape[:2]
    for box, label, bitmap in zip(sample.boxes, sample.labels, bitmaps, strict=True):
        where = visible(sample.image, label)
        assert 0 <= box[0] <= box[2] <= sample.image.shape[1]
        assert 0 <= box[1] <= box[3] <= sample.image.shape[0]
        if min(box[2:] - box[:2]) < 4 * tolerance:
            continue  # a sliver at the border
        assert np.abs(tight_box(where) - box).max() <= tolerance
        border = tolerance * 2 * (box[2:] - box[:2]).sum()
        assert (where != bitmap.astype(bool)).sum() <= border
    for label in set(range(3)) - set(sample.labels.tolist()) if complete else ():
        assert visible(sample.image, label).sum() <= 3 * max(sample.image.shape)


@pytest.mark.parametrize("kind", ["bitmap", "polygon"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(st.sampled_from(sorted(GEOMETRIC)), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_boxes_and_masks_stay_tight(make_sample, kind, names, seed):
    sample = scene(make_sample, seed, kind)
    rng = np.random.default_rng(seed)
    tolerance = 0.5
    for done, name in enumerate(names, 1):
        sample = GEOMETRIC[name]()(sample, rng)
        if name in RESIZING:
            # Each resize rounds to whole pixels and magnifies what was rounded before.
            tolerance = tolerance * max(1, *sample.meta["scale_factor"]) + 1
        # MinIoURandomCrop drops objects whose centre is outside, though a part may be in sight.
        complete = "iou_crop" not in names[:done]
        assert_aligned(sample, tolerance, complete=complete)


@pytest.mark.parametrize(("kind", "seed"), itertools.product(["bitmap", "polygon"], range(6)))
def test_mosaic_keeps_objects_and_annotations_together(make_sample, kind, seed):
    rng = np.random.default_rng(seed)
    mosaic = CachedMosaic(img_scale=(110, 96), pad_val=DARK)
    for step in range(8):
        sample = mosaic(scene(make_sample, 10 * seed + step, kind), rng)
    assert sample.image.shape == (192, 220, 3)
    bitmaps = sample.masks.to_bitmaps()
    assert bitmaps.shape == (len(sample.boxes), 192, 220)
    covered = np.zeros((3, 192, 220), bool)
    for box, label, bitmap in zip(sample.boxes, sample.labels, bitmaps, strict=True):
        covered[label] |= bitmap.astype(bool)
        if min(box[2:] - box[:2]) >= 6:
            assert np.abs(tight_box(bitmap) - box).max() <= 2
            inside = visible(sample.image, label) & bitmap.astype(bool)
            assert inside.sum() > 0.75 * bitmap.sum()
    for label in range(3):
        seen = visible(sample.image, label)
        assert (seen & ~covered[label]).sum() < 0.15 * seen.sum() + 20


@pytest.mark.parametrize(("kind", "seed"), itertools.product(["bitmap", "polygon"], range(6)))
def test_mixup_keeps_objects_and_annotations_together(make_sample, kind, seed):
    """Mixed with a black image, the partner's objects shine at half their brightness."""
    rng = np.random.default_rng(seed)
    mixup = CachedMixUp(img_scale=(110, 96), ratio_range=(0.6, 1.5), pad_val=0)
    mixup(scene(make_sample, seed, kind), rng)
    black = make_sample(
        np.zeros((90, 100, 3), np.uint8), masks=BitmapMasks(np.zeros((0, 90, 100), np.uint8))
    )
    sample = mixup(black, rng)
    assert sample.image.shape == (90, 100, 3)
    assert sample.masks.to_bitmaps().shape == (len(sample.boxes), 90, 100)
    brighter = np.minimum(sample.image.astype(int) * 2, 255)
    for box, label, bitmap in zip(
        sample.boxes, sample.labels, sample.masks.to_bitmaps(), strict=True
    ):
        if min(box[2:] - box[:2]) >= 6:
            assert np.abs(tight_box(bitmap) - box).max() <= 2.5
            inside = visible(brighter, label) & bitmap.astype(bool)
            assert inside.sum() > 0.65 * bitmap.sum()  # the rest is blurred by interpolation


@pytest.mark.parametrize(("kind", "seed"), itertools.product(["bitmap", "polygon"], range(6)))
def test_affine_keeps_objects_and_annotations_together(make_sample, kind, seed):
    affine = RandomAffine(border_val=(DARK,) * 3, border=(8, 5), scaling_ratio_range=(0.7, 1.4))
    sample = affine(scene(make_sample, seed, kind), np.random.default_rng(seed))
    assert sample.image.shape == (106, 136, 3)
    for box, label, bitmap in zip(
        sample.boxes, sample.labels, sample.masks.to_bitmaps(), strict=True
    ):
        where = visible(sample.image, label)
        outline = 2 * (box[2:] - box[:2]).sum()
        assert (where != bitmap.astype(bool)).sum() <= 1.5 * outline
        if where.any():
            seen = tight_box(where)
            # The box around the turned corners encloses the object.
            assert (box[:2] <= seen[:2] + 1.5).all()
            assert (box[2:] >= seen[2:] - 1.5).all()


def test_transforms_write_into_no_array_they_are_given(make_sample):
    """Samples share arrays with caches, so an in-place change would show up in other images."""
    affine = {"affine": RandomAffine}
    for name, make in (GEOMETRIC | affine).items():
        sample = scene(make_sample, 5, "bitmap")
        arrays = [sample.image, sample.boxes, sample.labels, sample.ignore_flags]
        arrays.append(sample.masks.bitmaps)
        for array in arrays:
            array.setflags(write=False)
        assert make()(sample, np.random.default_rng(3)) is not None, name


def test_scale_factor_maps_boxes_back(make_sample):
    """The evaluation divides by it: the drawn box must come back to within rounding."""
    sample = scene(make_sample, 1, "bitmap")
    before = sample.boxes.copy()
    sample = Resize(scale=(333, 200), keep_ratio=True)(sample, np.random.default_rng(0))
    width_factor, height_factor = sample.meta["scale_factor"]
    back = sample.boxes / [width_factor, height_factor, width_factor, height_factor]
    assert np.allclose(back, before, atol=1e-3)
    assert sample.image.shape[:2] == (200, 250)


def test_pixels_of_a_flip_and_a_crop_are_those_of_the_image(make_sample):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    flipped = RandomFlip(prob=1.0)(make_sample(image), np.random.default_rng(0)).image
    assert np.array_equal(flipped, image[:, ::-1])
    cropped = RandomCrop((13, 9), allow_negative_crop=True)(
        make_sample(image), np.random.default_rng(0)
    ).image
    match = cv2.matchTemplate(image, cropped, cv2.TM_SQDIFF)
    assert match.min() == 0
    assert cropped.shape == (9, 13, 3)
