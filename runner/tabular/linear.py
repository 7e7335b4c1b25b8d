"""The plain linear model that trees must not be worse than."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runner.tabular.columns import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RARE = 10  # rows, below which categories are one


def linear_model(
    features: pd.DataFrame, answers: np.ndarray, task: Task, *, classes: int = 2
) -> Callable[[pd.DataFrame], np.ndarray]:
    """A logistic or linear regression learned from these rows, which gives scores as the trees do.

    Numbers are scaled, what is missing is filled with the median, categories are one-hot. `answers` are 1 or 0, the
    class's number, or a number, shape (n_rows,). Scores have the shape (n_rows,), of several classes
    (n_rows, `classes`); a class that no row has gets the probability 0.
    """
    import numpy as np
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    encode = make_column_transformer(
        (
            OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE),
            list(features.select_dtypes("category")),
        ),
        remainder=make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()),
    )
    model = make_pipeline(encode, Ridge() if task == "regression" else LogisticRegression(max_iter=1000))
    model.fit(features, answers)

    def scores(records: pd.DataFrame) -> np.ndarray:
        if task == "regression":
            return np.asarray(model.predict(records))
        chances = np.zeros((len(records), classes))
        chances[:, model.classes_] = model.predict_proba(records)
        return chances if task == "multiclass" else chances[:, 1]

    return scores
