"""Images in and out: files, folders, arrays and PIL images, as BGR uint8 HWC.

Decoding is what MMDetection's ``LoadImageFromFile`` does by default (OpenCV, ``IMREAD_COLOR``): the
EXIF orientation is applied, grey becomes three equal channels, an alpha channel is dropped, and of
16-bit samples the high byte is kept.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from deploykit.atomic_file import write_atomic
from deploykit.errors import MediaError

BgrImage = npt.NDArray[np.uint8]
PathLike = str | os.PathLike[str]

_SUFFIXES = "avif bmp dib jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
# Modes whose samples are wider than 8 bits; PIL would clip them on conversion instead of scaling.
_WIDE_PIL_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: PathLike) -> BgrImage:
    """Read an image file.

    Args:
        path: A file in a format that OpenCV reads (JPEG, PNG, BMP, WebP, TIFF, ...); of a file
            with several pages the first.

    Returns:
        uint8 [H, W, 3], BGR, C-contiguous, owned by the caller.

    Raises:
        MediaError: The file is missing, empty, damaged or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MediaError(f"image file not found: {path}") from None
    except IsADirectoryError:
        raise MediaError(f"expected an image file, got a directory: {path}") from None
    except (OSError, ValueError) as error:  # a ValueError is a zero byte in the name
        raise MediaError(f"cannot read {str(path)!r}: {error}") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str = "the image") -> BgrImage:
    """Decode the bytes of an image file.

    Args:
        data: The content of the file.
        name: What to call the image in messages.

    Returns:
        uint8 [H, W, 3], BGR.

    Raises:
        MediaError: The bytes are empty, damaged or not an image.
    """
    if not data:
        raise MediaError(f"{name} is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise MediaError(f"{name} cannot be decoded: {error.err or error}") from None
    if image is None or image.size == 0:
        raise MediaError(
            f"{name} cannot be decoded: it is damaged, truncated or not an image "
            f"({len(data)} bytes)"
        )
    return np.asarray(image, dtype=np.uint8)


def as_bgr(image: Any, name: str = "the image") -> BgrImage:
    """Return an array or PIL image as BGR uint8 HWC.

    Arrays hold uint8 in OpenCV's channel order: grey [H, W] or [H, W, 1] becomes three equal
    channels, and of BGRA [H, W, 4] the alpha channel is dropped, as when such a file is read. A
    [H, W, 3] array is returned as it is, without a copy. Other sample types are refused, since only
    the caller knows how to scale them. PIL images are converted to RGB first; their EXIF
    orientation is not applied: the detections are in the frame of ``image.size``.

    Args:
        image: ``numpy.ndarray`` or ``PIL.Image.Image``.
        name: What to call the image in messages.

    Returns:
        uint8 [H, W, 3], BGR; shares memory with a three-channel array.

    Raises:
        MediaError: The type, sample type, shape or size is not supported.
    """
    if type(image).__module__.partition(".")[0] == "PIL" or hasattr(image, "getbands"):
        return _pil_to_bgr(image, name)
    if not isinstance(image, np.ndarray):
        raise MediaError(
            f"{name}: expected a numpy array or a PIL image, got {type(image).__name__}"
        )
    if image.dtype != np.uint8:
        raise MediaError(
            f"{name} has sample type {image.dtype}; expected uint8 in 0..255. Scale it first, e.g. "
            f"cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)"
        )
    channels = 1 if image.ndim == 2 else image.shape[-1] if image.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise MediaError(
            f"{name} has shape {image.shape}; expected [height, width, 3] BGR, [height, width] or "
            f"[height, width, 1] grey, or [height, width, 4] BGRA"
        )
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise MediaError(f"{name} has no pixels: its shape is {image.shape}")
    if channels == 3:
        return image
    code = cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), code), dtype=np.uint8)


def _pil_to_bgr(image: Any, name: str) -> BgrImage:
    if image.mode in _WIDE_PIL_MODES:
        raise MediaError(
            f"{name} has PIL mode '{image.mode}' with more than 8 bits a sample; "
            f"scale it to 8 bits first"
        )
    if 0 in image.size:
        raise MediaError(f"{name} has no pixels: its size is {image.size}")
    try:
        rgb = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:  # PIL decodes lazily and raises these
        raise MediaError(f"{name} cannot be decoded by PIL: {error}") from None
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)


def list_images(folder: PathLike, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder.

    Args:
        folder: The folder.
        recursive: Whether to look into its subfolders as well.

    Returns:
        Paths of the files whose suffix is one of ``IMAGE_SUFFIXES`` in any case, in natural order
        (``frame2.png`` before ``frame10.png``). Hidden files are left out.

    Raises:
        MediaError: The folder is missing, not a folder, or holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise MediaError(f"folder not found: {root}")
    if not root.is_dir():
        raise MediaError(f"expected a folder, got a file: {root}")
    try:
        found = [
            path
            for path in (root.rglob("*") if recursive else root.iterdir())
            if is_image_path(path) and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise MediaError(f"cannot list {root}: {error.strerror or error}") from None
    if not found:
        raise MediaError(
            f"no images in {root}; expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return sorted(found, key=natural_key)


def is_image_path(path: PathLike) -> bool:
    """Return whether the suffix of ``path`` is that of an image format."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def natural_key(path: PathLike) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Return a sort key that compares runs of digits by their value."""
    text = str(path)
    # Each part carries its kind, so that a number is never compared with text.
    parts = tuple(
        (0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", text)
    )
    return parts, text


def write_image(path: PathLike, image: BgrImage) -> None:
    """Write an image so that the file appears whole or not at all.

    Args:
        path: The file; its suffix names the format. Its folder is created when missing.
        image: uint8 [H, W, 3] BGR, [H, W] grey or [H, W, 4] BGRA.

    Raises:
        MediaError: OpenCV cannot write this format, or the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg", ".jpe") else []
    try:
        written, data = cv2.imencode(suffix, image, options)
    except cv2.error as error:
        raise MediaError(f"cannot write {path} as '{suffix}': {error.err or error}") from None
    if not written:
        raise MediaError(f"cannot write {path}: OpenCV failed to encode it as '{suffix}'")
    try:
        write_atomic(path, data.tobytes())
    except OSError as error:
        raise MediaError(f"cannot write {path}: {error.strerror or error}") from None
