"""A server of files on this machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from deploykit.zoo import ZooEntry


@dataclass
class FileServer:
    """Serves ``files`` by path, and can misbehave.

    Args:
        address: ``http://127.0.0.1:PORT``.
        files: Content by path.
        cut_after: Bytes of an answer after which the connection is closed.
        ranges: Whether ranges are honoured.
        redirect: Where every request is sent instead.
        requests: What was asked for: (path, ``Range`` header).
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: int | None = None
    ranges: bool = True
    redirect: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def publish(self, name: str, data: bytes, digest: str | None = None) -> ZooEntry:
        """Serve a file under a name with its hash, and return its entry."""
        digest = hashlib.sha256(data).hexdigest()[:8] if digest is None else digest
        path = f"/mmdetection/{name}-{digest}.pth"
        self.files[path] = data
        return ZooEntry(name, f"{name}.py", self.address + path, {"box AP": 40.0}, "COCO")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        data = self.files.get(handler.path)
        if data is None:
            handler.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start >= len(data) and start:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start:][: self.cut_after])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        files.address = f"http://127.0.0.1:{httpd.server_port}"
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield files
        httpd.shutdown()
