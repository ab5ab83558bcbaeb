"""COCO run-length encoding of bitmaps, in numpy.

The byte-for-byte format of ``pycocotools.mask`` (compressed counts), so that results with masks can
be written and read where only the runtime is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.errors import UsageError


def encode_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return a bitmap as COCO's compressed RLE.

    Args:
        mask: bool [H, W].

    Returns:
        ``{"size": [H, W], "counts": str}``; what ``pycocotools.mask.encode`` gives, with the counts
        as text so that they fit into JSON.
    """
    height, width = mask.shape
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))) if flat.size else np.zeros(0, int)
    counts = [int(run) for run in runs]
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [height, width], "counts": _compress(counts)}


def decode_mask(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Return the bitmap bool [H, W] of a COCO RLE with compressed (text) or plain (list) counts.

    Raises:
        UsageError: The counts are malformed or do not add up to the size.
    """
    try:
        height, width = (int(value) for value in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        runs = _decompress(counts) if isinstance(counts, str) else [int(run) for run in counts]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(f"a mask's RLE cannot be read: {error!r}") from None
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UsageError(
            f"a mask's RLE covers {sum(runs)} pixels, but its size is {height}x{width} = "
            f"{height * width}"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _compress(counts: list[int]) -> str:
    """Write counts as groups of five bits with a continuation bit, offset by 48.

    From the fourth count on, the difference to the count two places earlier is stored.
    """
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            group = value & 0x1F
            value >>= 5
            done = value == (-1 if group & 0x10 else 0)
            text.append((group if done else group | 0x20) + 48)
            if done:
                break
    return text.decode("ascii")


def _decompress(text: str) -> list[int]:
    codes = text.encode("ascii")
    counts: list[int] = []
    position = 0
    while position < len(codes):
        value = shift = 0
        while True:
            group = codes[position] - 48
            position += 1
            value |= (group & 0x1F) << shift
            shift += 5
            if not group & 0x20:
                break
        if group & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
