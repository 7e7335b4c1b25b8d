"""Which names and addresses are this machine alone."""

from __future__ import annotations

import functools
import ipaddress
import re
from urllib.parse import urlsplit

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z_.-]*)(:\d{0,5})?", re.IGNORECASE | re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether a server that listens at the host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def leads_here(address: str) -> bool:
    """Whether this machine answers at the plain http address.

    It does not at `http://127.0.0.1@evil.example` and `http://localhost.evil.example`.
    """
    if not address.isprintable() or set(address) & set(" \\"):  # which libraries read in different ways
        return False
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme == "http" and "@" not in parts.netloc and is_loopback(host)


@functools.lru_cache(maxsize=256)
def names_this_machine(host: bytes) -> bool:
    """Whether a request's Host can be the name of a server that listens on loopback.

    With DNS rebinding, a foreign page's name leads to 127.0.0.1, and the browser sends that name as Host. This is not
    possible with an address, `localhost` or a name without a dot; programs may send no Host.
    """
    match = HOST.fullmatch(host.strip().decode("latin-1"))
    if match is None:
        return False
    name = match[1].strip("[]").removesuffix(".").lower()
    if "." not in name and ":" not in name:
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name.endswith(".localhost")
