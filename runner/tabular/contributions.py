"""How far each column moves a record's score: XGBoost's own SHAP values of a saved model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from runner.model import load

if TYPE_CHECKING:
    import pandas as pd


def model_features(model: str | Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The model's own columns of raw records, shape (n_rows, n_features): what its frozen code makes of them, if any.

    Categories are those that the model knows, others are missing. Raises what `runner.model.load` raises.
    """
    import pandas as pd

    folder = Path(model)
    signature = load(folder).signature
    features = frame[[column.name for column in signature.columns]].reset_index(drop=True)
    if signature.features is not None:
        module = ModuleType("features")
        exec(compile((folder / "features.py").read_bytes(), "features.py", "exec"), module.__dict__)
        features = module.transform(features)
    for column in signature.features or signature.columns:
        if column.kind == "category":
            known = pd.Index(column.categories, dtype="str")
            features[column.name] = pd.Categorical(features[column.name].astype("object"), categories=known)
    return features


def contributions(model: str | Path, frame: pd.DataFrame) -> pd.DataFrame:
    """SHAP values of raw records by the XGBoost model in this folder: shape (n_rows, n_features).

    In log-odds for probabilities, else in the predicted number's unit; a row's sum is its score less what is the same
    for all. Of several classes it is the one that the row is given. Raises what `runner.model.load` raises.
    """
    import numpy as np
    import pandas as pd
    import xgboost as xgb

    features = model_features(model, frame)
    booster = xgb.Booster(model_file=Path(model) / "model.ubj")
    rows = xgb.DMatrix(features, enable_categorical=True)
    moved = booster.predict(rows, pred_contribs=True)
    if moved.ndim == 3:
        moved = moved[np.arange(len(features)), booster.predict(rows).argmax(axis=1)]
    return pd.DataFrame(moved[:, :-1].astype("float64"), index=frame.index, columns=features.columns)


def reasons(moved: pd.DataFrame, features: pd.DataFrame, most: int = 3) -> list[str]:
    """Per row the features that moved its score most, in words: `Contract = One year (-0.81); …`.

    `moved` and `features` have the same rows and columns, as `contributions` and `model_features` give them.
    """
    sentences = []
    for (_, row), (_, values) in zip(moved.iterrows(), features.iterrows(), strict=True):
        strongest = row.abs().nlargest(most).index
        sentences.append("; ".join(f"{name} = {_short(values[name])} ({row[name]:+.3g})" for name in strongest))
    return sentences


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:40]
