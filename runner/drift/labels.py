"""Answers that came later: the table that has them, by key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.model.signature import as_category

if TYPE_CHECKING:
    import pandas as pd

    from runner.model import Model

NEGATIVES = ("0", "false", "no")


def read_answers(path: str | Path, model: Model) -> pd.Series:
    """1 where the row's answer is the model's positive label, else 0; by the key's text, rows without one left out.

    The table is Parquet, or CSV with a header, and has the model's key and target. 1 and true stand for the positive
    label as well. Raises ValueError for a table or an answer that it cannot read.
    """
    import pandas as pd

    key, target, path = model.signature.key, model.signature.target, Path(path)
    if key is None or model.signature.positive is None:
        raise ValueError("The model has no key or no positive label, so answers cannot be joined to its scores.")
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    frame = pd.read_parquet(path) if is_parquet else pd.read_csv(path, dtype=str)
    if absent := [name for name in (key, target) if name not in frame.columns]:
        raise ValueError(f"{path} has no column {', '.join(absent)}. It needs {key}, and {target} with the answer.")
    frame = frame[[key, target]].dropna()
    answers = as_category(frame[target]).str.lower().str.rstrip(".")
    positive = str(model.signature.positive).strip().lower().rstrip(".")
    known = {positive: 1, "1": 1, "true": 1, **dict.fromkeys(NEGATIVES, 0)} | {positive: 1}
    others = sorted(set(answers.dropna()) - set(known))
    if len(others) == 1 and positive in set(answers):  # the one label beside the positive one
        known[others[0]] = 0
    elif others:
        raise ValueError(f"{path}, {target}: {others[0]!r} is neither {model.signature.positive!r} nor its opposite.")
    return pd.Series(answers.map(known).to_numpy(dtype="int8"), index=as_category(frame[key]).astype("object"))
