"""Small models of raw records, each of another kind, and records that are drawn for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb
from hypothesis import strategies as st

import runner.model
from runner.model.signature import Unknown
from runner.scoring.inference import Scorer

CODE = """
import pandas as pd


def transform(frame):
    return pd.DataFrame({"rate": frame["calls"] / (frame["minutes"] + 1), "plan": frame["plan"], "big": frame["calls"] > 5})
"""
SETTINGS = {"objective": "binary:logistic", "max_depth": 4, "seed": 1, "nthread": 1, "max_cat_to_onehot": 1}
PLANS = ["basic", "gold", "südost", "657"]


def records(rows: int = 150) -> pd.DataFrame:
    """Raw records, shape (rows, 4), with missing numbers and plans."""
    chance = np.random.default_rng(3)
    plan = pd.Series(chance.choice(PLANS, rows))
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


def trained(features: pd.DataFrame, answers: Any = None, **settings: Any) -> xgb.Booster:
    raw = records(len(features))
    answers = ((raw["calls"] > 5) | (raw["plan"] == "gold")).astype(int) if answers is None else answers
    return xgb.train({**SETTINGS, **settings}, xgb.DMatrix(features, answers, enable_categorical=True), 12)


def saved(folder: Path, **options: Any) -> Path:
    raw = records()
    given = {"target": "left", "positive": "yes", "threshold": 0.4, **options}
    runner.model.save(folder, given.pop("booster", None) or trained(raw), raw, **given)
    return folder


def computed(folder: Path) -> Path:
    """A model of features that code computes."""
    (folder.parent / "features.py").write_text(CODE, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    booster = trained(scope["transform"](records()))
    return saved(folder, booster=booster, code=folder.parent / "features.py")


def several(folder: Path) -> Path:
    raw = records()
    return saved(folder, booster=trained(raw, raw["calls"] % 3, objective="multi:softprob", num_class=3), positive=None)


def number(folder: Path) -> Path:
    raw = records()
    return saved(folder, booster=trained(raw, raw["calls"] * 2.5, objective="reg:squarederror"), positive=None)


def of(folder: Path, unknown: Unknown = "error") -> Scorer:
    made = Scorer({file.name: file.read_bytes() for file in folder.iterdir()}, unknown=unknown, model="tiny/1")
    made.self_test()
    return made


ODD = [
    "", " ", "1", "+1", " 1 ", "1_000", "１２", "1e5", "1E5", "1d5", ".5", "5.", "-.5", "0x10", "1,000", "inf", "-inf", "nan",
    "NaN", "Infinity", "1e400", "007", "true", "True", " FALSE ", "1e-400", "1 2", "\t3\n", "1e", "--1", "1.2.3", "-", "\x1c1",
    "1\x0b", "\xa01", "\xa0", "1f", "−1", "1e+5", "+ 1", "00", "-0", "9" * 40, "1e39", "-1e39", "3.4e38", "none", "null",
    "basic", " gold ", "Gold", "südost", "657", "657.0", "657.00", " 657 ", "+657", "0657", "657.5", "a\nb", 'a"b', "a,b", "\x00",
]  # fmt: skip
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 400)
long = st.builds(
    lambda count, around: around.replace("#", "7" * count),
    st.integers(30, 400) | st.integers(4250, 6000),
    st.sampled_from(["#", "-#.5", "0.#", "#.0", "#.00", "0.#x", "#e-9", "1e#", "#e-#", "#."]),
)
texts = st.sampled_from(ODD) | long | st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | numbers.map(str)
values = st.none() | st.booleans() | numbers | texts | st.sampled_from([[], {}, [1], {"a": 1}, "\ud800", 657, 657.0])
good = {
    "minutes": st.none() | st.floats(0, 400) | st.floats(0, 400).map(str),
    "calls": st.none() | st.integers(0, 10) | st.sampled_from(["3", " 4.0 ", ""]),
    "plan": st.none() | st.sampled_from([*PLANS, 657, 657.0, "657.0", " 657 ", ""]),
    "roaming": st.none() | st.booleans() | st.sampled_from([0, 1, 1.0, "true", "FALSE", "0", "1.0"]),
}
whole = st.fixed_dictionaries(good)
mixed = st.fixed_dictionaries({name: one | values for name, one in good.items()}, optional={"more": values})
