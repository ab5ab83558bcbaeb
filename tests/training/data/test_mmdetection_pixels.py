"""The transforms against what MMDetection 3.3.0 itself gave for the same images and random draws.

``mmdetection_transforms.npz`` holds its output for every entry of ``PIPELINES``: the pipeline ran
over the records of ``make_records()`` in order (twice round where samples are cached), with
``numpy.random.seed(1000 + step)`` before each step; the first five steps only filled the caches of
mosaics. Images are kept as PNG, floating point ones as float16.
"""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploykit.training.data.sample import ImageRecord
from deploykit.training.data.transforms import CachingTransform, Pipeline

REFERENCE = Path(__file__).with_name("mmdetection_transforms.npz")
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_bbox": True}]
LOAD_MASKS = [LOAD[0], {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
PRIMED = 5


def one(kind, **options):
    return [{"type": kind, **options}]


PIPELINES = {
    "resize_ratio": LOAD_MASKS + one("Resize", scale=(50, 31), keep_ratio=True),
    "resize_stretch": LOAD_MASKS + one("Resize", scale=(50, 31), keep_ratio=False),
    "resize_factor": LOAD + one("Resize", scale_factor=0.37, keep_ratio=True),
    "resize_cubic": LOAD + one("Resize", scale=(70, 70), keep_ratio=True, interpolation="bicubic"),
    "fix_scale": LOAD + one("FixScaleResize", scale=(50, 31), keep_ratio=True),
    "random_resize": LOAD
    + one("RandomResize", scale=(48, 48), ratio_range=(0.3, 1.5), keep_ratio=True),
    "random_resize_between": LOAD
    + one("RandomResize", scale=[(30, 20), (60, 40)], keep_ratio=True),
    "random_choice_resize": LOAD
    + one("RandomChoiceResize", scales=[(30, 20), (45, 37), (60, 40)], keep_ratio=True),
    "flip": LOAD_MASKS
    + one("RandomFlip", prob=[0.3, 0.3, 0.3], direction=["horizontal", "vertical", "diagonal"]),
    "pad_size": LOAD_MASKS + one("Pad", size=(90, 70), pad_val={"img": (114, 2, 77)}),
    "pad_divisor": LOAD + one("Pad", size_divisor=32, pad_val={"img": (114, 114, 114)}),
    "pad_square": LOAD + one("Pad", pad_to_square=True, pad_val={"img": (1.0, 2.0, 3.0)}),
    "crop_absolute": LOAD_MASKS + one("RandomCrop", crop_size=(30, 24)),
    "crop_negative": LOAD + one("RandomCrop", crop_size=(12, 12), allow_negative_crop=True),
    "crop_range": LOAD
    + one("RandomCrop", crop_type="absolute_range", crop_size=(20, 40), recompute_bbox=False),
    "crop_relative": LOAD + one("RandomCrop", crop_type="relative", crop_size=(0.5, 0.7)),
    "crop_relative_range": LOAD
    + one("RandomCrop", crop_type="relative_range", crop_size=(0.3, 0.6)),
    "crop_recompute": LOAD_MASKS + one("RandomCrop", crop_size=(30, 24), recompute_bbox=True),
    "min_iou_crop": LOAD + one("MinIoURandomCrop"),
    "expand": LOAD + one("Expand", mean=[123.675, 116.28, 103.53], ratio_range=(1, 1.5)),
    "filter": LOAD + one("FilterAnnotations", min_gt_bbox_wh=(12, 10)),
    "hsv": LOAD + one("YOLOXHSVRandomAug"),
    "photometric": LOAD + one("PhotoMetricDistortion"),
    "affine": LOAD + one("RandomAffine", scaling_ratio_range=(0.5, 1.5), border=(-4, -6)),
    "mosaic": LOAD + one("CachedMosaic", img_scale=(40, 32), pad_val=114.0, max_cached_images=7),
    "mosaic_fifo": LOAD
    + one("CachedMosaic", img_scale=(32, 32), max_cached_images=6, random_pop=False, prob=0.6),
    "mixup": LOAD
    + one("Resize", scale=(48, 40), keep_ratio=True)
    + one("CachedMixUp", img_scale=(48, 40), ratio_range=(0.6, 1.6), pad_val=114.0,
          max_cached_images=4),
    "rtmdet": LOAD
    + one("CachedMosaic", img_scale=(40, 40), pad_val=114.0)
    + one("RandomResize", scale=(80, 80), ratio_range=(0.5, 2.0), keep_ratio=True)
    + one("RandomCrop", crop_size=(40, 40))
    + one("YOLOXHSVRandomAug")
    + one("RandomFlip", prob=0.5)
    + one("Pad", size=(40, 40), pad_val={"img": (114, 114, 114)})
    + one("CachedMixUp", img_scale=(40, 40), ratio_range=(1.0, 1.0), max_cached_images=20,
          pad_val=(114, 114, 114)),
}  # fmt: skip


class RecordedDraws:
    """The draws that numpy's old generator gives for a seed, through the new one's methods."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def integers(self, low, high=None, size=None):
        return self.state.randint(low, high, size) if high is not None else self.state.randint(low)

    def random(self, size=None):
        return self.state.random_sample(size)

    def uniform(self, low=0.0, high=1.0, size=None):
        return self.state.uniform(low, high, size)

    def permutation(self, count):
        return self.state.permutation(count)


def make_records(folder):
    """Six small images of smooth colours with rectangles, as lossless files."""
    rng = np.random.default_rng(11)
    records = []
    for index in range(6):
        height, width = (int(edge) for edge in rng.integers(34, 64, 2))
        rows, columns = np.mgrid[:height, :width]
        image = np.stack(
            [
                4 * columns % 256 // 2 + 60,
                (rows * 3 + 20 * index) % 200 + 20,
                (rows + columns) * 2 % 240,
            ],
            axis=-1,
        ).astype(np.uint8)
        boxes = []
        for _ in range(index):
            x, y = rng.uniform(0, [width - 10, height - 10])
            w, h = rng.uniform(4, 24, 2)
            boxes.append([x, y, min(x + w, width), min(y + h, height)])
            x1, y1, x2, y2 = (round(edge) for edge in boxes[-1])
            image[y1:y2, x1:x2] = rng.integers(0, 255, 3)
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        polygons = tuple(
            [[a, b, c, b, c, d, (a + c) / 2, (b + d) / 2, a, d]] for a, b, c, d in boxes
        )
        records.append(
            ImageRecord(
                index,
                str(path),
                width,
                height,
                np.array(boxes, np.float64).reshape(-1, 4),
                rng.integers(0, 5, index),
                rng.random(index) < 0.2,
                polygons,
            )
        )
    return records


def steps(records, name):
    """(step, record) of the recorded run of a pipeline."""
    rounds = 2 if any("Cached" in each["type"] for each in PIPELINES[name]) else 1
    return [(step, records[step % len(records)]) for step in range(rounds * len(records))]


@pytest.fixture(scope="module")
def reference():
    assert zipfile.is_zipfile(REFERENCE)
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", PIPELINES)
def test_equal_to_mmdetection(name, reference, tmp_path):
    pipeline = Pipeline(PIPELINES[name])
    caching = [each for each in pipeline.transforms if isinstance(each, CachingTransform)]
    primed = PRIMED if "mosaic" in name or name == "rtmdet" else 0
    compared = 0
    for step, record in steps(make_records(tmp_path), name):
        rng = RecordedDraws(1000 + step)
        if step < primed:
            sample = Pipeline(LOAD)(record, rng)
            caching[0].remember(sample, rng)
            continue
        sample = pipeline(record, rng)
        key = f"{name}/{step}/"
        if key + "image" not in reference:
            assert sample is None
            continue
        compared += 1
        assert_image(sample.image, reference[key + "image"])
        # Rows of x1, y1, x2, y2, label, ignore flag.
        objects = reference[key + "objects"]
        assert np.allclose(sample.boxes, objects[:, :4], atol=1e-4)
        assert sample.boxes.dtype == np.float32
        assert np.array_equal(sample.labels, objects[:, 4])
        assert np.array_equal(sample.ignore_flags, objects[:, 5])
        if key + "masks" in reference:
            packed = np.packbits(sample.masks.to_bitmaps())
            assert np.array_equal(packed, reference[key + "masks"])
    assert compared >= 4


def assert_image(image, expected):
    """Equal, but for a rounding that OpenCV may do otherwise on another CPU."""
    if image.dtype == np.float32:
        assert image.shape == expected.shape
        assert np.allclose(image, expected, rtol=1e-3, atol=1e-2)  # what float16 leaves
        return
    expected = cv2.imdecode(expected, cv2.IMREAD_COLOR)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    difference = np.abs(image.astype(np.int16) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01
