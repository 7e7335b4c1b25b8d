"""One table, and a model of each kind that learned from it: XGBoost, LightGBM, a pipeline of scikit-learn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import xgboost as xgb
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

import runner.model

NUMBERS, TEXTS = ["minutes", "calls"], ["plan", "city of birth"]
FILES = {"xgboost": "model.ubj", "lightgbm": "model.txt", "sklearn": "model.onnx"}


@functools.cache
def records(rows: int = 400) -> pd.DataFrame:
    """Raw records, shape (rows, 5), with missing numbers and texts; not to be changed."""
    chance = np.random.default_rng(3)
    plan = pd.Series(chance.choice(["basic", "gold", "südost", "657"], rows))
    made = pd.DataFrame(
        {
            "minutes": chance.normal(180, 50, rows).round(1),
            "calls": chance.integers(0, 10, rows),
            "plan": pd.Categorical(plan.where(plan.index % 9 != 8)),
            "city of birth": chance.choice(["Ulm", "Bad Aibling", "Zug"], rows),
            "roaming": chance.random(rows) < 0.3,
        }
    )
    made.loc[made.index % 7 == 6, "minutes"] = np.nan
    return made


def answers(question: str) -> pd.Series:
    """ "binary": yes or no; "several": three names; "number"."""
    frame = records()
    points = frame["calls"] + 3 * (frame["plan"] == "gold") + frame["minutes"].fillna(100) / 100
    if question == "number":
        return points * 2.5
    if question == "several":
        return pd.cut(points, 3, labels=["low", "mid", "top"]).astype("str")
    return pd.Series(np.where(points > 7, "yes", "no"))


def coded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(**{"city of birth": frame["city of birth"].astype("category")})


def preprocessing(numbers: Any = None, texts: Any = None) -> ColumnTransformer:
    numbers = numbers or make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = texts or make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", drop=None)
    )
    return ColumnTransformer(
        [("numbers", numbers, NUMBERS), ("texts", texts, TEXTS), ("rest", "passthrough", ["roaming"])]
    )


@functools.cache
def fitted(kind: str, question: str) -> Any:
    """An estimator that was judged."""
    frame, wanted = records(), answers(question)
    small = {"n_estimators": 8, "n_jobs": 1}
    if kind == "lightgbm":
        make = lgb.LGBMRegressor if question == "number" else lgb.LGBMClassifier
        return make(**small, verbose=-1).fit(coded(frame), wanted)
    if kind == "xgboost":
        numbered = wanted if question == "number" else pd.Series(pd.factorize(wanted, sort=True)[0])
        model = xgb.XGBRegressor if question == "number" else xgb.XGBClassifier
        return model(**small, enable_categorical=True).fit(coded(frame), numbered)
    if question == "number":
        texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
        return make_pipeline(preprocessing("passthrough", texts), HistGradientBoostingRegressor(max_iter=8)).fit(
            frame, wanted
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Pipeline([("columns", preprocessing()), ("model", LogisticRegression(max_iter=500))]).fit(frame, wanted)


def expected(kind: str, question: str, frame: pd.DataFrame | None = None) -> np.ndarray:
    """The estimator's own scores, float32."""
    model, frame = fitted(kind, question), records() if frame is None else frame
    frame = frame if kind == "sklearn" else coded(frame)
    scores = model.predict(frame) if question == "number" else model.predict_proba(frame)
    return np.asarray(scores[:, 1] if question == "binary" else scores, dtype="float32")


def save(folder: Path, kind: str, question: str = "binary") -> Path:
    names: dict[str, Any] = {}
    if kind == "xgboost" and question != "number":  # its classes have numbers alone
        names = {"positive": "yes"} if question == "binary" else {"labels": ["low", "mid", "top"]}
    runner.model.save(
        folder, fitted(kind, question), records() if kind == "sklearn" else coded(records()), target="stays", **names
    )
    return folder


def saving(kind: str, question: str = "binary") -> Callable[[Path], Path]:
    return functools.partial(save, kind=kind, question=question)
