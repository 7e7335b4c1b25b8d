"""A folder served over HTTP."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Shelf(http.server.ThreadingHTTPServer):
    """Serves the bytes in `files`; counts requests; `cut` bytes are missing from the end of every reply.

    With `only_get` it refuses HEAD, as S3 does for an address that is signed for GET; `user` is who may come in.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.cut = 0
        self.only_get = False
        self.user = ""
        self.leads: dict[str, str] = {}  # where a path leads on to

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Shelf

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        body = self._head()
        self.wfile.write(body[: len(body) - self.server.cut])

    def _head(self) -> bytes:
        self.server.asked[self.command] += 1
        body = self.server.files.get(self.path)
        if self.path in self.server.leads:
            self.send_response(302)
            self.send_header("Location", self.server.leads[self.path])
            self.end_headers()
            return b""
        known = f"Basic {base64.b64encode(self.server.user.encode()).decode()}"
        if self.server.only_get and self.command == "HEAD":
            body, status = None, 403
        elif self.server.user and self.headers["Authorization"] != known:
            body, status = None, 401
        else:
            status = 200 if body is not None else 404
        self.send_response(status)
        if body is not None:
            self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        return body or b""

    def log_message(self, format: str, *args: Any) -> None:
        """A test's server is quiet."""


@contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[Shelf]:
    server = Shelf()
    server.files |= files or {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
