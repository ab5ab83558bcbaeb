"""Files from the internet: resumed when cut off, checked against their hash, kept in the cache."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploykit.atomic_file import sha256_of_file
from deploykit.cache_folder import cache_folder
from deploykit.errors import DownloadError
from deploykit.zoo.index import ZooEntry

_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
_PUBLISHER = "https://download.openmmlab.com"
MIRROR_VARIABLE = "DEPLOYKIT_ZOO_MIRROR"

Progress = Callable[[int, int | None], None]


def zoo_file(entry: ZooEntry, folder: Path | None = None) -> Path:
    """Return where the weights of a model are, or would be, on this machine."""
    return (folder or cache_folder("zoo")) / entry.file_name


def download(
    entry: ZooEntry,
    folder: Path | None = None,
    progress: Progress = lambda done, total: None,
    timeout: float = _TIMEOUT,
) -> Path:
    """Fetch the weights of a published model, unless they are there already.

    What was fetched before the connection broke is kept in a ``.part`` file and not fetched again.
    ``DEPLOYKIT_ZOO_MIRROR`` in the environment takes the place of the publisher's address
    (``https://download.openmmlab.com``).

    Args:
        entry: The model.
        folder: Where to put the file; by default the cache.
        progress: Called with the bytes that are there, and of the whole file if that is known.
        timeout: Seconds without a byte after which a connection counts as broken.

    Returns:
        The file.

    Raises:
        DownloadError: It could not be fetched, or is not what was published.
    """
    target = zoo_file(entry, folder)
    if target.is_file() and _matches(target, entry):
        return target
    part = target.with_name(target.name + ".part")
    url = _address(entry)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, target, progress, timeout)
        if not _matches(part, entry):
            digest = sha256_of_file(part)
            part.unlink()
            raise DownloadError(
                f"{url} is not what was published: its SHA-256 begins with {digest[:8]}, expected "
                f"{entry.hash_prefix}; it was deleted, try again or from another network"
            )
        os.replace(part, target)
    except OSError as error:  # of the disk; those of the network are DownloadErrors by now
        raise DownloadError(f"{target} cannot be written: {error.strerror or error}") from None
    return target


def _matches(file: Path, entry: ZooEntry) -> bool:
    return sha256_of_file(file).startswith(entry.hash_prefix)


def _address(entry: ZooEntry) -> str:
    mirror = os.environ.get(MIRROR_VARIABLE, "").rstrip("/")
    if mirror and entry.url.startswith(f"{_PUBLISHER}/"):
        if not mirror.startswith(("http://", "https://")):
            raise DownloadError(f"{MIRROR_VARIABLE} must be an http(s) address, got '{mirror}'")
        return mirror + entry.url.removeprefix(_PUBLISHER)
    return entry.url


def _fetch(url: str, part: Path, target: Path, progress: Progress, timeout: float) -> None:
    """Complete a partial file."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "deploykit"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the index checks schemes
    try:
        with _opener().open(request, timeout=timeout) as response:
            total = _read(response, part, have, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is left: the file is complete, or another one
            return
        raise DownloadError(
            f"{url}: the server answered {error.code} {error.reason}; is the address still right?"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        reason = getattr(e, "reason", e) or type(e).__name__
        raise DownloadError(
            f"{url} cannot be fetched ({reason}); without a connection, fetch it on another "
            f"machine and put it at {target}"
        ) from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise DownloadError(
            f"{url}: the connection ended after {size:,} of {total:,} bytes; the same command goes "
            "on from there"
        )


def _read(response: Any, part: Path, have: int, progress: Progress) -> int | None:
    """Write a response to a file; return how large the file should be, if the server says so."""
    resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
        f"bytes {have}-"
    )
    done = have if resumed else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length is not None and length.isdecimal() else None
    with part.open("ab" if resumed else "wb") as stream:
        progress(done, total)
        while block := response.read(_BLOCK):
            stream.write(block)
            done += len(block)
            progress(done, total)
    return total


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: no files, no ftp, wherever a server redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
