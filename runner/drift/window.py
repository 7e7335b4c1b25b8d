"""What came to a target in a window of time, read as a stream: counts, a sample of rows, and what the requests tell.

A window is the folder that `captured:TARGET` gives a notebook (requests.parquet, records.parquet, capture.json), or one
Parquet file of raw records. Ten million rows take the memory of one batch and of the sample.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.model.profile import Counting, Profile, describe, score_columns

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from runner.model import Model

REQUESTS, RECORDS, CAPTURE = "requests.parquet", "records.parquet", "capture.json"
BATCH_ROWS = 100_000
SAMPLE_ROWS = 20_000
MOST_ERRORS = 10  # sentences of refusals


@dataclass(frozen=True)
class Requests:
    """The requests of a window. Times are UTC, `seconds` the 50th, 95th and 99th percentile of the answers."""

    count: int
    refused: int  # 400 to 499: what the caller sent
    failed: int  # 500 and above
    seconds: dict[int, float] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)  # requests by day
    errors: dict[str, int] = field(default_factory=dict)  # the commonest sentences, without their row numbers


@dataclass(frozen=True)
class Window:
    """`profile` counts all rows; its scores are those of the version alone. `sample` has the model's columns."""

    rows: int
    profile: Profile
    sample: pd.DataFrame
    requests: Requests | None  # None of a file of records
    versions: dict[str, int]  # rows by the version that answered
    hidden: tuple[str, ...] = ()  # columns that the target hashes or leaves out


def read_window(
    path: str | Path,
    model: Model,
    reference: Profile,
    *,
    version: str = "",
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> Window:
    """The window at the path, counted by the reference's edges.

    Scores are the captured ones of `version` (NAME/3; "" for any), or in a file of records the model's. Equal arguments
    give equal results. Raises ValueError where there is no such window.
    """
    import numpy as np
    import pandas as pd

    folder, records = Path(path), _records(Path(path))
    hidden = _hidden(folder)
    names = [column.name for column in model.signature.columns if column.name not in hidden]
    total = _row_count(records)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, sample_rows), replace=False))
    counting, versions, parts, start = Counting(reference), Counter[str](), [], 0
    for frame in _batches(records, [*names, "version", *_score_names(records)]):
        counting.add(frame[[name for name in names if name in frame.columns]])
        if "version" in frame.columns:
            versions.update(frame["version"].value_counts().to_dict())
        for name, values in _scores(frame, model, version).items():
            counting.add_scores(name, values[~np.isnan(values)])
        inside = chosen[(chosen >= start) & (chosen < start + len(frame))] - start
        parts.append(frame.iloc[inside][[name for name in names if name in frame.columns]])
        start += len(frame)
    sample = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)
    requests = _requests(folder / REQUESTS) if folder.is_dir() else None
    return Window(total, counting.profile(), sample, requests, dict(versions), tuple(sorted(hidden)))


def reference_of(model: Model, rows: str | Path = "") -> Profile:
    """What the model keeps of the rows that it was made with; else the profile of `rows`, see `reference_rows`.

    Scores are then those of the rows called test, or of all. Raises ValueError where there is neither.
    """
    if model.reference is not None:
        return model.reference
    if not rows or not list(Path(rows).glob("*.parquet")):
        raise ValueError(
            "The model has no reference.json, and the rows of its run are not here. Train it again, with reference= of "
            "runner.model.save."
        )
    every, judged = reference_rows(rows, model), Path(rows) / "test.parquet"
    scored = reference_rows(judged, model) if judged.exists() else every
    scores = _by_name(model.predict(scored, unknown="missing"), model)
    return describe([every], model.signature.columns, scores, missing=model.signature.missing)


def reference_rows(rows: str | Path, model: Model, *, most: int | None = None, seed: int = 0) -> pd.DataFrame:
    """The model's columns of the Parquet file, or of all in the folder; of at most so many rows, drawn by chance."""
    import pandas as pd

    path, names = Path(rows), [column.name for column in model.signature.columns]
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    frame = pd.concat([pd.read_parquet(file, columns=names) for file in files], ignore_index=True)
    return frame if most is None or len(frame) <= most else frame.sample(most, random_state=seed, ignore_index=True)


