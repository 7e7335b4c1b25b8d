"""A listening socket: at a host and port, or as a file that one account reaches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from runner.errors import UsageError


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UsageError for an address that is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be served: {error.strerror}.") from error
    listening.setblocking(False)
    return listening


def bind_file(path: Path) -> socket.socket:
    """A listening socket that only this account may connect to. Raises UsageError where it cannot be made.

    The file of a socket nobody listens at any more is replaced.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UsageError(f"{path} cannot be served: {error.strerror or error}.") from error
    listening.setblocking(False)
    return listening
