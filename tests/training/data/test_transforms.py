"""Rules of single transforms that the comparison with MMDetection does not spell out."""

import random

import cv2
import numpy as np
import pytest
import torch

from deploykit.errors import ConfigError, DatasetError, MediaError
from deploykit.training.data.masks import BitmapMasks
from deploykit.training.data.sample import ImageRecord, Sample
from deploykit.training.data.transforms import (
    CachedMixUp,
    CachedMosaic,
    FilterAnnotations,
    FixScaleResize,
    LoadAnnotations,
    LoadImageFromFile,
    Mosaic,
    PackDetInputs,
    Pad,
    PhotoMetricDistortion,
    Pipeline,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
    YOLOXHSVRandomAug,
)
from deploykit.training.data.transforms.mixup import mean_image
from deploykit.training.registry import TRANSFORMS


def noise(height=30, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        # (height, width), (width, height) -> int(edge * factor + 0.5)
        ((427, 640), (1333, 800), (800, 1199)),
        ((640, 427), (1333, 800), (1199, 800)),
        ((480, 640), (640, 640), (480, 640)),
        ((100, 3000), (1333, 800), (44, 1333)),
        ((375, 500), (416, 416), (312, 416)),
        ((333, 500), (320, 640), (320, 480)),
    ],
)
def test_keep_ratio_scales_as_mmcv_does(make_sample, size, scale, expected):
    image = np.zeros((*size, 3), np.uint8)
    resized = Resize(scale=scale, keep_ratio=True)(make_sample(image), np.random.default_rng(0))
    assert resized.image.shape[:2] == expected
    height_factor, width_factor = expected[0] / size[0], expected[1] / size[1]
    assert resized.meta["scale_factor"] == (width_factor, height_factor)


def test_fix_scale_resize_truncates(make_sample):
    image = np.zeros((427, 640, 3), np.uint8)
    rounded = Resize(scale=(1000, 600), keep_ratio=True)(make_sample(image), None)
    truncated = FixScaleResize(scale=(1000, 600), keep_ratio=True)(make_sample(image), None)
    assert rounded.image.shape[:2] == (600, 899)
    assert truncated.image.shape[:2] == (600, 899)
    small = make_sample(np.zeros((333, 500, 3), np.uint8))
    assert FixScaleResize(scale=(101, 101), keep_ratio=True)(small, None).size == (67, 101)
    small = make_sample(np.zeros((335, 500, 3), np.uint8))
    assert FixScaleResize(scale=(101, 101), keep_ratio=True)(small, None).size == (67, 101)
    small = make_sample(np.zeros((335, 500, 3), np.uint8))
    assert Resize(scale=(101, 101), keep_ratio=True)(small, None).size == (68, 101)


def test_resize_clips_boxes_that_reach_over_the_edge(make_sample):
    box = [[-5.0, 10, 50, 35]]
    clipped = Resize(scale=(80, 60))(make_sample(noise(), box), None)
    assert clipped.boxes.tolist() == [[0, 20, 80, 60]]
    kept = Resize(scale=(80, 60), clip_object_border=False)(make_sample(noise(), box), None)
    assert kept.boxes.tolist() == [[-10, 20, 100, 70]]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area", "lanczos"])
def test_resize_interpolates_with_opencv(make_sample, interpolation):
    code = getattr(cv2, {"nearest": "INTER_NEAREST", "bilinear": "INTER_LINEAR",
                         "bicubic": "INTER_CUBIC", "area": "INTER_AREA",
                         "lanczos": "INTER_LANCZOS4"}[interpolation])  # fmt: skip
    resized = Resize(scale=(23, 17), interpolation=interpolation)(make_sample(noise()), None)
    assert np.array_equal(resized.image, cv2.resize(noise(), (23, 17), interpolation=code))


