"""Detectors that find what a test writes down: ``Detector``'s contract without a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.spec import DimRange, InputSpec, ModelSpec, OutputSpec

CLASSES = ("cat", "dog", "bird")
ROWS = 8


def rows_of(*detections, rows=ROWS):
    """Return the outputs of one image for ``(x1, y1, x2, y2, score, label)`` tuples."""
    outputs = {
        "boxes": np.zeros((rows, 4), np.float32),
        "scores": np.zeros(rows, np.float32),
        "labels": np.full(rows, -1, np.int32),
        "num_dets": np.int32(len(detections)),
    }
    for row, (*box, score, label) in enumerate(detections):
        outputs["boxes"][row] = box
        outputs["scores"][row] = score
        outputs["labels"][row] = label
    return outputs


@dataclass
class FakeBackend:
    spec: ModelSpec
    answers: dict
    leak: float = 0.0
    name: str = "fake"

    def __post_init__(self):
        self.batches = []

    def infer(self, images, image_sizes):
        assert images.dtype == np.uint8 and images.ndim == 4
        assert image_sizes.shape == (len(images), 2)
        assert len(images) in self.spec.input.batch
        self.batches.append(len(images))
        outputs = [self.answers.get(int(image[0, 0, 0]), rows_of()) for image in images]
        stacked = {name: np.stack([one[name] for one in outputs]) for name in outputs[0]}
        # A planted fault: the content of the first row of a batch moves the boxes of the others.
        stacked["boxes"][1:] += np.float32(self.leak * images[0, 0, 0, 0])
        return stacked


class FakeDetector:
    """Halves the image (scale factor 0.5) and answers by the value of its first pixel."""

    def __init__(self, answers, batch=(1, 1, 8), scale=0.5, leak=0.0, **spec):
        sides = DimRange(1, 32, 999)
        inputs = InputSpec(batch=DimRange(*batch), height=sides, width=sides)
        self.spec = replace(
            ModelSpec("Fake", CLASSES, inputs, OutputSpec(max_per_img=ROWS)), **spec
        )
        self.class_names = self.spec.classes
        self.scale = scale
        self.backend = FakeBackend(self.spec, answers, leak)

    def prepare(self, images):
        step = round(1 / self.scale)
        pixels = np.stack([image[::step, ::step, ::-1] for image in images])
        sizes = np.array([image.shape[:2] for image in pixels], np.int32)
        return SimpleNamespace(
            images=pixels,
            image_sizes=sizes,
            scale_factors=[(self.scale, self.scale)] * len(images),
            original_sizes=[image.shape[:2] for image in images],
        )

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def image_of(key, height=20, width=30):
    """Return an image that ``FakeDetector`` answers with ``answers[key]``."""
    return np.full((height, width, 3), key, np.uint8)


@pytest.fixture
def fakes():
    return SimpleNamespace(
        Detector=FakeDetector, rows_of=rows_of, image_of=image_of, CLASSES=CLASSES, ROWS=ROWS
    )
