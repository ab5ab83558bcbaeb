"""COCO annotation files, written one image and one object at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import write_atomic


class CocoWriter:
    """Collects images and objects and writes them as one COCO json file.

    Args:
        classes: Class names; category ids count from 1 in this order.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.categories = [
            {"id": index, "name": name, "supercategory": ""}
            for index, name in enumerate(classes, 1)
        ]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, file_name: str, height: int, width: int) -> int:
        """Add an image and return its id."""
        image_id = len(self.images) + 1
        self.images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        return image_id

    def add_mask(
        self, image_id: int, mask: npt.NDArray[np.bool_], label: int, min_area: int = 1
    ) -> bool:
        """Add one object by its mask.

        Args:
            image_id: What ``add_image`` returned.
            mask: bool [H, W], True on the object.
            label: Class index, from 0.
            min_area: Objects with fewer pixels, or without any contour, are left out.

        Returns:
            Whether the object was added.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        area = int(mask.sum())
        if area < min_area or not area:
            return False
        x, y = int(columns[0]), int(rows[0])
        width, height = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x, y, width, height],
                "area": area,
                "iscrowd": 0,
                "segmentation": rle_of_mask(mask),
            }
        )
        return True

    def write(self, path: Path) -> None:
        """Write the file."""
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        write_atomic(path, json.dumps(content))


def rle_of_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return COCO's uncompressed run-length encoding of a mask.

    Args:
        mask: bool [H, W].

    Returns:
        ``{"size": [H, W], "counts": [...]}``: lengths of alternating runs of background and object
        in column-major order, beginning with background.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flat))))
    bounds = np.concatenate(([0], edges, [flat.size]))
    return {"size": [int(side) for side in mask.shape], "counts": np.diff(bounds).tolist()}