def test_resize_with_pillow(make_sample):
    from PIL import Image

    resized = Resize(scale=(23, 17), backend="pillow")(make_sample(noise()), None)
    expected = np.array(Image.fromarray(noise()).resize((23, 17), Image.Resampling.BILINEAR))
    assert np.array_equal(resized.image, expected)


def test_random_resize_stays_within_its_range(make_sample):
    resize = RandomResize(scale=(100, 80), ratio_range=(0.5, 1.5), keep_ratio=True)
    rng = np.random.default_rng(0)
    widths = [resize(make_sample(noise(40, 50)), rng).image.shape[1] for _ in range(60)]
    assert min(widths) >= 50
    assert max(widths) <= 150
    assert len(set(widths)) > 20


def test_flip_happens_as_often_as_it_should(make_sample):
    flip = RandomFlip(prob=[0.2, 0.5], direction=["horizontal", "vertical"])
    rng = np.random.default_rng(0)
    seen = [flip(make_sample(noise(4, 4)), rng).meta["flip_direction"] for _ in range(2000)]
    shares = [seen.count(each) / 2000 for each in ("horizontal", "vertical", None)]
    assert np.allclose(shares, [0.2, 0.5, 0.3], atol=0.04)
    shared = RandomFlip(prob=0.5, direction=["horizontal", "vertical"])
    seen = [shared(make_sample(noise(4, 4)), rng).meta["flip_direction"] for _ in range(2000)]
    assert np.allclose(
        [seen.count("horizontal") / 2000, seen.count(None) / 2000], [0.25, 0.5], atol=0.04
    )


def test_pad_fills_bottom_and_right(make_sample):
    masks = BitmapMasks(np.ones((1, 30, 40), np.uint8))
    sample = make_sample(noise(), [[0, 0, 40, 30]], masks=masks)
    padded = Pad(size=(64, 48), pad_val={"img": (1, 2, 3)})(sample, None)
    assert padded.image.shape == (48, 64, 3)
    assert np.array_equal(padded.image[:30, :40], noise())
    assert (padded.image[30:] == (1, 2, 3)).all()
    assert (padded.image[:, 40:] == (1, 2, 3)).all()
    assert padded.masks.to_bitmaps().shape == (1, 48, 64)
    assert padded.masks.areas.tolist() == [1200]
    assert padded.meta["img_shape"] == (48, 64)
    larger = Pad(size=(20, 20))(make_sample(noise()), None)
    assert larger.image.shape == (30, 40, 3)
    square = Pad(pad_to_square=True, size_divisor=32)(make_sample(noise()), None)
    assert square.image.shape == (64, 64, 3)


def test_a_crop_without_objects_gives_nothing_unless_allowed(make_sample):
    rng = np.random.default_rng(0)
    far = [[0, 0, 2, 2]]
    crop = RandomCrop((3, 3))
    results = [crop(make_sample(noise(), far), rng) for _ in range(40)]
    assert None in results
    assert all(result is None or len(result.boxes) == 1 for result in results)
    allowed = RandomCrop((3, 3), allow_negative_crop=True)
    results = [allowed(make_sample(noise(), far), rng) for _ in range(40)]
    assert None not in results
    assert {len(result.boxes) for result in results} >= {0}
    assert crop(make_sample(noise()), rng) is None


def test_recomputed_boxes_enclose_the_visible_part_of_the_mask(make_sample):
    bitmap = np.zeros((1, 30, 40), np.uint8)
    bitmap[0, 10:20, 15:18] = 1  # thin within a wide box
    rng = np.random.default_rng(1)
    for _ in range(30):
        sample = make_sample(noise(), [[5, 10, 35, 20]], masks=BitmapMasks(bitmap))
        cropped = RandomCrop((25, 22), recompute_bbox=True)(sample, rng)
        if cropped is not None:
            assert np.array_equal(cropped.boxes, cropped.masks.boxes())


