"""Which side of a split a row is on: by a hash of its key, so that it never changes side when the table grows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def split(keys: Iterable[object], *, seed: int, shares: Mapping[str, float]) -> list[str]:
    """The side of each key: `shares` gives the sides with their parts of the whole, which add up to 1.

    The same key, seed and shares give the same side in every table. Raises ValueError where shares do not add up.
    """
    import numpy as np

    if not shares or any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"The shares {dict(shares)} must be above 0 and add up to 1.")
    sides = sorted(shares)  # by name: a mapping's own order does not survive its way through a JSON file
    bounds: list[float] = []
    for side in sides:
        bounds.append((bounds[-1] if bounds else 0.0) + shares[side])
    prefix, sha256 = f"{seed}\x1f".encode(), hashlib.sha256
    # `place` of all at once, as tables have millions
    digests = b"".join([sha256(prefix + str(key).encode()).digest() for key in keys])
    places = (np.frombuffer(digests, ">u8")[:: hashlib.sha256().digest_size // 8] >> 11) / 2**53
    found: list[str] = np.array(sides, dtype=object)[np.searchsorted(bounds[:-1], places, side="right")].tolist()
    return found


def place(key: object, seed: int) -> float:
    """The key's place in [0, 1): the first 53 bits of SHA-256 over `seed` and `key`."""
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