def with_answers(
    path: str | Path, answers: pd.Series, model: Model, *, key: str, version: str = "", score: str = "score"
) -> pd.DataFrame:
    """Rows of the window whose key has an answer: columns `score` and `answer`, the last row of each key.

    `answers` are 0 or 1 by key. Empty where the window has no such column, or a hash of it.
    """
    import pandas as pd

    records, none = _records(Path(path)), pd.DataFrame({"score": [], "answer": []}, dtype="float64")
    if key in _hidden(Path(path)) or key not in _columns(records):
        return none
    known = answers.rename(index=str)
    names, parts = [column.name for column in model.signature.columns], []
    stored = _score_names(records)
    for frame in _batches(records, [key, "version", *(stored or names)]):
        keys = frame[key].astype("string")
        wanted = keys.isin(known.index)
        if wanted.any():
            scores = _scores(frame[wanted], model, version).get(score)
            parts.append(pd.DataFrame({"key": keys[wanted], "score": scores}))
    if not parts:
        return none
    joined = pd.concat(parts, ignore_index=True).dropna().drop_duplicates("key", keep="last")
    latest = known[~known.index.duplicated(keep="last")]
    return joined.assign(answer=joined["key"].map(latest))[["score", "answer"]].reset_index(drop=True)


def _records(path: Path) -> Path:
    records = path / RECORDS if path.is_dir() else path
    if not records.is_file():
        raise ValueError(
            f"{path} is neither a folder with {RECORDS}, as `captured:TARGET` gives it, nor a Parquet file."
        )
    return records


def _hidden(path: Path) -> set[str]:
    file = path / CAPTURE
    if not path.is_dir() or not file.exists():
        return set()
    settings = json.loads(file.read_text(encoding="utf-8"))
    return {*settings.get("hash", ()), *settings.get("leave_out", ())}


def _columns(records: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(records).names)


def _row_count(records: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(records).num_rows)


def _score_names(records: Path) -> list[str]:
    """The columns of captured scores; none in a file of records."""
    names = _columns(records)
    return [name for name in names if name == "score" or name.startswith("score_")] if "version" in names else []


def _batches(records: Path, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The rows, so many at a time, with those of the columns that are there."""
    import pyarrow.parquet as pq

    present = set(_columns(records))
    with pq.ParquetFile(records) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[name for name in names if name in present]):
            yield batch.to_pandas()


def _scores(frame: pd.DataFrame, model: Model, version: str) -> dict[str, np.ndarray]:
    """By name: as captured, NaN for those of other versions; else as the model scores the rows."""
    import numpy as np

    if "version" not in frame.columns:
        return _by_name(model.predict(frame, unknown="missing"), model)
    names = [name for name in frame.columns if name == "score" or name.startswith("score_")]
    own = np.ones(len(frame), dtype=bool) if not version else (frame["version"] == version).to_numpy()
    return {name: np.where(own, frame[name].to_numpy(dtype="float64"), math.nan) for name in names}


def _by_name(scores: np.ndarray, model: Model) -> dict[str, np.ndarray]:
    return score_columns(scores, model.signature.labels)


def _requests(file: Path) -> Requests | None:
    import numpy as np
    import pyarrow.parquet as pq

    if not file.exists():
        return None
    count = refused = failed = 0
    seconds: list[np.ndarray] = []
    days, errors = Counter[str](), Counter[str]()
    with pq.ParquetFile(file) as stored:
        for batch in stored.iter_batches(BATCH_ROWS, columns=["time", "status", "seconds", "error"]):
            frame = batch.to_pandas()
            count += len(frame)
            bad = frame["status"].between(400, 499)
            refused += int(bad.sum())
            failed += int((frame["status"] >= 500).sum())
            seconds.append(frame["seconds"].dropna().to_numpy(dtype="float32"))
            days.update(frame["time"].astype("string").str[:10].value_counts().to_dict())
            for sentence, times in frame.loc[bad, "error"].fillna("").value_counts().head(100).items():
                errors[re.sub(r"(?<=ow )\d+", "…", str(sentence))] += int(times)
    measured = np.concatenate(seconds) if seconds else np.array([])
    percentiles = {at: float(np.percentile(measured, at)) for at in (50, 95, 99)} if len(measured) else {}
    return Requests(
        count, refused, failed, percentiles, dict(sorted(days.items())), dict(errors.most_common(MOST_ERRORS))
    )
