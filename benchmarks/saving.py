"""`python -m benchmarks.saving`: what `runner.model.save` takes beside the learning whose model it saves.

Medians of 5, for 80 % of the churn table and for 80 % of 100,000 rows drawn from it with noise, with the settings of
02_train. Processor time, on which other work of the machine has little influence.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xgboost as xgb

import runner.model
from benchmarks.paths import ROOT

KEY, TARGET = "Phone", "Churn?"
CATEGORIES = ["State", "Area Code", "Int'l Plan", "VMail Plan"]
SETTINGS = {
    "objective": "binary:logistic", "eval_metric": ["logloss", "auc"], "max_depth": 5, "eta": 0.1, "gamma": 1.0,
    "min_child_weight": 6.0, "subsample": 0.8, "seed": 42,
}  # fmt: skip


def records(table: Path, rows: int | None) -> tuple[pd.DataFrame, pd.Series]:
    """Records and answers; `rows` draws so many, their numbers a little apart."""
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    left = frame[TARGET].isin(["True.", "1"]).astype("int8")
    whole = frame.drop(columns=[KEY, TARGET])
    for name in whole.columns:
        text = runner.model.as_category(whole[name])
        whole[name] = text.astype("category") if name in CATEGORIES else pd.to_numeric(text)
    if rows is None:
        return whole, left
    chance = np.random.default_rng(0)
    drawn = chance.integers(0, len(whole), rows)
    records, left = whole.iloc[drawn].reset_index(drop=True), left.iloc[drawn].reset_index(drop=True)
    for name in records.columns.drop(CATEGORIES):
        records[name] = (records[name] * chance.normal(1, 0.01, rows)).round(3)
    return records, left


def measure(frame: pd.DataFrame, left: pd.Series, folder: Path) -> tuple[float, float, int]:
    """Seconds of learning and of saving, and how many trees there are."""
    learned = int(0.8 * len(frame))
    began = time.process_time()
    sides = [xgb.DMatrix(frame[:learned], left[:learned], enable_categorical=True)]
    sides.append(xgb.DMatrix(frame[learned:], left[learned:], enable_categorical=True))
    evals = list(zip(sides, ("train", "validation"), strict=True))
    booster = xgb.train(SETTINGS, sides[0], 300, evals=evals, early_stopping_rounds=30, verbose_eval=False)
    booster = booster[: booster.best_iteration + 1]
    between = time.process_time()
    runner.model.save(folder / "model", booster, frame[:learned], target=TARGET, positive="True.")
    return between - began, time.process_time() - between, booster.num_boosted_rounds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=ROOT / "data" / "churn.csv")
    table = parser.parse_args().table
    for rows in (None, 100_000):
        frame, left = records(table, rows)
        with tempfile.TemporaryDirectory() as folder:
            measured = [measure(frame, left, Path(folder)) for _ in range(5)]
        learning, saving = (statistics.median(column) for column in list(zip(*measured, strict=True))[:2])
        trees = measured[0][2]
        print(f"{int(0.8 * len(frame)):,} rows, {trees} trees: learning {learning:.2f} s, save {saving:.2f} s")


if __name__ == "__main__":
    main()
