"""Which side of a split a row is on: by a hash of its key, so that it never changes side when the table grows."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping


def split(keys: Iterable[object], *, seed: int, shares: Mapping[str, float]) -> list[str]:
    """The side of each key: `shares` gives the sides with their parts of the whole, which add up to 1.

    The same key, seed and shares give the same side in every table. Raises ValueError where shares do not add up.
    """
    if not shares or any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"The shares {dict(shares)} must be above 0 and add up to 1.")
    sides = sorted(shares)  # by name: a mapping's own order does not survive its way through a JSON file
    bounds: list[float] = []
    for side in sides:
        bounds.append((bounds[-1] if bounds else 0.0) + shares[side])
    bounds[-1] = 1.0
    prefix, last = f"{seed}\x1f".encode(), len(bounds) - 1
    sha256, number, right = hashlib.sha256, int.from_bytes, bisect.bisect_right  # `place`, as tables have millions
    digests = (sha256(prefix + str(key).encode()).digest() for key in keys)
    return [sides[right(bounds, (number(digest[:8], "big") >> 11) / 2**53, 0, last)] for digest in digests]


def place(key: object, seed: int) -> float:
    """The key's place in [0, 1): the first 53 bits of SHA-256 over `seed` and `key`."""
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
