"""Images to measure the parity of a conversion on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.errors import DatasetError
from deploykit.image_selection import select_images
from deploykit.training.input_spec import dataset_config

MAX_IMAGES = 16
# (height, width) of the drawn images: landscape, portrait, square, small, elongated, large.
_DRAWN_SIZES = ((480, 640), (640, 427), (512, 512), (96, 128), (240, 720), (600, 800))

Image = npt.NDArray[np.uint8] | Path


def choose_images(
    sources: Sequence[str | Path], config: Mapping[str, Any], limit: int = MAX_IMAGES
) -> tuple[list[Image], str]:
    """Choose the images for a parity check.

    Args:
        sources: Files, folders and patterns that the user named; may be empty.
        config: The model's config, whose validation images are the second choice.
        limit: At most so many are taken, evenly spread.

    Returns:
        The images, and in words where they come from. Without any others they are drawn.

    Raises:
        MediaError: A named file or folder is missing, or there is no image in it.
        DatasetError: The annotation file of the validation set is damaged.
    """
    for paths, what in (
        (select_images(sources), "given"),
        (
            dataset_images(config, ("val_dataloader", "test_dataloader")),
            "of the validation set",
        ),
    ):
        if paths:
            taken = "" if len(paths) <= limit else f"{limit} of "
            images: list[Image] = list(select_images(paths, limit))
            return images, f"{taken}{len(paths)} image{'s' * (len(paths) > 1)} {what}"
    drawn: list[Image] = [draw_scene(seed, size) for seed, size in enumerate(_DRAWN_SIZES)]
    return drawn, f"{len(drawn)} drawn images"


def dataset_images(config: Mapping[str, Any], loaders: Sequence[str]) -> list[Path]:
    """Return the images of a config's data set that exist on disk, sorted by name.

    Args:
        config: The config; relative paths in it count from the working folder.
        loaders: Data loaders by preference: the first with an annotation file decides.

    Raises:
        DatasetError: The annotation file is there, but it is not COCO json.
    """
    for loader in loaders:
        dataset = dataset_config(config, loader)
        root = Path(dataset.get("data_root") or "")
        annotations = root / (dataset.get("ann_file") or "")
        if annotations.is_file() and annotations.suffix == ".json":
            folder = root / ((dataset.get("data_prefix") or {}).get("img") or "")
            found = sorted(folder / name for name in _annotated_files(annotations))
            return [path for path in found if path.is_file()]
    return []


def _annotated_files(annotations: Path) -> list[str]:
    try:
        entries = json.loads(annotations.read_text())["images"]
        return [str(entry["file_name"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{annotations}: not a COCO annotation file ({type(error).__name__}: {error}); "
            "mend it, or name images for the parity check with --parity-images"
        ) from None


def draw_scene(seed: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Draw an image with objects of many sizes, edges, gradients and texture.

    Args:
        seed: The same seed gives the same image everywhere.
        size: (height, width) in pixels.

    Returns:
        uint8 [height, width, 3], BGR.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.integers(40, 216, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(24):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = max(2, int(min(height, width) * rng.uniform(0.01, 0.25)))
        axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        if rng.random() < 0.5:
            cv2.ellipse(image, centre, axes, float(rng.integers(180)), 0, 360, colour, -1)
        else:
            corner = (centre[0] + axes[0], centre[1] + axes[1])
            cv2.rectangle(image, centre, corner, colour, -1 if rng.random() < 0.7 else 2)
    noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255)
    return np.asarray(noisy, np.uint8)
