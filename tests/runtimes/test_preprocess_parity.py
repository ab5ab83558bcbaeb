"""The runtime prepares an image file exactly as a config's test pipeline does."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deploykit.image_io import read_image
from deploykit.runtimes.preprocess import Preprocessor
from deploykit.training.data.sample import ImageRecord
from deploykit.training.data.transforms.transform import Pipeline
from deploykit.training.input_spec import input_spec_from_config

PAD_VALUE = {"img": (114, 60, 7)}
PIPELINES = {
    "pad to size": [
        {"type": "Resize", "scale": (160, 160), "keep_ratio": True},
        {"type": "Pad", "size": (160, 160), "pad_val": PAD_VALUE},
    ],
    "pad to square": [
        {"type": "Resize", "scale": (128, 128), "keep_ratio": True},
        {"type": "Pad", "pad_to_square": True, "pad_val": PAD_VALUE},
    ],
    "pad to divisor": [
        {"type": "Resize", "scale": (200, 120), "keep_ratio": True},
        {"type": "Pad", "size_divisor": 32, "pad_val": PAD_VALUE},
    ],
    "stretch": [{"type": "Resize", "scale": (160, 96), "keep_ratio": False}],
    "stretch by area": [
        {"type": "Resize", "scale": (160, 96), "keep_ratio": False, "interpolation": "area"}
    ],
}


def record_of(path: Path) -> ImageRecord:
    return ImageRecord(
        image_id=1,
        path=str(path),
        width=0,
        height=0,
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
        segmentations=(),
    )


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize(
    "size", [(427, 640), (640, 427), (160, 160), (96, 160), (41, 33), (1, 300), (333, 500)]
)
def test_bit_identical_to_the_test_pipeline(
    tmp_path: Path, noise_image: Callable[..., np.ndarray], name: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), noise_image(0, *size))
    pipeline = [{"type": "LoadImageFromFile"}, *PIPELINES[name], {"type": "PackDetInputs"}]
    config = {
        "model": {"type": "Detector", "data_preprocessor": {"pad_size_divisor": 32}},
        "test_pipeline": pipeline,
    }
    sample = Pipeline(pipeline)(record_of(path), np.random.default_rng(0))
    assert sample is not None

    prepared = Preprocessor(input_spec_from_config(config))([read_image(path)])

    np.testing.assert_array_equal(prepared.images[0], sample.image[..., ::-1])
    assert prepared.original_sizes == (sample.meta["ori_shape"],)
    assert tuple(prepared.scale_factors[0]) == tuple(sample.meta["scale_factor"])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_jpegs_are_decoded_alike(
    tmp_path: Path, noise_image: Callable[..., np.ndarray], orientation: int
) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(noise_image(0, 50, 80)).save(path, exif=exif.tobytes())
    sample = Pipeline([{"type": "LoadImageFromFile"}])(record_of(path), np.random.default_rng(0))
    assert sample is not None
    np.testing.assert_array_equal(read_image(path), sample.image)
    assert sample.image.shape[0] == (80 if orientation >= 5 else 50)
