"""Sizes of network inputs as a user types them."""

from __future__ import annotations

import re

from deploykit.errors import UsageError

_SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)", re.IGNORECASE)


def parse_input_size(text: str) -> tuple[int, int]:
    """Return the (height, width) in pixels of a text such as ``"480x640"``.

    Raises:
        UsageError: The text is something else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"expected HEIGHTxWIDTH in pixels, such as 640x640, got '{text}'")
    return int(match[1]), int(match[2])
