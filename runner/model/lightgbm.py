"""A booster or a fitted estimator of LightGBM, and how it scores by itself. Knows its Python package, no folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import UsageError, counted
from runner.model.kinds import (
    CLASSES,
    NUMBER,
    PROBABILITY,
    ClassNames,
    Converted,
    Judged,
    class_names,
    place_of_positive,
)
from runner.model.signature import Column, Label, distinct

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np
    import pandas as pd

BINARY, SEVERAL = ("binary", "cross_entropy"), ("multiclass", "multiclassova")  # LightGBM's words
ADVICE = "Save the estimator that was judged, with the frame that it learned from."


def judged(model: Any, positive: Label | None, labels: Sequence[Label] | None) -> Judged:
    """Raises UsageError for what cannot be saved, with what to do."""
    import lightgbm as lgb

    kind, classes = type(model).__name__, None
    if isinstance(model, lgb.Booster):
        booster = model
    elif not isinstance(model, lgb.LGBMModel) or not model.__sklearn_is_fitted__():
        fault = "fitted. Fit it before it is saved" if isinstance(model, lgb.LGBMModel) else "a booster or an estimator"
        raise UsageError(f"The {kind} is not {fault}.")
    else:
        booster, classes = model.booster_, getattr(model, "classes_", None)
    content: str = booster.model_to_string(num_iteration=booster.best_iteration if booster.best_iteration > 0 else -1)
    objective, count = _objective(content), int(booster.dump_model(num_iteration=1)["num_class"])
    if classes is not None and objective not in (*BINARY, *SEVERAL):
        raise UsageError(
            f"The {kind} was fitted with an objective of its own, and so gives no probabilities. Take one of "
            "LightGBM's, or save its `.booster_`, whose numbers then are raw scores."
        )
    place = 1
    if objective in (*BINARY, *SEVERAL):
        classes = range(2 if objective in BINARY else count) if classes is None else classes
        names = class_names(list(classes), positive, labels)
        place = place_of_positive(list(classes), names)
    elif positive is not None or labels is not None:
        raise UsageError(f"positive and labels name classes, and a model of objective {objective!r} has none.")
    else:
        names = ClassNames(None, None)
    if place == 0:
        raise UsageError(
            f"positive={names.positive!r} is the class of which LightGBM gives no probability. Train with it as 1."
        )

    def scores(features: pd.DataFrame) -> np.ndarray:
        import numpy as np

        try:
            return np.asarray(booster.predict(features), dtype="float32")
        except Exception as error:  # whatever LightGBM and pandas raise for a frame
            raise UsageError(
                f"LightGBM would not score the frame that the model is saved with: {_first_line(error)}. {ADVICE}"
            ) from error

    def convert(features: pd.DataFrame, columns: Sequence[Column]) -> Converted:
        _check_columns(booster, list(features.columns))
        return Converted(content.encode(), _in_learned_order(booster, columns))

    said = PROBABILITY if objective in BINARY else CLASSES if objective in SEVERAL else f"{NUMBER}{objective}"
    return Judged("model.txt", said, names, None, True, None, ADVICE, scores, convert)


def _objective(content: str) -> str:
    """LightGBM's word for it; "custom" where it was a function."""
    line = re.search(r"^objective=(\S+)", content, re.M)
    return line[1] if line else "custom"


def _check_columns(booster: lgb.Booster, columns: Sequence[str]) -> None:
    """Raises UsageError where the columns are not those that the trees learned from, in their order."""
    learned = booster.feature_name()
    unnamed = learned == [f"Column_{at}" for at in range(len(learned))]
    if len(learned) == len(columns) and (unnamed or learned == [name.replace(" ", "_") for name in columns]):
        return
    raise UsageError(
        f"The frame has {counted(len(columns), 'column')}, {_some(columns)}; the model learned from {len(learned)}, "
        f"{_some(learned)}. Save it with the frame that it learned from."
    )


def _in_learned_order(booster: lgb.Booster, columns: Sequence[Column]) -> list[Column]:
    """The columns with the categories that the trees know, in the order of their codes. Raises UsageError."""
    learned = booster.pandas_categorical or []
    coded = [column for column in columns if column.kind == "category"]
    if len(learned) != len(coded):
        raise UsageError(
            f"The frame has {counted(len(coded), 'column')} of categories, and the model learned from {len(learned)}. "
            "Save it with the frame that it learned from."
        )
    texts = {
        one.name: distinct(one.name, [str(text) for text in known]) for one, known in zip(coded, learned, strict=True)
    }
    return [msgspec.structs.replace(one, categories=texts[one.name]) if one.name in texts else one for one in columns]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
