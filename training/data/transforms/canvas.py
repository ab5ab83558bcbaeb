"""Images of one colour, to paste others onto."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def blank_canvas(
    height: int, width: int, colour: Sequence[float], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return an image of one colour.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        colour: One value per channel; truncated to ``dtype``.
        dtype: Type of the samples.

    Returns:
        ``dtype`` [height, width, 3].
    """
    # Row by row: numpy repeats a row much faster than a pixel.
    row = np.empty((width, 3), dtype)
    row[:] = colour
    canvas = np.empty((height, width, 3), dtype)
    canvas[:] = row
    return canvas
