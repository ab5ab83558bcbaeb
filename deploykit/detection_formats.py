"""Detections as JSON-ready dicts, COCO results and ``supervision`` objects; names of classes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.mask_rle import decode_mask, encode_mask
from deploykit.optional_imports import import_optional

if TYPE_CHECKING:
    from deploykit.detections import Detections


def to_dict(found: Detections) -> dict[str, Any]:
    """Return what ``Detections.to_dict`` describes."""
    items = []
    for box, score, label, name, mask in found:
        item: dict[str, Any] = {
            "box": [_shortest(value) for value in box],
            "score": _shortest(np.float32(score)),
            "label": label,
            "name": name,
        }
        if mask is not None:
            item["mask"] = encode_mask(mask)
        items.append(item)
    data: dict[str, Any] = {
        "image_size": list(found.image_size),
        "class_names": list(found.class_names),
        "detections": items,
    }
    if found.masks is not None:
        data["has_masks"] = True
    if found.palette:
        data["palette"] = [list(color) for color in found.palette]
    return data


def arguments_from_dict(data: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Detections`` for what ``to_dict`` gave.

    Raises:
        UsageError: Keys are missing or hold something else.
    """
    try:
        items = data["detections"]
        height, width = (int(side) for side in data["image_size"])
        masks = None
        if data.get("has_masks"):
            masks = np.zeros((len(items), height, width), bool)
            for mask, item in zip(masks, items, strict=True):
                mask[:] = decode_mask(item["mask"])
        return {
            "boxes": np.array([item["box"] for item in items], np.float32).reshape(len(items), 4),
            "scores": np.array([item["score"] for item in items], np.float32),
            "labels": np.array([item["label"] for item in items], np.int64),
            "masks": masks,
            "class_names": tuple(str(name) for name in data["class_names"]),
            "image_size": (height, width),
            "palette": tuple((int(r), int(g), int(b)) for r, g, b in data.get("palette", ())),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"this is not what Detections.to_dict wrote: {error!r}") from None


def to_coco(
    found: Detections, image_id: int | str, category_ids: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Return what ``Detections.to_coco`` describes.

    Raises:
        UsageError: A label has no category id.
    """
    if category_ids is not None and len(found) and int(found.labels.max()) >= len(category_ids):
        raise UsageError(
            f"label {found.labels.max()} has no category id: {len(category_ids)} ids were given"
        )
    results = []
    for box, score, label, _, mask in found:
        x1, y1, x2, y2 = (float(value) for value in box)
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": label + 1 if category_ids is None else int(category_ids[label]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if mask is not None:
            result["segmentation"] = encode_mask(mask)
        results.append(result)
    return results


def to_supervision(found: Detections) -> Any:
    """Return what ``Detections.to_supervision`` describes.

    Raises:
        MissingDependencyError: The optional package ``supervision`` is not installed.
    """
    supervision = import_optional("supervision", "supervision", "Detections.to_supervision")
    return supervision.Detections(
        xyxy=found.boxes.copy(),
        mask=None if found.masks is None else found.masks.copy(),
        confidence=found.scores.copy(),
        class_id=found.labels.astype(int),
        data={"class_name": np.array([found.name_of(int(label)) for label in found.labels], str)},
    )


def class_index(item: str | int, class_names: Sequence[str]) -> int:
    """Return the label of a class given by name or label.

    Raises:
        UsageError: The class is unknown; the message lists close names.
    """
    if isinstance(item, int | np.integer):
        if item < 0 or (class_names and item >= len(class_names)):
            raise UsageError(
                f"label {item} is not one of the {len(class_names)} classes (0.."
                f"{len(class_names) - 1})"
            )
        return int(item)
    if item in class_names:
        return list(class_names).index(item)
    close = difflib.get_close_matches(item, class_names, n=3, cutoff=0.5)
    known = ", ".join(close) if close else ", ".join(class_names[:20])
    hint = f"Did you mean {known}?" if close else f"Known: {known or 'no names at all'}"
    raise UsageError(f"unknown class '{item}'. {hint}")


def _shortest(value: np.float32) -> float:
    """Return the double with the fewest digits that rounds to this float32."""
    return float(str(value))
