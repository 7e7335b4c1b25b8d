"""Addresses as they are written down: without passwords, tokens and signatures.

Every command looks at sources, so the expressions are compiled, and urllib is imported, only where they are needed.
"""

from __future__ import annotations

import re

WITHHELD = "***"
_USER = r"(?<=://)[^/?#\s]*(?=@)"
_QUERY = r"(?<=[?&;#])([^=&;#\s]+)=[^&;#\s]+"
# of AWS, Google Cloud, Azure, CloudFront, and what others call a key
_CREDENTIAL = (
    r"(?i)signature|token|secret|passw|pwd|credential|auth|api[-_]?key|access[-_]?key|key[-_]?(?:pair[-_]?)?id"
    r"|session|jwt|^(?:key|sig|code|policy|sas)$"
)


def public(address: str) -> str:
    """The address, or a text that has one, with user, password and each credential in its query replaced by `***`."""
    if address.startswith("s3://") or not any(mark in address for mark in "@?&;#"):  # a key in S3 may have any letters
        return address
    return re.sub(_QUERY, _without_value, re.sub(_USER, WITHHELD, address))


def is_public(address: str) -> bool:
    """Whether the address may be written down as it is."""
    return public(address) == address


def _without_value(match: re.Match[str]) -> str:
    from urllib.parse import unquote

    return f"{match[1]}={WITHHELD}" if re.search(_CREDENTIAL, unquote(match[1])) else match[0]