def test_hsv_of_nothing_is_opencv_s_round_trip(make_sample):
    unchanged = YOLOXHSVRandomAug(0, 0, 0)(make_sample(noise()), np.random.default_rng(0))
    trip = cv2.cvtColor(cv2.cvtColor(noise(), cv2.COLOR_BGR2HSV), cv2.COLOR_HSV2BGR)
    assert np.array_equal(unchanged.image, trip)
    with pytest.raises(DatasetError, match="uint8"):
        YOLOXHSVRandomAug()(make_sample(noise().astype(np.float32)), np.random.default_rng(0))


def test_photometric_distortion_gives_float32(make_sample):
    rng = np.random.default_rng(0)
    for _ in range(10):
        image = PhotoMetricDistortion()(make_sample(noise()), rng).image
        assert image.dtype == np.float32
        assert image.shape == (30, 40, 3)


def test_mean_of_two_images_is_exact():
    a, b = noise(seed=1), noise(seed=2)
    assert np.array_equal(mean_image(a, b), ((a.astype(int) + b) // 2).astype(np.uint8))


def test_mosaic_layout(make_sample):
    """Four plain tiles meet at one point; each pixel belongs to the tile of its quarter."""
    mosaic = CachedMosaic(img_scale=(40, 30), max_cached_images=4, random_pop=False, pad_val=7)
    rng = np.random.default_rng(0)
    for value in (50, 100, 150, 200):
        sample = mosaic(make_sample(np.full((30, 40, 3), value, np.uint8), [[0, 0, 40, 30]]), rng)
    image = sample.image[..., 0]
    assert image.shape == (60, 80)
    rows, columns = np.nonzero(image == 200)  # the newest is at the top left
    bottom, right = rows.max() + 1, columns.max() + 1
    assert 15 <= bottom < 45
    assert 20 <= right < 60
    assert set(np.unique(image)) <= {7, 50, 100, 150, 200}
    for quarter in (image[:bottom, right:], image[bottom:, :right], image[bottom:, right:]):
        assert len(set(np.unique(quarter)) - {7}) == 1
        assert 200 not in quarter  # partners are earlier images
    assert len(sample.boxes) == 4
    assert sample.boxes[0].tolist() == [max(right - 40, 0), max(bottom - 30, 0), right, bottom]


def test_caches_are_bounded_and_keep_the_newest(make_sample):
    rng = np.random.default_rng(0)
    for random_pop in (True, False):
        for transform in (
            CachedMosaic(img_scale=(8, 8), max_cached_images=6, random_pop=random_pop),
            CachedMixUp(img_scale=(8, 8), max_cached_images=6, random_pop=random_pop),
        ):
            for value in range(30):
                image = np.full((8, 8, 3), value, np.uint8)
                transform(make_sample(image, [[1, 1, 7, 7]]), rng)
                assert len(transform.cache) == min(value + 1, 6)
                assert transform.cache[-1].image[0, 0, 0] == value
            kept = [each.image[0, 0, 0] for each in transform.cache]
            assert (kept == [24, 25, 26, 27, 28, 29]) is not random_pop
            transform.reset()
            assert transform.cache == []
            assert transform.missing > 0


def test_mixup_looks_for_a_partner_with_objects(make_sample):
    mixup = CachedMixUp(img_scale=(20, 20), ratio_range=(1.0, 1.0))
    rng = np.random.default_rng(0)
    empty = np.full((20, 20, 3), 10, np.uint8)
    for _ in range(5):
        alone = mixup(make_sample(empty), rng)
        assert np.array_equal(alone.image, empty)
    mixup(make_sample(np.full((20, 20, 3), 200, np.uint8), [[2, 2, 18, 18]]), rng)
    mixed = mixup(make_sample(empty, [[0, 0, 5, 5]], labels=[3]), rng)
    assert set(np.unique(mixed.image)) == {105}
    assert mixed.labels.tolist() == [3, 0]


def test_filter_annotations(make_sample):
    boxes = [[0, 0, 10, 10], [0, 0, 1, 10], [0, 0, 10, 0.5]]
    kept = FilterAnnotations()(make_sample(noise(), boxes, labels=[4, 5, 6]), None)
    assert kept.labels.tolist() == [4]
    assert FilterAnnotations()(make_sample(noise(), boxes[1:]), None) is None
    emptied = FilterAnnotations(keep_empty=False)(make_sample(noise(), boxes[1:]), None)
    assert len(emptied.boxes) == 0
    assert FilterAnnotations()(make_sample(noise()), None) is not None
    bitmaps = np.zeros((3, 30, 40), np.uint8)
    bitmaps[1, :2, :2] = 1
    by_mask = FilterAnnotations(by_box=False, by_mask=True, min_gt_mask_area=4)
    sample = by_mask(
        make_sample(noise(), boxes, labels=[4, 5, 6], masks=BitmapMasks(bitmaps)), None
    )
    assert sample.labels.tolist() == [5]
    with pytest.raises(DatasetError, match="with_mask"):
        by_mask(make_sample(noise(), boxes), None)


def test_packing_sets_ignored_objects_apart(make_sample):
    masks = BitmapMasks(np.stack([np.full((30, 40), i, np.uint8) for i in range(3)]))
    boxes = [[0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 7, 7]]
    sample = make_sample(noise(), boxes, [1, 2, 3], [False, True, False], masks)
    sample.meta |= {"secret": 1, "homography": 2}
    packed = PackDetInputs(meta_keys=("secret",))(sample, None)
    assert packed.labels.tolist() == [1, 3]
    assert packed.ignored_boxes.tolist() == [[1, 1, 8, 8]]
    assert packed.masks.bitmaps[:, 0, 0].tolist() == [0, 2]
    assert set(packed.meta) == {"secret", "ori_shape", "img_shape"}


def file_record(path, width=40, height=30):
    none = np.zeros((0, 4))
    return ImageRecord(7, str(path), width, height, none, np.zeros(0, int), np.zeros(0, bool), ())


def test_loading_an_image(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), noise())
    sample = LoadImageFromFile()(Sample(file_record(path)), None)
    assert np.array_equal(sample.image, noise())
    assert sample.meta["img_id"] == 7
    assert sample.meta["ori_shape"] == sample.meta["img_shape"] == (30, 40)
    floating = LoadImageFromFile(to_float32=True)(Sample(file_record(path)), None)
    assert floating.image.dtype == np.float32
    grey = LoadImageFromFile(color_type="grayscale")(Sample(file_record(path)), None)
    expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(grey.image, np.repeat(expected[..., None], 3, axis=2))
    missing = Sample(file_record(tmp_path / "gone.png"))
    with pytest.raises(MediaError, match=r"gone\.png"):
        LoadImageFromFile()(missing, None)
    assert LoadImageFromFile(ignore_empty=True)(missing, None) is None


WRONG = [
    ({"type": "Resize"}, "scale"),
    ({"type": "Resize", "scale": (10, -3)}, "whole pixels"),
    ({"type": "Resize", "scale": (10, 10), "interpolation": "cubic"}, "interpolation"),
    ({"type": "Resize", "scale_factor": 0.0}, "scale_factor"),
    ({"type": "RandomResize", "scale": (10, 10)}, "ratio_range"),
    ({"type": "RandomResize", "scale": [(1, 1), (2, 2), (3, 3)]}, "two such pairs"),
    ({"type": "RandomResize", "scale": (9, 9), "ratio_range": (1, 2), "resize_type": "Pad"}, "Pad"),
    ({"type": "RandomChoiceResize", "scales": []}, "empty"),
    ({"type": "RandomFlip", "prob": 1.5}, "0..1"),
    ({"type": "RandomFlip", "prob": [0.5, 0.1]}, "one such number per direction"),
    ({"type": "RandomFlip", "prob": 0.5, "direction": "sideways"}, "direction"),
    ({"type": "Pad"}, "needs one of"),
    ({"type": "Pad", "size": (9, 9), "pad_to_square": True}, "exclude"),
    ({"type": "Pad", "size": (9, 9), "pad_val": (1, 2)}, "pad_val"),
    ({"type": "RandomCrop", "crop_size": (0.5, 0.5)}, "whole pixels"),
    ({"type": "RandomCrop", "crop_size": (5, 5), "crop_type": "relative"}, "shares"),
    ({"type": "RandomCrop", "crop_size": (9, 5), "crop_type": "absolute_range"}, "lowest"),
    ({"type": "RandomCrop", "crop_size": (9, 5), "crop_type": "round"}, "crop_type"),
    ({"type": "CachedMosaic", "max_cached_images": 3}, "at least 4"),
    ({"type": "CachedMosaic", "img_scale": (1.5, 2)}, "whole pixels"),
    ({"type": "CachedMixUp", "max_cached_images": 1}, "at least 2"),
    ({"type": "CachedMixUp", "ratio_range": (0, 1)}, "ratio_range"),
    ({"type": "CachedMixUp", "prob": 2}, "prob"),
    ({"type": "RandomAffine", "scaling_ratio_range": (2, 1)}, "scaling_ratio_range"),
    ({"type": "Expand", "ratio_range": (0.5, 1)}, "ratio_range"),
    ({"type": "FilterAnnotations", "by_box": False}, "by_box or by_mask"),
    ({"type": "LoadAnnotations", "with_seg": True}, "with_seg"),
    ({"type": "LoadImageFromFile", "imdecode_backend": "turbojpeg"}, "imdecode_backend"),
    ({"type": "LoadImageFromFile", "color_type": "rgb"}, "color_type"),
    ({"type": "PhotoMetricDistortion", "contrast_range": (2, 1)}, "contrast_range"),
    ({"type": "MinIoURandomCrop", "min_crop_size": 0}, "min_crop_size"),
    ({"type": "RandomRotate"}, "unknown transform"),
    ({"type": "Pad", "size": (9, 9), "colour": 3}, "colour"),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_senseless_arguments_are_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TRANSFORMS.build(config)
    assert "\n" not in str(caught.value)


def test_mosaic_outside_of_its_data_set_says_where_it_belongs(make_sample):
    with pytest.raises(ConfigError, match="MultiImageMixDataset"):
        Mosaic()(make_sample(noise()), np.random.default_rng(0))


def test_a_pipeline_must_be_a_list():
    with pytest.raises(ConfigError, match="list of transforms"):
        Pipeline({"type": "Pad"})


def test_no_global_random_state_is_touched(tmp_path, make_sample):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), noise(60, 80))
    record = file_record(path, 80, 60)
    boxes = np.array([[10.0, 10, 40, 40], [50, 20, 70, 50]])
    record = ImageRecord(
        1, str(path), 80, 60, boxes, np.array([0, 1]), np.zeros(2, bool), (None,) * 2
    )
    pipeline = Pipeline(
        [
            LoadImageFromFile(),
            LoadAnnotations(),
            CachedMosaic(img_scale=(64, 64)),
            *(
                TRANSFORMS.build(config)
                for config in (
                    {"type": "RandomAffine"},
                    {"type": "RandomResize", "scale": (90, 90), "ratio_range": (0.5, 1.5)},
                    {"type": "RandomCrop", "crop_size": (60, 60), "allow_negative_crop": True},
                    {"type": "MinIoURandomCrop"},
                    {"type": "Expand", "ratio_range": (1, 1.2)},
                    {"type": "YOLOXHSVRandomAug"},
                    {"type": "RandomFlip", "prob": 0.5},
                    {"type": "CachedMixUp", "img_scale": (60, 60)},
                    {"type": "PhotoMetricDistortion"},
                )
            ),
        ]
    )
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert pipeline(record, rng) is not None
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert before == after
