"""Models as they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb

import runner.model

SPLIT: dict[str, Any] = {"seed": 7, "key": "phone", "shares": {"train": 0.7, "validation": 0.18, "test": 0.12}}
SETTINGS = {"objective": "binary:logistic", "max_depth": 3, "seed": 1, "nthread": 1}


def records(rows: int = 120) -> pd.DataFrame:
    """Raw records, shape (rows, 4), every seventh with a missing number and every ninth with a missing plan."""
    chance = np.random.default_rng(3)
    plan = pd.Series(chance.choice(["basic", "gold", "südost"], rows))
    made = pd.DataFrame(
        {
            "minutes": chance.normal(180, 50, rows).round(1),
            "calls": chance.integers(0, 10, rows),
            "plan": pd.Categorical(plan.where(plan.index % 9 != 8)),
            "roaming": chance.random(rows) < 0.3,
        }
    )
    made.loc[made.index % 7 == 6, "minutes"] = np.nan
    return made


def trained(features: pd.DataFrame) -> xgb.Booster:
    raw = records(len(features))
    answers = (raw["calls"] > 5) | (raw["plan"] == "gold")
    return xgb.train(SETTINGS, xgb.DMatrix(features, answers.astype(int), enable_categorical=True), 5)


def saved(folder: Path, **options: Any) -> Path:
    """A folder with a model of the raw columns."""
    raw = records()
    runner.model.save(
        folder, trained(raw), raw, target="left", positive="yes", threshold=0.4, key="phone", split=SPLIT, **options
    )
    return folder
