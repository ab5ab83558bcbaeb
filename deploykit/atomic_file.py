"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploykit.errors import UsageError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends well.

    The temporary file keeps the suffix of ``path``. It is synced and renamed on success and removed
    on failure, so a killed process leaves either the old file or the new one under the final name.

    Args:
        path: The final path. Its folder is created when missing.

    Yields:
        The path to write to.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{final.stem}.", suffix=f".partial{final.suffix}", dir=final.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _sync(temporary)
        os.replace(temporary, final)
        _sync(final.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or all of the new.

    Args:
        path: The file to write.
        data: Bytes, or text which is encoded as UTF-8.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out now, not after an hour of work, that ``path`` cannot be written.

    Nothing is left behind. Where the folder is missing, the nearest one above it has to take it.

    Raises:
        UsageError: ``path`` is a folder, or a file cannot be created there.
    """
    final = Path(path)
    if final.is_dir():
        raise UsageError(f"{final} is a folder; name a file to write")
    parents = final.absolute().parents
    nearest = next(parent for parent in parents if os.path.lexists(parent))
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{final.stem}.", dir=nearest):
            pass
    except OSError as error:
        raise UsageError(
            f"{final} cannot be written: {error.strerror}; choose another place"
        ) from error


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
