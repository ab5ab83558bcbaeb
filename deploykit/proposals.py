"""Region proposals of many images, and the files that carry them.

- ``.pkl``, ``.pickle``: as MMDetection's ``DumpProposals`` writes, a dict from ``folder/name`` of
  the image to ``bboxes`` [N, 4] and ``scores`` [N];
- ``.npz``: one array [N, 5] (box and score) for each ``folder/name``;
- ``.json``: COCO results (``image_id``, ``bbox`` as x, y, width, height, ``score``), or a COCO data
  set with a ``score`` in each annotation.

Boxes are xyxy in pixels of the original image (but for COCO's). Reading executes nothing.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import atomic_path
from deploykit.errors import DatasetError
from deploykit.proposal_pickle import read_pickle
from deploykit.spec import InputSpec

Boxes = npt.NDArray[np.float32]
WRITABLE = (".pkl", ".pickle", ".npz")


class ProposalTable:
    """Proposals by image.

    Args:
        by_name: float32 [N, 5] (x1, y1, x2, y2, score), best first, by ``folder/name`` or ``name``
            of the image file.
        by_id: The same by the image's id in a COCO file.
        source: Where they come from, for messages.
    """

    def __init__(
        self, by_name: Mapping[str, Boxes], by_id: Mapping[int | str, Boxes], source: str
    ) -> None:
        self.by_name, self.by_id, self.source = by_name, by_id, source

    def __len__(self) -> int:
        return len(self.by_name) or len(self.by_id)

    def find(self, path: str | os.PathLike[str], image_id: int | str | None = None) -> Boxes:
        """Return the proposals of an image, float32 [N, 5], best first.

        Args:
            path: The image file; its name and its folder's name decide, as in MMDetection.
            image_id: Its id in the annotation file, for COCO results.

        Raises:
            DatasetError: The file has none for this image.
        """
        key = image_key(path)
        for name in (key, PurePath(path).name):
            if name in self.by_name:
                return self.by_name[name]
        if image_id is not None and image_id in self.by_id:
            return self.by_id[image_id]
        known = next(iter(self.by_name or self.by_id), None)
        raise DatasetError(
            f"{self.source} has no proposals for '{key}'"
            + ("" if image_id is None else f" (image {image_id})")
            + f"; it has those of {len(self)} images"
            + (f", the first is {known!r}" if known is not None else "")
        )


def image_key(path: str | os.PathLike[str]) -> str:
    """Return ``folder/name`` of an image file, the key of MMDetection's proposal files."""
    return "/".join(PurePath(path).parts[-2:])


