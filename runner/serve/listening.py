"""A listening socket at a host and port."""

from __future__ import annotations

import socket

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
