"""Sources at https addresses (and http on this machine): one file per address, identified by its ETag."""

from __future__ import annotations

import base64
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import unquote, urlsplit

from runner.errors import RemoteError
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import is_address
from runner.run.sources import RemoteFile

TIMEOUT_S = 60
ONLY_GET = (403, 405, 501)  # answers to HEAD where an address is signed for GET, or the server has no HEAD


class Web:
    """Reads files by HTTP; implements `runner.run.sources.RemoteSource`."""

    def listing(self, address: str) -> list[RemoteFile]:
        with _headers(address) as reply:
            length = reply.headers.get("Content-Length")
            modified = reply.headers.get("Last-Modified")
            # without either, a change cannot be noticed
            version = reply.headers.get("ETag") or (f"{modified} {length}" if modified else "")
        return [RemoteFile(path="", size_bytes=int(length) if length else None, version=version)]

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        del file
        try:
            with _open(address, "GET") as reply:
                shutil.copyfileobj(reply, target, 1 << 20)
        except (OSError, HTTPException) as error:
            raise _failed(address, error) from error


class _Redirected(urllib.request.HTTPRedirectHandler):
    """Follows only to addresses that are allowed as sources: https, or this machine."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not is_address(newurl):
            raise ValueError(f"it leads on to {public(newurl)}, which is neither https nor this machine")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _headers(address: str) -> HTTPResponse:
    try:
        return _open(address, "HEAD")
    except RemoteError as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code in ONLY_GET:
            return _open(address, "GET")
        raise


def _open(address: str, method: str) -> HTTPResponse:
    try:
        parts = urlsplit(address)
        user, at, host = parts.netloc.rpartition("@")
        # identity: a compressed transfer has another length and hash than the file
        headers = {"Accept-Encoding": "identity"}
        request = urllib.request.Request(parts._replace(netloc=host).geturl(), method=method, headers=headers)
        if at:  # not for redirections
            packed = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {packed}")
        # for a proxy, localhost would be itself
        proxies = urllib.request.ProxyHandler({} if address.startswith("http://") else None)
        reply: HTTPResponse = urllib.request.build_opener(_Redirected, proxies).open(request, timeout=TIMEOUT_S)
    except (OSError, ValueError, HTTPException) as error:
        raise _failed(address, error) from error
    return reply


def _failed(address: str, error: Exception) -> RemoteError:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    why = f"{error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)
    remedy = "Check the address and the network, then run again."
    if not is_public(address) and isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        remedy = "What signs it, or the password, may have expired or be wrong: give a new address with -p."
    return RemoteError(f"{public(address)}: {public(why)}. {remedy}")
