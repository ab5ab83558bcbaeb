"""Instance masks that follow an image through geometric transforms.

``BitmapMasks`` hold pixels, ``PolygonMasks`` hold outlines. Both are immutable: every operation
returns new masks. The operations have the geometry of their image counterparts: after any chain of
them a mask lies where the object lies in the image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.training.data import boxes as box_ops
from deploykit.training.data.polygons import clip_polygon, fill_polygons, polygon_area

Bitmaps = npt.NDArray[np.uint8]
Polygon = npt.NDArray[np.float64]


class InstanceMasks(ABC):
    """Masks of the N instances of one image.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
    """

    height: int
    width: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def select(self, chosen: npt.NDArray[Any]) -> InstanceMasks:
        """Return the masks at a bool mask or at indices."""

    @abstractmethod
    def resize(self, height: int, width: int) -> InstanceMasks:
        """Return the masks of the image resized to (height, width)."""

    @abstractmethod
    def flip(self, direction: str) -> InstanceMasks:
        """Return the masks of the mirrored image."""

    @abstractmethod
    def place(self, height: int, width: int, dx: int, dy: int) -> InstanceMasks:
        """Return the masks of a (height, width) image onto which this one was pasted.

        Args:
            height: Height of the new image.
            width: Width of the new image.
            dx: Column of the new image where this one's column 0 comes to lie; may be negative.
            dy: Row of the new image where this one's row 0 comes to lie; may be negative.
        """

    @abstractmethod
    def warp(self, matrix: npt.NDArray[np.float32], height: int, width: int) -> InstanceMasks:
        """Return the masks of the image warped by a projective matrix float32 [3, 3]."""

    @abstractmethod
    def concatenate(self, others: Sequence[InstanceMasks]) -> InstanceMasks:
        """Return these masks followed by others of the same kind and size."""

    @property
    @abstractmethod
    def areas(self) -> npt.NDArray[np.float64]:
        """Area of each mask in pixels, float64 [N]."""

    @abstractmethod
    def boxes(self) -> box_ops.Boxes:
        """Return the tight box of each mask, float32 [N, 4]; zeros for an empty mask."""

    @abstractmethod
    def to_bitmaps(self) -> Bitmaps:
        """Return the masks as uint8 [N, H, W] of 0 and 1."""

    def crop(self, x1: int, y1: int, x2: int, y2: int) -> InstanceMasks:
        """Return the masks of the image cropped to columns x1..x2 and rows y1..y2."""
        return self.place(y2 - y1, x2 - x1, -x1, -y1)


class BitmapMasks(InstanceMasks):
    """Masks as pixels.

    Args:
        bitmaps: uint8 [N, H, W] of 0 and 1.
    """

    def __init__(self, bitmaps: Bitmaps) -> None:
        self.bitmaps = bitmaps
        self.height, self.width = int(bitmaps.shape[1]), int(bitmaps.shape[2])

    def __len__(self) -> int:
        return len(self.bitmaps)

    def select(self, chosen: npt.NDArray[Any]) -> BitmapMasks:
        """Return the masks at a bool mask or at indices."""
        return BitmapMasks(self.bitmaps[chosen])

    def resize(self, height: int, width: int) -> BitmapMasks:
        """Return the masks resized by nearest neighbour, as MMDetection does."""
        out = np.empty((len(self), height, width), np.uint8)
        for source, target in zip(self.bitmaps, out, strict=True):
            cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_NEAREST)
        return BitmapMasks(out)

    def flip(self, direction: str) -> BitmapMasks:
        """Return the masks of the mirrored image."""
        axes = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}[direction]
        return BitmapMasks(np.flip(self.bitmaps, axes))

    def place(self, height: int, width: int, dx: int, dy: int) -> BitmapMasks:
        """Return the masks of a (height, width) image onto which this one was pasted."""
        if (dx, dy, height, width) == (0, 0, self.height, self.width):
            return self
        out = np.zeros((len(self), height, width), np.uint8)
        x1, x2 = max(dx, 0), min(dx + self.width, width)
        y1, y2 = max(dy, 0), min(dy + self.height, height)
        if x1 < x2 and y1 < y2:
            out[:, y1:y2, x1:x2] = self.bitmaps[:, y1 - dy : y2 - dy, x1 - dx : x2 - dx]
        return BitmapMasks(out)

    def warp(self, matrix: npt.NDArray[np.float32], height: int, width: int) -> BitmapMasks:
        """Return the masks of the warped image, by nearest neighbour."""
        out = np.empty((len(self), height, width), np.uint8)
        for source, target in zip(np.ascontiguousarray(self.bitmaps), out, strict=True):
            cv2.warpPerspective(source, matrix, (width, height), target, flags=cv2.INTER_NEAREST)
        return BitmapMasks(out)

    def concatenate(self, others: Sequence[InstanceMasks]) -> BitmapMasks:
        """Return these masks followed by others of the same size."""
        return BitmapMasks(np.concatenate([self.bitmaps, *(each.to_bitmaps() for each in others)]))

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Number of pixels of each mask, float64 [N]."""
        return np.asarray(self.bitmaps.sum(axis=(1, 2)), dtype=np.float64)

    def boxes(self) -> box_ops.Boxes:
        """Return the tight box of each mask, float32 [N, 4]; zeros for an empty mask."""
        out = np.zeros((len(self), 4), np.float32)
        for row, bitmap in zip(out, self.bitmaps, strict=True):
            columns = np.flatnonzero(bitmap.any(axis=0))
            rows = np.flatnonzero(bitmap.any(axis=1))
            if len(columns):
                row[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return out

    def to_bitmaps(self) -> Bitmaps:
        """Return the masks as uint8 [N, H, W] of 0 and 1."""
        return self.bitmaps


class PolygonMasks(InstanceMasks):
    """Masks as outlines.

    Args:
        polygons: Per instance a list of polygons, float64 [n, 2] of (x, y) in pixels; an instance
            without polygons has an empty mask.
        height: Image height in pixels.
        width: Image width in pixels.
    """

    def __init__(self, polygons: list[list[Polygon]], height: int, width: int) -> None:
        self.polygons = polygons
        self.height, self.width = int(height), int(width)

    def __len__(self) -> int:
        return len(self.polygons)

    def _moved(self, scale: Sequence[float], offset: Sequence[float]) -> list[list[Polygon]]:
        factor, addend = np.array(scale, np.float64), np.array(offset, np.float64)
        return [[part * factor + addend for part in instance] for instance in self.polygons]

    def _clipped(self, polygons: list[list[Polygon]], height: int, width: int) -> PolygonMasks:
        clipped = [
            [inside for part in instance if len(inside := clip_polygon(part, height, width)) >= 3]
            for instance in polygons
        ]
        return PolygonMasks(clipped, height, width)

    def select(self, chosen: npt.NDArray[Any]) -> PolygonMasks:
        """Return the masks at a bool mask or at indices."""
        indices = np.arange(len(self))[chosen]
        return PolygonMasks([self.polygons[i] for i in indices], self.height, self.width)

    def resize(self, height: int, width: int) -> PolygonMasks:
        """Return the masks of the image resized to (height, width)."""
        polygons = self._moved((width / self.width, height / self.height), (0, 0))
        return PolygonMasks(polygons, height, width)

    def flip(self, direction: str) -> PolygonMasks:
        """Return the masks of the mirrored image."""
        sign_x, from_x = (1, 0) if direction == "vertical" else (-1, self.width)
        sign_y, from_y = (1, 0) if direction == "horizontal" else (-1, self.height)
        polygons = self._moved((sign_x, sign_y), (from_x, from_y))
        return PolygonMasks(polygons, self.height, self.width)

    def place(self, height: int, width: int, dx: int, dy: int) -> PolygonMasks:
        """Return the masks of a (height, width) image onto which this one was pasted."""
        polygons = self._moved((1, 1), (dx, dy))
        if dx >= 0 and dy >= 0 and dx + self.width <= width and dy + self.height <= height:
            return PolygonMasks(polygons, height, width)
        return self._clipped(polygons, height, width)

    def warp(self, matrix: npt.NDArray[np.float32], height: int, width: int) -> PolygonMasks:
        """Return the masks of the warped image."""
        warped = [
            [
                box_ops.warp_points(part.astype(np.float32), matrix).astype(np.float64)
                for part in one
            ]
            for one in self.polygons
        ]
        return self._clipped(warped, height, width)

    def concatenate(self, others: Sequence[InstanceMasks]) -> InstanceMasks:
        """Return these masks followed by others of the same size."""
        polygons = list(self.polygons)
        for other in others:
            if not isinstance(other, PolygonMasks):
                return BitmapMasks(self.to_bitmaps()).concatenate(others)
            polygons += other.polygons
        return PolygonMasks(polygons, self.height, self.width)

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Area of each mask in pixels by the shoelace formula, float64 [N]."""
        return np.array(
            [sum(polygon_area(part) for part in instance) for instance in self.polygons], np.float64
        )

    def boxes(self) -> box_ops.Boxes:
        """Return the tight box of each mask, float32 [N, 4]; zeros for an empty mask."""
        out = np.zeros((len(self), 4), np.float32)
        for row, instance in zip(out, self.polygons, strict=True):
            if instance:
                points = np.concatenate(instance)
                row[:2], row[2:] = points.min(axis=0), points.max(axis=0)
        return out

    def to_bitmaps(self) -> Bitmaps:
        """Return the masks as uint8 [N, H, W], rasterised as pycocotools does."""
        out = np.zeros((len(self), self.height, self.width), np.uint8)
        for target, instance in zip(out, self.polygons, strict=True):
            if instance:
                target[:] = fill_polygons(instance, self.height, self.width)
        return out
