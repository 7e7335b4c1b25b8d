"""Which names and addresses are this machine, and no other."""

from __future__ import annotations

import functools
import ipaddress
import re
from urllib.parse import urlsplit

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z_.-]*)(:\d{0,5})?", re.IGNORECASE | re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether what listens at the host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def leads_here(address: str) -> bool:
    """Whether the plain http address is answered by this machine, whatever it looks like to a hasty reader.

    `http://127.0.0.1@evil.example` and `http://localhost.evil.example` are not.
    """
    if not address.isprintable() or set(address) & set(" \\"):  # which readers of addresses take differently
        return False
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme == "http" and "@" not in parts.netloc and is_loopback(host)


@functools.lru_cache(maxsize=256)
def names_this_machine(host: bytes) -> bool:
    """Whether a request's Host can be what somebody calls a server that listens on loopback.

    A page from elsewhere whose name is pointed at 127.0.0.1 brings that name along, which browsers let it do (DNS
    rebinding). Nobody can point an address, `localhost` or a name without a dot here like that; programs may send none.
    """
    found = HOST.fullmatch(host.strip().decode("latin-1"))
    if found is None:
        return False
    name = found[1].strip("[]").removesuffix(".").lower()
    if "." not in name and ":" not in name:
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name.endswith(".localhost")
