from __future__ import annotations

import colorsys

import numpy as np
import pytest

from deploykit.training.data import build_dataset
from deploykit.training.data.drawn_dataset import write_drawn_dataset

CLASSES = ("rectangle", "ellipse", "triangle")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_drawn_dataset(folder, CLASSES, counts=(12, 1), size=(240, 320), objects=(1, 1))
    dataset = build_dataset(
        {
            "type": "CocoDataset",
            "data_root": str(folder),
            "ann_file": "annotations/train.json",
            "data_prefix": {"img": "train/"},
            "on_error": "raise",
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
            ],
        }
    )
    rng = np.random.default_rng(0)
    return [dataset.fetch(index, rng) for index in range(len(dataset))]


def test_masks_are_what_is_drawn(samples):
    assert {int(sample.labels[0]) for sample in samples} == {0, 1, 2}
    for sample in samples:
        mask = sample.masks.to_bitmaps().astype(bool)[0]
        red_green_blue = colorsys.hsv_to_rgb(int(sample.labels[0]) / len(CLASSES), 0.8, 0.9)
        colour = 255 * np.array(red_green_blue[::-1])
        drawn = np.abs(sample.image.astype(float) - colour).max(axis=2) < 70
        assert (mask & drawn).sum() > 0.92 * (mask | drawn).sum()  # JPEG blurs the edges


def test_masks_fill_their_boxes(samples):
    for sample in samples:
        mask = sample.masks.to_bitmaps().astype(bool)[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(np.array(edges) - sample.boxes[0]).max() <= 2
