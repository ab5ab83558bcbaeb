"""Drawn data sets whose boxes and masks are known."""

import json

import cv2
import numpy as np
import pytest

from deploykit.training.data.sample import ImageRecord, Sample

NAMES = ("cat", "dog", "owl")


class CocoFolder:
    """A COCO data set on disk: dark noise with one bright rectangle per object.

    Args:
        root: Folder to write to.
        images: Number of images.
        seed: Seed of sizes, objects and noise.
    """

    def __init__(self, root, images=8, seed=0):
        self.root = root
        (root / "images").mkdir(parents=True)
        rng = np.random.default_rng(seed)
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 5 * i + 1, "name": name} for i, name in enumerate(NAMES)],
        }
        for index in range(images):
            height, width = int(rng.integers(48, 80)), int(rng.integers(48, 100))
            image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for _ in range(1 + index % 3):
                x, y = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
                w, h = (int(edge) for edge in rng.integers(8, 20, 2))
                label = int(rng.integers(3))
                image[y : y + h, x : x + w] = 120 + 60 * label
                self.add_annotation(index, [x, y, w, h], 5 * label + 1)
            cv2.imwrite(str(self.image_path(index)), image)
            self.content["images"].append(
                {"id": index, "file_name": f"{index}.png", "width": width, "height": height}
            )
        self.write()

    def add_annotation(self, image_id, box, category_id=1, **extra):
        x, y, w, h = box
        self.content["annotations"].append(
            {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            | extra
        )

    def image_path(self, index):
        return self.root / "images" / f"{index}.png"

    def write(self):
        (self.root / "ann.json").write_text(json.dumps(self.content))

    def config(self, *transforms, with_mask=False, **options):
        """A dataset config that loads, applies ``transforms`` and packs."""
        pipeline = [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": with_mask},
            *transforms,
            {"type": "PackDetInputs"},
        ]
        return {
            "type": "CocoDataset",
            "ann_file": "ann.json",
            "data_root": str(self.root),
            "data_prefix": {"img": "images/"},
            "pipeline": pipeline,
        } | options


@pytest.fixture
def coco_folder(tmp_path):
    """Make ``CocoFolder``s."""

    def make(name="data", **options):
        return CocoFolder(tmp_path / name, **options)

    return make


@pytest.fixture
def make_sample():
    """Make a loaded sample from an image, boxes, labels, ignore flags and masks."""

    def make(image, boxes=(), labels=None, ignore=None, masks=None, path="drawn.png"):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        count = len(boxes)
        labels = np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64)
        ignore = np.zeros(count, bool) if ignore is None else np.array(ignore, bool)
        height, width = image.shape[:2]
        record = ImageRecord(
            1, path, width, height, boxes.astype(np.float64), labels, ignore, (None,) * count
        )
        sample = Sample(record, image, boxes, labels, ignore, masks)
        sample.meta = {"img_shape": (height, width), "ori_shape": (height, width)}
        return sample

    return make