def read_proposals(path: str | os.PathLike[str]) -> ProposalTable:
    """Read a proposal file; its suffix tells the format.

    Raises:
        DatasetError: It is missing, damaged, of an unknown format, or holds something else.
    """
    file = Path(path)
    readers: dict[str, Callable[[Path], ProposalTable]] = {
        ".pkl": _read_pickle,
        ".pickle": _read_pickle,
        ".npz": _read_npz,
        ".json": _read_json,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DatasetError(f"{file}: expected a proposal file in {', '.join(readers)}")
    if not file.is_file():
        raise DatasetError(
            f"{file}: the proposal file does not exist; write one with the metric DumpProposals "
            f"(see docs/data.md)"
        )
    try:
        return reader(file)
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(f"{file}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise DatasetError(
            f"{file}: not a proposal file, or damaged ({type(error).__name__}: {error!s:.150})"
        ) from error


def write_proposals(path: str | os.PathLike[str], proposals: Mapping[str, Boxes]) -> None:
    """Write a proposal file, whole or not at all.

    Args:
        path: ``.pkl`` (MMDetection reads it too) or ``.npz``.
        proposals: float32 [N, 5] by ``folder/name`` of the image.

    Raises:
        DatasetError: Another suffix, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in WRITABLE:
        raise DatasetError(f"proposals are written as {', '.join(WRITABLE)}, not as '{file.name}'")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            if file.suffix.lower() == ".npz":
                np.savez(stream, **{name: as_table(rows) for name, rows in proposals.items()})  # type: ignore[arg-type]
            else:
                entries = {
                    name: {"bboxes": rows[:, :4].copy(), "scores": rows[:, 4].copy()}
                    for name, rows in proposals.items()
                }
                pickle.dump(entries, stream, protocol=4)
    except OSError as error:
        raise DatasetError(f"cannot write {file}: {error.strerror or error}") from None


def as_table(boxes: Any, scores: Any = None) -> Boxes:
    """Return proposals as float32 [N, 5], best first (stable); without scores these are 0.

    Args:
        boxes: [N, 4], or [N, 5] with scores.
        scores: [N].

    Raises:
        ValueError: Shapes do not fit, or a value is not finite.
    """
    rows = np.asarray(boxes, np.float32)
    rows = rows.reshape(0, 5) if rows.size == 0 else rows
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise ValueError(f"boxes must be [N, 4] or [N, 5], got {list(rows.shape)}")
    if scores is None:
        scores = rows[:, 4] if rows.shape[1] == 5 else np.zeros(len(rows))
    scores = np.asarray(scores, np.float32)
    if scores.shape != (len(rows),):
        raise ValueError(f"{len(rows)} boxes with scores of shape {list(scores.shape)}")
    table = np.concatenate([rows[:, :4], scores[:, None]], axis=1)
    if not np.isfinite(table).all():
        raise ValueError("boxes or scores that are not finite")
    return table[np.argsort(-table[:, 4], kind="stable")]


def grid_proposals(image_size: tuple[int, int], count: int) -> Boxes:
    """Return regular boxes of many sizes and shapes, for measurements without real proposals.

    Args:
        image_size: (height, width) in pixels.
        count: Number of boxes.

    Returns:
        float32 [count, 4], xyxy within the image: the image itself, then ever finer grids of boxes
        that overlap by half, each in three aspect ratios.
    """
    height, width = image_size
    boxes: list[tuple[float, float, float, float]] = []
    cells = 1
    while len(boxes) < count:
        for aspect in (1.0, 0.5, 2.0):
            half_w, half_h = width * aspect**0.5 / cells / 2, height * aspect**-0.5 / cells / 2
            for row in range(2 * cells - 1):
                for column in range(2 * cells - 1):
                    x, y = width * (column + 1) / (2 * cells), height * (row + 1) / (2 * cells)
                    boxes.append((x - half_w, y - half_h, x + half_w, y + half_h))
        cells *= 2
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(np.array(boxes[:count], np.float32).reshape(-1, 4), np.float32(0), limits)


def stand_in_proposals(
    spec: InputSpec, images: Sequence[npt.NDArray[np.uint8]]
) -> tuple[list[Boxes], ...]:
    """Return the further argument of ``Detector.prepare`` for images without proposals.

    Args:
        spec: The input of the model.
        images: [H, W, 3] each.

    Returns:
        Nothing for models that take no proposals; else one list with ``grid_proposals`` of every
        image.
    """
    if not spec.proposals:
        return ()
    return ([_cached_grid(image.shape[0], image.shape[1], spec.proposals) for image in images],)


@lru_cache(maxsize=64)
def _cached_grid(height: int, width: int, count: int) -> Boxes:
    return grid_proposals((height, width), count)


def _read_pickle(file: Path) -> ProposalTable:
    content = read_pickle(file)
    if not isinstance(content, dict):
        raise DatasetError(
            f"{file}: expected a dict from image names to proposals, as MMDetection 3.x's "
            f"DumpProposals writes; got a {type(content).__name__}"
        )
    tables = {}
    for name, entry in content.items():
        if not isinstance(entry, dict) or "bboxes" not in entry:
            raise ValueError(f"the entry of {name!r} has no 'bboxes'")
        tables[str(name)] = as_table(entry["bboxes"], entry.get("scores"))
    return ProposalTable(tables, {}, str(file))


def _read_npz(file: Path) -> ProposalTable:
    with np.load(file, allow_pickle=False) as archive:
        return ProposalTable({name: as_table(archive[name]) for name in archive}, {}, str(file))


def _read_json(file: Path) -> ProposalTable:
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return ProposalTable({}, _by_image(content), str(file))
    names = {image["id"]: image_key(image["file_name"]) for image in content["images"]}
    by_id = _by_image(content["annotations"])
    nothing = as_table([])
    return ProposalTable(
        {name: by_id.get(image_id, nothing) for image_id, name in names.items()}, {}, str(file)
    )


def _by_image(results: Iterable[Mapping[str, Any]]) -> dict[int | str, Boxes]:
    rows: dict[int | str, list[tuple[float, ...]]] = defaultdict(list)
    for result in results:
        x, y, width, height = result["bbox"]
        rows[result["image_id"]].append((x, y, x + width, y + height, result["score"]))
    return {image_id: as_table(boxes) for image_id, boxes in rows.items()}
