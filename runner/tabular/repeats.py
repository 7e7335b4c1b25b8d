"""Which keys and rows of a table are there more than once, where the table does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Repeats:
    """`rows` share their key with another; `keys` are some of those keys, the first of the table.

    `copies` are the rows, by their index in the table, that are one row several times, of the first key that has such;
    empty where there are none.
    """

    rows: int
    keys: list[str]
    copies: pd.DataFrame


def key_hashes(keys: pd.Series) -> np.ndarray:
    """64 bits of each key, shape (n_rows,). Equal keys have equal ones; that two others have is one chance in 2**64."""
    import numpy as np
    import pandas as pd

    return np.asarray(pd.util.hash_array(keys.to_numpy(dtype=object), categorize=False))


def row_hashes(frame: pd.DataFrame) -> pd.Series:
    """64 bits of each row. Equal rows have equal ones, in whichever part of a table; so do two others by one chance in
    2**64.
    """
    import pandas as pd

    plain = frame.copy(deep=False)
    for name in frame.select_dtypes("float64"):
        plain[name] = frame[name] + 0.0  # -0.0 is 0.0
    return pd.util.hash_pandas_object(plain, index=False)


def repeats(read: Callable[[], Iterator[pd.DataFrame]], key: str, hashes: Sequence[np.ndarray]) -> Repeats:
    """What is repeated in the table whose blocks `read` gives, and whose `key_hashes` are known, block by block.

    The table is read once more where a key is there twice, else not at all. 16 bytes of memory for each row.
    """
    import numpy as np
    import pandas as pd

    ordered = np.sort(np.concatenate(hashes))
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return Repeats(0, [], pd.DataFrame())
    keys: list[str] = []
    places, rows = [], []
    for block, hashed in zip(read(), hashes, strict=True):
        shared = block[np.isin(hashed, twice)]
        keys += [] if len(keys) >= 3 else shared[key].unique()[:3].tolist()
        places.append(shared.index.to_numpy())
        rows.append(pd.util.hash_pandas_object(shared, index=False).to_numpy())
    place, row = np.concatenate(places), np.concatenate(rows)
    copies = pd.DataFrame()
    if len(again := place[pd.Series(row).duplicated(keep=False).to_numpy()]):
        named = pd.concat([block[block.index.isin(again)].head(100_000) for block in read()])
        named = named[named[key] == named[key].iloc[0]]
        copies = named[named.duplicated(keep=False)]
    return Repeats(len(place), list(dict.fromkeys(keys))[:3], copies)
