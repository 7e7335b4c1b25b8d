"""Parquet files in parts: written part by part, and read so, where a table does not fit into memory.

A part is a row group of one file. A table of one part is the very file that pandas writes of its frame.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tabular.beside import Behind, ahead
from runner.tabular.blocks import PART_ROWS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

EVERY = 100  # rows one is in a sample


def read_parts(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
    """The Parquet file's rows, or those of a folder of such files by name, at most 500,000 at a time.

    `columns` are all where it is None. The index counts the rows through the table, from 0.
    """
    import pandas as pd

    start = 0
    for frame in ahead(_frames(_files(Path(path)), None if columns is None else list(columns))):
        frame.index = pd.RangeIndex(start, start + len(frame))
        start += len(frame)
        yield frame


def count_parts(path: str | Path) -> int:
    """How many parts `read_parts` gives, by what the files' ends say."""
    import pyarrow.parquet as pq

    files = [pq.read_metadata(file) for file in _files(Path(path))]
    groups = [file.row_group(at).num_rows for file in files for at in range(file.num_row_groups)]
    return sum(-(-rows // PART_ROWS) for rows in groups)


def known_values(path: str | Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Per column the values that are there, sorted; missing ones are none."""
    values: dict[str, set[str]] = {name: set() for name in columns}
    for part in read_parts(path, columns):
        for name in columns:
            values[name].update(part[name].dropna().unique())
    return {name: sorted(there) for name, there in values.items()}


class PartFiles:
    """Parquet files that are written part by part: beside their places, until `keep`.

    A file of one part has the frame's own types; in several, whole numbers of 64 bits are float64, as a later part may
    have a missing one. What is not kept is removed when nobody holds this any more, or the process ends.
    """

    def __init__(self, places: Mapping[str, str | Path]) -> None:
        self._writing = Behind(len(places))  # a part of each file is written while the next ones are made
        self._files = {name: _File(Path(place), self._writing) for name, place in places.items()}
        self.discard = weakref.finalize(self, _discard, list(self._files.values()), self._writing)

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """Add a part to the file of that name. Raises what writing a part before it raised, and then adds none.

        The frame may be changed afterwards, but not memory that it shares with an array by `copy=False`."""
        self._files[name].add(frame)

    def keep(self) -> None:
        """The files take their places. Raises ValueError, and none does, where nothing was written to one."""
        self._writing.wait()
        for file in self._files.values():
            file.close()
        for file in self._files.values():
            file.beside.replace(file.place)


@contextlib.contextmanager
def write_parts(places: Mapping[str, str | Path]) -> Iterator[Callable[[str, pd.DataFrame], None]]:
    """Gives `write(name, frame)`, as `PartFiles` has it.

    The files take their places when the block ends well, and none where it raises.
    """
    files = PartFiles(places)
    try:
        yield files.write
        files.keep()
    finally:
        files.discard()


def draw(rows: int, most: int, *, seed: int = 0) -> np.ndarray:
    """The places of at most `most` of so many rows, drawn by chance, in order: int64, shape (min(rows, most),)."""
    import numpy as np

    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def draw_rows(path: str | Path, most: int, *, seed: int = 0) -> pd.DataFrame:
    """At most `most` rows of the Parquet file, or of a folder of such, drawn by chance, in their order."""
    import pandas as pd
    import pyarrow.parquet as pq

    places = draw(sum(pq.read_metadata(file).num_rows for file in _files(Path(path))), most, seed=seed)
    return pd.concat([part[part.index.isin(places)] for part in read_parts(path)])


def sample_rows(
    parts: Iterable[pd.DataFrame],
    every: int = EVERY,
    *,
    features: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """A single part whole; of several every hundredth row, and each with a category, or a gap in a column, that is new.

    `features` makes the columns in which these are looked for, where they are not the parts' own. Enough for
    `runner.model.save`, which needs every column's type with its categories, a gap in each column in which the model
    has learned from one, rows to compare scores by, and what the columns usually hold.
    """
    import pandas as pd

    parts = iter(parts)
    beginning = list(itertools.islice(parts, 2))
    if len(beginning) == 1:
        return beginning[0]
    seen: dict[str, set[object]] = {}
    taken: list[pd.DataFrame] = []
    for part in itertools.chain(beginning, parts):
        fresh = pd.Series(False, index=part.index)
        fresh.iloc[::every] = True
        looked_at = features(part) if features else part
        for name in looked_at:
            column = looked_at[name]
            named = isinstance(column.dtype, pd.CategoricalDtype)
            values = column[~column.duplicated()] if named else column[column.isna()].head(1)
            kinds = {None if pd.isna(value) else value: at for at, value in values.items()}
            known = seen.setdefault(str(name), set())
            fresh.loc[[at for value, at in kinds.items() if value not in known]] = True
            known.update(kinds)
        taken.append(part[fresh])
    return pd.concat(taken, ignore_index=True)


@dataclass
class _File:
    place: Path
    writing: Behind
    first: pd.DataFrame | None = None  # held back, until it is known whether it is the only part
    parted: bool = False  # more than one part was added
    discarded: bool = False
    schema: pa.Schema | None = None
    writer: pq.ParquetWriter | None = None
    beside: Path = field(init=False)

    def __post_init__(self) -> None:
        self.beside = self.place.with_name(f".{self.place.name}-{secrets.token_hex(4)}")
        self.place.parent.mkdir(parents=True, exist_ok=True)

    def add(self, frame: pd.DataFrame) -> None:
        if self.first is not None and not len(self.first):
            self.first = None
        elif not len(frame) and (self.first is not None or self.parted):
            return
        if not self.parted and self.first is None:
            self.first = _taken(frame)
            return
        if self.first is not None:
            first, self.first = self.first, None
            self.writing.put(self._write, first)
        self.writing.put(self._write, _taken(frame))
        self.parted = True

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        elif self.first is not None:
            self.first.to_parquet(self.beside, index=False)
        else:
            raise ValueError(f"Nothing was written to {self.place}.")

    def discard(self) -> None:
        self.discarded = True
        if self.writer is not None:
            self.writer.close()
        self.beside.unlink(missing_ok=True)

    def _write(self, frame: pd.DataFrame) -> None:
        if self.discarded:
            return
        try:
            self._add(frame)
        finally:
            if self.discarded:  # meanwhile, by the garbage collector in this very thread
                self.discard()

    def _add(self, frame: pd.DataFrame) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        whole = frame.select_dtypes("int64").columns
        frame = frame.astype(dict.fromkeys(whole, "float64"))
        if self.writer is None:
            schema = pa.Schema.from_pandas(frame, preserve_index=False)
            for at, column in enumerate(schema):
                if pa.types.is_null(column.type):  # nothing there in the first part
                    schema = schema.set(at, column.with_type(pa.string()))
            self.schema, self.writer = schema, pq.ParquetWriter(self.beside, schema)
        self.writer.write_table(pa.Table.from_pandas(frame, schema=self.schema, preserve_index=False))


def _taken(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is now, whatever becomes of it: pandas 3 copies once one of both is changed."""
    import pandas as pd

    return frame.copy(deep=int(pd.__version__.partition(".")[0]) < 3)


def _frames(files: Iterable[Path], columns: list[str] | None) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                for batch in opened.iter_batches(PART_ROWS, row_groups=[group], columns=columns):
                    yield batch.to_pandas()


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _discard(files: Iterable[_File], writing: Behind) -> None:
    for file in files:
        file.discarded = True  # what waits to be written is not
    writing.close()
    for file in files:
        file.discard()
