"""The user's own COCO annotations, split into a training and a held-out part."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from deploykit.atomic_file import write_atomic
from deploykit.errors import DatasetError

HELD_OUT_SHARE = 0.2
SEED = 0


def read_coco(path: Path) -> dict[str, Any]:
    """Read a COCO annotation file.

    Raises:
        DatasetError: It is missing, not JSON, or lacks images, annotations or categories.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DatasetError(f"{path} is not a JSON file: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(
                f"{path} is not a COCO annotation file: it has no list '{key}'. Expected a JSON "
                "object with the lists images, annotations and categories."
            )
        if not content[key]:
            raise DatasetError(f"{path} has an empty list '{key}'; there is nothing to learn from")
        if any(not isinstance(row, dict) or "id" not in row for row in content[key]):
            raise DatasetError(f"{path}: every entry of '{key}' must be an object with an 'id'")
    return content


def split_coco(annotations: Path, images: Path, out: Path) -> tuple[list[str], dict[str, Any]]:
    """Split an annotation file by images, at random with a fixed seed.

    Args:
        annotations: COCO json.
        images: Folder that its ``file_name`` entries are relative to.
        out: Folder; ``annotations/train.json`` and ``annotations/val.json`` are written to it.

    Returns:
        The class names, and counts of images and objects per split.

    Raises:
        DatasetError: The file or the folder cannot be used, or no image of it exists.
    """
    if not images.is_dir():
        raise DatasetError(f"--images {images} is not a folder")
    content = read_coco(annotations)
    missing = [
        str(row.get("file_name", "(no file_name)"))
        for row in content["images"]
        if not (images / str(row.get("file_name", ""))).is_file()
    ]
    present = len(content["images"]) - len(missing)
    if present < 2:
        raise DatasetError(
            f"{present} of the {len(content['images'])} images of {annotations} exist in {images} "
            f"(missing e.g. {', '.join(missing[:3])}); at least 2 are needed"
        )
    lost = set(missing)
    usable = [row for row in content["images"] if row.get("file_name") not in lost]
    random.Random(SEED).shuffle(usable)  # noqa: S311 - not cryptography
    held_out = max(1, round(HELD_OUT_SHARE * len(usable)))
    counts: dict[str, Any] = {"missing": missing}
    for name, rows in (("val", usable[:held_out]), ("train", usable[held_out:])):
        ids = {row["id"] for row in rows}
        objects = [row for row in content["annotations"] if row.get("image_id") in ids]
        part = {**content, "images": rows, "annotations": objects}
        write_atomic(out / "annotations" / f"{name}.json", json.dumps(part))
        counts[name] = {"images": len(rows), "objects": len(objects)}
    if not counts["train"]["objects"]:
        raise DatasetError(f"the images of {annotations} that exist in {images} have no objects")
    return [str(row.get("name", row["id"])) for row in content["categories"]], counts


def relative_prefix(images: Path, root: Path) -> str:
    """Return ``images`` relative to ``root``, as ``data_prefix`` wants it, with a final slash."""
    return os.path.join(os.path.relpath(images.resolve(), root.resolve()), "")
