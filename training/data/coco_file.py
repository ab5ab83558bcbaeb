"""Reads COCO json files and reports everything that is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from deploykit.errors import DatasetError
from deploykit.training.data.report import AnnotationReport

# More pixels along an edge than any decoder takes.
MAX_EDGE = 1 << 20


@dataclass(frozen=True)
class CocoImage:
    """An entry of ``images``: id, file name, width and height in pixels."""

    image_id: int | str
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class CocoAnnotation:
    """An entry of ``annotations``.

    Args:
        annotation_id: Its id, for messages; ids need not be unique.
        image_id: The image it belongs to.
        category_id: Its category.
        box: x, y, width, height in pixels.
        area: Area in square pixels; the box's area where the file has none.
        crowd: Whether it stands for many objects.
        ignore: Whether it is marked to be left out of training.
        segmentation: Polygons, RLE or ``None``.
    """

    annotation_id: int | str | None
    image_id: int | str
    category_id: int | str
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    ignore: bool
    segmentation: Any


@dataclass
class CocoFile:
    """The usable content of a COCO json file.

    Args:
        path: The file.
        images: Images by id, in the order of the file.
        categories: Category names by id, in the order of the file.
        annotations: Annotations by image id, in the order of the file.
        report: What was wrong.
    """

    path: str
    images: dict[int | str, CocoImage] = field(default_factory=dict)
    categories: dict[int | str, str] = field(default_factory=dict)
    annotations: dict[int | str, list[CocoAnnotation]] = field(default_factory=dict)
    report: AnnotationReport = field(default_factory=lambda: AnnotationReport(""))


def read_coco_file(path: str | os.PathLike[str], needs_annotations: bool = True) -> CocoFile:
    """Read a COCO json file.

    Args:
        path: The file.
        needs_annotations: Whether a file without ``annotations`` is refused (COCO's test sets have
            none).

    Raises:
        DatasetError: The file is missing, not JSON, or not COCO at all.
    """
    name = str(path)
    data = _read_json(name)
    if not isinstance(data, Mapping):
        raise DatasetError(
            f"{name} is not a COCO file: it holds a {_type_name(data)}, not an object"
        )
    wanted = ("images", "categories", *(("annotations",) if needs_annotations else ()))
    for key in wanted:
        if not isinstance(data.get(key), list):
            found = _type_name(data[key]) if key in data else "nothing"
            raise DatasetError(
                f"{name} is not a COCO file: it needs a list '{key}', found {found} "
                f"(its keys: {', '.join(map(str, list(data)[:8])) or 'none'})"
            )
    coco = CocoFile(name, report=AnnotationReport(name))
    _read_images(coco, data["images"])
    _read_categories(coco, data["categories"])
    _read_annotations(coco, data.get("annotations") or [])
    return coco


def _read_json(name: str) -> Any:
    try:
        return json.loads(Path(name).read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"annotation file not found: {name}") from None
    except OSError as error:
        raise DatasetError(f"cannot read {name}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is not valid JSON: {error}") from None


def _read_images(coco: CocoFile, entries: list[Any]) -> None:
    for index, entry in enumerate(entries):
        image = _parse_image(entry)
        if isinstance(image, str):
            coco.report.add("invalid_image", f"images[{index}]: {image}")
            continue
        if image.image_id in coco.images:
            previous = coco.images[image.image_id].file_name
            coco.report.add(
                "duplicate_image_id", f"id {image.image_id}: {previous} and {image.file_name}"
            )
        coco.images[image.image_id] = image


def _parse_image(entry: Any) -> CocoImage | str:
    """Return the image or what is wrong with the entry."""
    if not isinstance(entry, Mapping):
        return f"a {_type_name(entry)}, not an object"
    image_id, file_name = entry.get("id"), entry.get("file_name")
    if not _is_id(image_id):
        return f"id {image_id!r:.40}"
    if not isinstance(file_name, str) or not file_name:
        return f"id {image_id}: file_name {file_name!r:.40}"
    width, height = _as_int(entry.get("width")), _as_int(entry.get("height"))
    if not (width and height and 1 <= width <= MAX_EDGE and 1 <= height <= MAX_EDGE):
        return f"id {image_id}: size {entry.get('width')!r:.20} x {entry.get('height')!r:.20}"
    return CocoImage(image_id, file_name, width, height)


def _read_categories(coco: CocoFile, entries: list[Any]) -> None:
    for index, entry in enumerate(entries):
        category_id = entry.get("id") if isinstance(entry, Mapping) else None
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not _is_id(category_id) or not isinstance(name, str) or not name:
            coco.report.add("invalid_category", f"categories[{index}]: {entry!r:.60}")
            continue
        if category_id in coco.categories:
            coco.report.add(
                "duplicate_category",
                f"id {category_id}: '{coco.categories[category_id]}' and '{name}', the last counts",
            )
        elif name in coco.categories.values():
            coco.report.add("duplicate_category", f"name '{name}': its ids become one class")
        coco.categories[category_id] = name


def _read_annotations(coco: CocoFile, entries: list[Any]) -> None:
    seen: set[int | str] = set()
    for index, entry in enumerate(entries):
        problem, annotation = _parse_annotation(entry)
        if annotation is None:
            coco.report.add(problem[0], f"annotations[{index}]: {problem[1]}")
            continue
        name = f"annotation {annotation.annotation_id}"
        if annotation.image_id not in coco.images:
            coco.report.add("unknown_image", f"{name}: image {annotation.image_id}")
            continue
        if annotation.category_id not in coco.categories:
            coco.report.add("unknown_category", f"{name}: category {annotation.category_id}")
            continue
        siblings = coco.annotations.setdefault(annotation.image_id, [])
        if annotation.annotation_id in seen:
            if annotation in siblings:
                coco.report.add("repeated_annotation", f"{name} of image {annotation.image_id}")
                continue
            coco.report.add("duplicate_annotation_id", f"{name} of image {annotation.image_id}")
        elif annotation.annotation_id is not None:
            seen.add(annotation.annotation_id)
        siblings.append(annotation)


def _parse_annotation(entry: Any) -> tuple[tuple[str, str], CocoAnnotation | None]:
    """Return the annotation, or the kind of problem and what is wrong."""
    if not isinstance(entry, Mapping):
        return ("invalid_annotation", f"a {_type_name(entry)}, not an object"), None
    annotation_id = entry.get("id")
    name = f"id {annotation_id!r:.40}"
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not (annotation_id is None or _is_id(annotation_id)):
        return ("invalid_annotation", name), None
    if not _is_id(image_id):
        return ("invalid_annotation", f"{name}: image_id {image_id!r:.40}"), None
    if not _is_id(category_id):
        return ("invalid_annotation", f"{name}: category_id {category_id!r:.40}"), None
    box = _parse_box(entry.get("bbox"))
    if box is None:
        return ("invalid_box", f"{name} of image {image_id}: {entry.get('bbox')!r:.60}"), None
    area = entry.get("area", box[2] * box[3])
    if not _is_number(area):
        return ("invalid_annotation", f"{name} of image {image_id}: area {area!r:.40}"), None
    segmentation = entry.get("segmentation") or None
    if not isinstance(segmentation, list | Mapping | None):
        problem = f"{name} of image {image_id}: segmentation {segmentation!r:.40}"
        return ("invalid_annotation", problem), None
    return ("", ""), CocoAnnotation(
        annotation_id,
        image_id,
        category_id,
        box,
        float(area),
        bool(entry.get("iscrowd", False)),
        bool(entry.get("ignore", False)),
        segmentation,
    )


def _parse_box(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return None
    x, y, width, height = (float(number) for number in value)
    return x, y, width, height


def _is_id(value: Any) -> TypeGuard[int | str]:
    return type(value) is int or type(value) is str


def _is_number(value: Any) -> bool:
    """Return whether this is a number that could be a coordinate or an area (so not NaN)."""
    # By exact type: JSON gives no other, bool is none of them, and this runs millions of times.
    return (type(value) is float or type(value) is int) and -1e15 < value < 1e15


def _as_int(value: Any) -> int | None:
    return int(value) if _is_number(value) and value == int(value) else None


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", type(None): "null", bool: "boolean"}
    return names.get(type(value), "number")
