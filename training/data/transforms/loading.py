"""Loading: pixels from the image file, boxes and masks from the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from deploykit.errors import ConfigError, MediaError
from deploykit.image_io import read_image
from deploykit.training.data.boxes import as_boxes
from deploykit.training.data.sample import Sample
from deploykit.training.data.segmentation import load_bitmaps, load_polygons
from deploykit.training.data.transforms.transform import Transform
from deploykit.training.registry import TRANSFORMS

_DECODE_FLAGS = {
    "color": cv2.IMREAD_COLOR,
    "grayscale": cv2.IMREAD_GRAYSCALE,
    "color_ignore_orientation": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "grayscale_ignore_orientation": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}


@TRANSFORMS.register()
class LoadImageFromFile(Transform):
    """Read the image file as OpenCV does: BGR, uint8, EXIF orientation applied.

    Args:
        to_float32: Whether to convert the pixels to float32.
        color_type: ``"color"``, ``"grayscale"`` (three equal channels), or either with
            ``"_ignore_orientation"``.
        imdecode_backend: Only ``"cv2"``.
        backend_args: Only local files are read.
        ignore_empty: Whether an unreadable image gives ``None`` instead of an error.

    Raises:
        MediaError: The file is missing or broken (when called).
        ConfigError: An option that is not supported.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        backend_args: Mapping[str, Any] | None = None,
        ignore_empty: bool = False,
    ) -> None:
        if color_type not in _DECODE_FLAGS:
            raise ConfigError(
                f"LoadImageFromFile: color_type must be one of {', '.join(_DECODE_FLAGS)}, "
                f"got {color_type!r}"
            )
        if imdecode_backend != "cv2":
            raise ConfigError(
                f"LoadImageFromFile: only imdecode_backend='cv2' is supported, "
                f"got {imdecode_backend!r}"
            )
        if (backend_args or {}).get("backend", "local") not in ("local", "disk"):
            raise ConfigError("LoadImageFromFile: only local files are read (backend_args=None)")
        self.to_float32 = to_float32
        self.color_type = color_type
        self.ignore_empty = ignore_empty

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample | None:
        """Set the image and its meta data."""
        record = sample.record
        try:
            image = self._read(record.path)
        except MediaError:
            if self.ignore_empty:
                return None
            raise
        if self.to_float32:
            image = image.astype(np.float32)
        sample.set_image(image)
        sample.meta |= {
            "img_id": record.image_id,
            "img_path": record.path,
            "ori_shape": sample.size,
            "scale_factor": (1.0, 1.0),
            "flip": False,
            "flip_direction": None,
        }
        return sample

    def _read(self, path: str) -> Any:
        if self.color_type == "color":
            return read_image(path)
        read_image(path)  # reports a missing or broken file in the usual words
        image = cv2.imdecode(np.fromfile(path, np.uint8), _DECODE_FLAGS[self.color_type])
        if image is None:
            raise MediaError(f"{path} cannot be decoded as {self.color_type}")
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


@TRANSFORMS.register()
class LoadAnnotations(Transform):
    """Take boxes, labels and masks from the record.

    An instance whose segmentation cannot be used gets an empty mask and is ignored in training, as
    in MMDetection, and is reported.

    Args:
        with_bbox: Whether to load boxes.
        with_label: Whether to load labels.
        with_mask: Whether to load masks.
        with_seg: Semantic maps are not supported.
        poly2mask: Whether polygons become bitmaps at once; otherwise they stay polygons (and RLE
            cannot be used).
        box_type: Only ``"hbox"``.
        imdecode_backend: Accepted for MMDetection's configs.
        backend_args: Accepted for MMDetection's configs.

    Raises:
        ConfigError: An option that is not supported.
    """

    def __init__(
        self,
        with_bbox: bool = True,
        with_label: bool = True,
        with_mask: bool = False,
        with_seg: bool = False,
        poly2mask: bool = True,
        box_type: str | None = "hbox",
        imdecode_backend: str = "cv2",
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        if with_seg:
            raise ConfigError("LoadAnnotations: semantic maps (with_seg) are not supported")
        if box_type not in ("hbox", None):
            raise ConfigError(f"LoadAnnotations: box_type must be 'hbox', got {box_type!r}")
        self.with_bbox = with_bbox
        self.with_label = with_label
        self.with_mask = with_mask
        self.poly2mask = poly2mask

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Set boxes, labels, ignore flags and masks."""
        record = sample.record
        if self.with_bbox:
            sample.boxes = as_boxes(record.boxes)
        if self.with_label:
            sample.labels = record.labels
        sample.ignore_flags = record.crowd
        if self.with_mask:
            height, width = sample.meta["ori_shape"]
            load = load_bitmaps if self.poly2mask else load_polygons
            sample.masks, failures = load(record.segmentations, height, width)
            if failures:
                sample.ignore_flags = record.crowd.copy()
                sample.ignore_flags[list(failures)] = True
                sample.problems += [
                    ("invalid_mask", f"{record.path}: object {index}: {reason}")
                    for index, reason in failures.items()
                    if not record.crowd[index]
                ]
        return sample
