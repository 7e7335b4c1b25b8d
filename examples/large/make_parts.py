"""Writes the churn table in Parquet parts into `table/` beside this file: `python make_parts.py [PARTS [TIMES]]`.

TIMES repeats the customers under other numbers, to see what a larger table takes; the model gets no better by that.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

from runner.model import as_category

HERE = Path(__file__).parent
CATEGORIES = ["State", "Area Code", "Int'l Plan", "VMail Plan"]


def write(table: Path, *, parts: int = 8, times: int = 1) -> None:
    """Write `parts` files for each of `times` copies of the table; what was there is replaced."""
    texts = dict.fromkeys([*CATEGORIES, "Phone"], "str")
    customers = pd.read_csv(HERE.parents[1] / "data" / "churn.csv", dtype=texts)
    customers["Churn?"] = customers["Churn?"].eq("True.").astype("int8")
    customers[CATEGORIES] = customers[CATEGORIES].apply(as_category)
    shutil.rmtree(table, ignore_errors=True)
    table.mkdir()
    for copy in range(times):
        for part in range(parts):
            rows = customers.iloc[part::parts].reset_index(drop=True)
            rows["Phone"] = rows["Phone"] + (f"-{copy}" if copy else "")
            rows.to_parquet(table / f"part-{copy * parts + part:05d}.parquet")


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    write(HERE / "table", **dict(zip(("parts", "times"), numbers, strict=False)))
