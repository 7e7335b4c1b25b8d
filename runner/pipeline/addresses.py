"""Addresses as they are written down: without what in them lets one in.

Every command looks at sources, so what most of them do not need is made when it is.
"""

from __future__ import annotations

import re

WITHHELD = "***"
_USER = r"(?<=://)[^/?#\s]*(?=@)"
_QUERY = r"(?<=[?&;#])([^=&;#\s]+)=[^&;#\s]+"
# of AWS, Google Cloud, Azure, CloudFront, and what others call a key
_LETS_IN = (
    r"(?i)signature|token|secret|passw|pwd|credential|auth|api[-_]?key|access[-_]?key|key[-_]?(?:pair[-_]?)?id|session|jwt"
    r"|^(?:key|sig|code|policy|sas)$"
)


def public(address: str) -> str:
    """The address, or text that has one, without user and password, and without what in its query lets one in."""
    if address.startswith("s3://") or not any(mark in address for mark in "@?&;#"):  # a key in S3 may have any letters
        return address
    return re.sub(_QUERY, _without_value, re.sub(_USER, WITHHELD, address))


def is_public(address: str) -> bool:
    """Whether the address may be written down as it is."""
    return public(address) == address


def _without_value(found: re.Match[str]) -> str:
    from urllib.parse import unquote

    return f"{found[1]}={WITHHELD}" if re.search(_LETS_IN, unquote(found[1])) else found[0]
