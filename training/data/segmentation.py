"""COCO segmentations to instance masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.mask_rle import decode_mask
from deploykit.training.data.masks import BitmapMasks, PolygonMasks
from deploykit.training.data.polygons import fill_polygons, parse_polygons


def load_bitmaps(
    segmentations: tuple[Any, ...], height: int, width: int
) -> tuple[BitmapMasks, dict[int, str]]:
    """Decode COCO segmentations to bitmaps.

    Args:
        segmentations: Per instance a list of polygons, an RLE with compressed or plain counts, or
            ``None``.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        The masks, and for each instance without a usable segmentation (its mask is empty) the
        reason.
    """
    bitmaps = np.zeros((len(segmentations), height, width), np.uint8)
    failures: dict[int, str] = {}
    for index, segmentation in enumerate(segmentations):
        if isinstance(segmentation, Mapping):
            try:
                bitmap = decode_mask(dict(segmentation))
            except UsageError as error:
                failures[index] = str(error)
                continue
            if bitmap.shape != (height, width):
                failures[index] = (
                    f"its RLE is {bitmap.shape[0]}x{bitmap.shape[1]}, the image {height}x{width}"
                )
                continue
            bitmaps[index] = bitmap
        elif polygons := _polygons_of(segmentation):
            bitmaps[index] = fill_polygons(polygons, height, width)
        else:
            failures[index] = _NO_POLYGON
    return BitmapMasks(bitmaps), failures


def load_polygons(
    segmentations: tuple[Any, ...], height: int, width: int
) -> tuple[PolygonMasks, dict[int, str]]:
    """Read COCO segmentations as polygons; RLE cannot become polygons and counts as a failure.

    Args:
        segmentations: Per instance a list of polygons, an RLE or ``None``.
        height: Image height in pixels.
        width: Image width in pixels.

    Returns:
        The masks, and for each instance without usable polygons (its mask is empty) the reason.
    """
    polygons = [_polygons_of(segmentation) for segmentation in segmentations]
    failures = {
        index: "RLE cannot be used with poly2mask=False"
        if isinstance(segmentations[index], Mapping)
        else _NO_POLYGON
        for index, parts in enumerate(polygons)
        if not parts
    }
    return PolygonMasks(polygons, height, width), failures


_NO_POLYGON = "it has no polygon of three points or more"


def _polygons_of(segmentation: Any) -> list[Any]:
    return parse_polygons(segmentation) if isinstance(segmentation, list) else []
