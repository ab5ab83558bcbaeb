"""What was detected in many images and videos, as one JSON or COCO file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from deploykit.atomic_file import write_atomic
from deploykit.detections import Detections
from deploykit.errors import UsageError
from deploykit.runtimes.file_inputs import Failure


class DetectionLog:
    """Collects results while detection runs over many inputs.

    Args:
        model: Path of the artefact.
        class_names: Name of every class the model knows.
        keep: Whether the detections are kept for ``write_json`` and ``write_coco``; only counts
            are when false, so that a long video takes no memory.
    """

    def __init__(self, model: str, class_names: tuple[str, ...], keep: bool = True) -> None:
        self.model = model
        self.class_names = class_names
        self.failures: list[Failure] = []
        self.images = 0
        self.frames = 0
        self.detections: Counter[str] = Counter()
        self.images_with: Counter[str] = Counter()
        self._keep = keep
        self._images: list[dict[str, Any]] = []
        self._videos: dict[str, dict[str, Any]] = {}
        self._coco_images: list[dict[str, Any]] = []
        self._coco_annotations: list[dict[str, Any]] = []

    def add_image(self, name: str, output: Path | None, found: Detections) -> None:
        """Record the detections of an image and where its annotated picture is."""
        self.images += 1
        self._count(found)
        if self._keep:
            entry = {"file": name, "output": None if output is None else str(output)}
            self._images.append(entry | _without_names(found))
            self._add_coco(name, found)

    def add_frame(self, name: str, output: Path | None, fps: float, found: Detections) -> None:
        """Record the detections of the next frame of a video."""
        self.frames += 1
        self._count(found)
        if not self._keep:
            return
        video = self._videos.setdefault(
            name,
            {
                "file": name,
                "output": None if output is None else str(output),
                "fps": fps,
                "image_size": list(found.image_size),
                "frames": [],
            },
        )
        index = len(video["frames"])
        video["frames"].append({"index": index, "detections": _without_names(found)["detections"]})
        self._add_coco(f"{name}#frame={index}", found)

    def write_json(self, path: Path) -> None:
        """Write everything in the layout that ``docs/detector.md`` describes."""
        data = {
            "model": self.model,
            "class_names": list(self.class_names),
            "images": self._images,
            "videos": list(self._videos.values()),
            "failed": [{"file": item.name, "reason": item.reason} for item in self.failures],
        }
        _write(path, json.dumps(data, indent=1))

    def write_coco(self, path: Path) -> None:
        """Write a COCO data set of the images, with a ``score`` in each annotation.

        Images are numbered from 1 in the order of detection; category ids are label + 1.
        """
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, start=1)]
        data = {
            "images": self._coco_images,
            "categories": categories,
            "annotations": self._coco_annotations,
        }
        _write(path, json.dumps(data))

    def _count(self, found: Detections) -> None:
        counts = found.counts()
        self.detections.update(counts)
        self.images_with.update(counts.keys())

    def _add_coco(self, name: str, found: Detections) -> None:
        image_id = len(self._coco_images) + 1
        height, width = found.image_size
        self._coco_images.append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        for result in found.to_coco(image_id):
            _, _, box_width, box_height = result["bbox"]
            self._coco_annotations.append(
                {"id": len(self._coco_annotations) + 1, "area": box_width * box_height}
                | {"iscrowd": 0}
                | result
            )


def _without_names(found: Detections) -> dict[str, Any]:
    """Return the detections as a dict without what is the same for every image."""
    data = found.to_dict()
    del data["class_names"]
    data.pop("palette", None)
    return data


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
