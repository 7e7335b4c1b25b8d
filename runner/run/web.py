"""Sources behind https (and http on this machine): one file per address, identified by its ETag."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import IO

from runner.errors import RemoteError
from runner.run.sources import RemoteFile

TIMEOUT_S = 60


class Web:
    """Reads files by HTTP; implements `runner.run.sources.Remote`."""

    def listing(self, address: str) -> list[RemoteFile]:
        with _open(address, "HEAD") as reply:
            length = reply.headers.get("Content-Length")
            modified = reply.headers.get("Last-Modified")
            # without either, what is there now cannot be told from what was there before
            version = reply.headers.get("ETag") or (f"{modified} {length}" if modified else "")
        return [RemoteFile(path="", size_bytes=int(length) if length else None, version=version)]

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        del file
        try:
            with _open(address, "GET") as reply:
                shutil.copyfileobj(reply, target, 1 << 20)
        except (OSError, HTTPException) as error:
            raise _failed(address, error) from error


def _open(address: str, method: str) -> HTTPResponse:
    # identity: a compressed transfer would have another length and hash than the file
    request = urllib.request.Request(address, method=method, headers={"Accept-Encoding": "identity"})
    try:
        reply: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except (OSError, ValueError, HTTPException) as error:
        raise _failed(address, error) from error
    return reply


def _failed(address: str, error: Exception) -> RemoteError:
    why = f"{error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)
    return RemoteError(f"{address}: {why}. Check the address and the network, then run again.")
