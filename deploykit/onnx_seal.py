"""A checksum inside an ONNX file, so that flipped bits are noticed.

ONNX has no checksum of its own: a file with damaged weights loads and detects nonsense. The digest
stands in ``metadata_props["deploykit.sha256"]`` and is that of the whole file with sixty-four
zeros in its own place.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from deploykit.atomic_file import atomic_path
from deploykit.errors import SpecError

SEAL_KEY = "deploykit.sha256"
BLANK_SEAL = "0" * 64

# How protobuf writes the end of such an entry: the key, the tag of field 2, the value's length.
_MARKER = SEAL_KEY.encode() + b"\x12\x40"


def seal(data: bytes) -> bytes:
    """Fill in the digest of a serialised model whose metadata has the blank one.

    Args:
        data: A serialised ``ModelProto`` with ``SEAL_KEY: BLANK_SEAL`` in its metadata.

    Raises:
        ValueError: There is no such entry.
    """
    start = _position(data)
    if start is None:
        raise ValueError(f"the model's metadata has no entry '{SEAL_KEY}' of 64 characters")
    return data[:start] + _digest(data, start) + data[start + len(BLANK_SEAL) :]


def is_damaged(path: str | os.PathLike[str]) -> bool:
    """Return whether a file carries a digest that is not its own; files without one are not."""
    data = Path(path).read_bytes()
    start = _position(data)
    return start is not None and data[start : start + len(BLANK_SEAL)] != _digest(data, start)


def reseal(path: str | os.PathLike[str]) -> None:
    """Give a sealed file that was edited on purpose the digest of what it holds now.

    A tool that rewrites an ONNX file (a graph optimiser, a quantiser, a script) keeps the metadata
    and with it the old digest, which no longer fits. The parity record in the metadata is still
    that of the original: measure again with ``deploykit parity``.

    Args:
        path: The ``.onnx`` file; it is replaced at once or not at all.

    Raises:
        OSError: The file cannot be read or written.
        SpecError: The file carries no digest, so that it needs none.
    """
    data = Path(path).read_bytes()
    start = _position(data)
    if start is None:
        raise SpecError(f"{path} carries no checksum ('{SEAL_KEY}' in its metadata); nothing to do")
    data = data[:start] + BLANK_SEAL.encode() + data[start + len(BLANK_SEAL) :]
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(seal(data))


def _position(data: bytes) -> int | None:
    found = data.rfind(_MARKER)
    return None if found < 0 else found + len(_MARKER)


def _digest(data: bytes, start: int) -> bytes:
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(BLANK_SEAL.encode())
    digest.update(view[start + len(BLANK_SEAL) :])
    return digest.hexdigest().encode()
