"""Polygons as float64 [n, 2] arrays of (x, y) in pixels, and COCO segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.optional_imports import import_optional

Polygon = npt.NDArray[np.float64]


def polygon_area(polygon: Polygon) -> float:
    """Return the area of a simple polygon in square pixels (shoelace formula)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def clip_polygon(polygon: Polygon, height: float, width: float) -> Polygon:
    """Return the part of a polygon inside [0, width] × [0, height].

    Sutherland-Hodgman: of a concave polygon that leaves and re-enters the window, the parts stay
    joined by edges of zero area along the border, which fill to nothing.

    Args:
        polygon: float64 [n, 2].
        height: Window height in pixels.
        width: Window width in pixels.

    Returns:
        float64 [m, 2]; fewer than three points when nothing is inside.
    """
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    if low.min() >= 0 and high[0] <= width and high[1] <= height:
        return polygon
    if high.min() <= 0 or low[0] >= width or low[1] >= height:
        return np.zeros((0, 2), np.float64)
    for axis, bound, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        polygon = _clip_half_plane(polygon, axis, bound, sign)
        if len(polygon) < 3:
            break
    return polygon


def _clip_half_plane(polygon: Polygon, axis: int, bound: float, sign: int) -> Polygon:
    """Keep what lies on the side of the line ``coordinate[axis] = bound`` that ``sign`` names."""
    distance = sign * (polygon[:, axis] - bound)
    inside = distance >= 0
    if inside.all():
        return polygon
    points: list[npt.NDArray[np.float64]] = []
    for i in range(len(polygon)):
        before = i - 1
        if inside[i] != inside[before]:
            part = distance[before] / (distance[before] - distance[i])
            crossing = polygon[before] + part * (polygon[i] - polygon[before])
            crossing[axis] = bound
            points.append(crossing)
        if inside[i]:
            points.append(polygon[i])
    return np.array(points, np.float64).reshape(-1, 2)


def fill_polygons(polygons: Sequence[Polygon], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the union of polygons as a bitmap, rasterised by pycocotools.

    Returns:
        uint8 [height, width] of 0 and 1.
    """
    flat = [polygon.reshape(-1).tolist() for polygon in polygons]
    coco_mask = import_optional("pycocotools.mask", "train", "Filling polygons")
    rle = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    return np.asarray(coco_mask.decode(rle), dtype=np.uint8)


def parse_polygons(segmentation: Any) -> list[Polygon]:
    """Return the usable polygons of a COCO segmentation list.

    As in MMDetection, polygons with an odd number of values or fewer than three points are left
    out; so are those with values that are not finite numbers.

    Args:
        segmentation: A list of flat lists [x1, y1, x2, y2, ...].
    """
    polygons = []
    for part in segmentation:
        try:
            points = np.asarray(part, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        usable = points.ndim == 1 and points.size >= 6 and points.size % 2 == 0
        if usable and np.isfinite(points).all():
            polygons.append(points.reshape(-1, 2))
    return polygons
