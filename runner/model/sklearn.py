"""A fitted estimator or pipeline of scikit-learn: how it scores by itself, and the ONNX graph that scores so too.

The folder's graph is tried on the estimator's own frame, and where that has no missing value in a column, on a record
without it: where the estimator refuses that, or ONNX scores it otherwise, the column is required of every record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import UsageError
from runner.model import onnx, table
from runner.model.kinds import (
    CLASSES,
    NUMBER,
    PROBABILITY,
    ROUNDING,
    ClassNames,
    Converted,
    Judged,
    class_names,
    place_of_positive,
)
from runner.model.signature import Column, Label

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILE = "model.onnx"
ADVICE = (
    "The graph computes as scikit-learn does, but for the last bits, and a value at a tree's threshold can fall on its "
    "other side. Save the estimator with the frame that it learned from, scale no columns before trees, or take "
    "XGBoost or LightGBM, whose folders score to the bit."
)


def judged(model: Any, positive: Label | None, labels: Sequence[Label] | None) -> Judged:
    """Raises UsageError for what cannot be saved, with what to do."""
    from sklearn.base import is_classifier, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    kind = type(model).__name__
    model = getattr(model, "best_estimator_", model)
    try:
        check_is_fitted(model)
    except NotFittedError:
        raise UsageError(f"The {kind} is not fitted. Fit it before it is saved.") from None
    _check_last(model)
    place = None
    if is_classifier(model):
        if not hasattr(model, "predict_proba"):
            raise UsageError(
                f"The {kind} gives no probabilities, and an answer has one. Take one that has predict_proba, or put "
                "it into sklearn.calibration.CalibratedClassifierCV."
            )
        if isinstance(model.classes_, list):
            raise UsageError(f"The {kind} has several targets; an answer has one. Save a model for each.")
        classes = model.classes_.tolist()
        names = class_names(classes, positive, labels)
        place, objective = (place_of_positive(classes, names), PROBABILITY) if len(classes) == 2 else (None, CLASSES)
        predict = model.predict_proba
    elif is_regressor(model):
        if positive is not None or labels is not None:
            raise UsageError(f"positive and labels name classes, and the {kind} predicts a number.")
        names, predict, objective = ClassNames(None, None), model.predict, f"{NUMBER}{type(onnx.last(model)).__name__}"
    else:
        raise UsageError(f"The {kind} is neither a classifier nor a regressor, so it has no score to answer with.")
    scores = functools.partial(_scores, predict, place)
    convert = functools.partial(_converted, model, scores, place)
    return Judged(FILE, objective, names, None, False, ROUNDING, ADVICE, scores, convert)


def _check_last(model: Any) -> None:
    """Raises UsageError where a pipeline ends in what has a kind of folder of its own."""
    last = onnx.last(model)
    if last is None or isinstance(last, str):
        raise UsageError("The pipeline has no estimator at its end, so it has no score.")
    library = {one.__module__.partition(".")[0] for one in type(last).__mro__} & {"xgboost", "lightgbm"}
    if library:
        raise UsageError(
            f"The pipeline ends in a {type(last).__name__}, which ONNX would score otherwise. Save that estimator "
            "itself, with what the pipeline does before it as a module: save(…, code=…); it takes categories and "
            "missing values as they are."
        )


def _scores(predict: Callable[[pd.DataFrame], Any], place: int | None, features: pd.DataFrame) -> np.ndarray:
    import numpy as np

    try:
        scores = np.asarray(predict(features), dtype="float32")
    except Exception as error:  # whatever scikit-learn and pandas raise for a frame
        raise UsageError(
            f"scikit-learn would not score the frame that the model is saved with: {_first_line(error)}. Save it with "
            "the frame that it learned from."
        ) from error
    return scores if place is None else scores[:, place]


def _converted(
    model: Any,
    scores: Callable[[pd.DataFrame], np.ndarray],
    place: int | None,
    features: pd.DataFrame,
    columns: Sequence[Column],
) -> Converted:
    """The graph that is closest to the estimator on the frame and on its probes. Raises UsageError where none loads."""
    import numpy as np

    several = place is None and hasattr(model, "classes_")
    probes, required = _probes(scores, features)
    block = features.head(table.BLOCK)
    matrix, expected = table.matrix(block, columns), scores(block)
    described = msgspec.to_builtins(list(columns))
    signature = {"columns": described, "objective": CLASSES if several else NUMBER}
    best, least, reason = b"", np.inf, ""
    for graph in onnx.graphs(model, features, columns, place):
        try:
            distance = _distance(graph, signature, matrix, expected)
        except ValueError as error:
            reason = reason or str(error)
            continue
        if distance < least:
            best, least = graph, distance
        if distance <= 1:
            break
    if not best:
        raise UsageError(f"The ONNX graph of the {type(model).__name__} does not score: {reason} {ADVICE}")
    for name, probe in probes.items():
        if not _same(best, signature, table.matrix(probe, columns), scores(probe)):
            required.append(name)
    return Converted(best, list(columns), required)


def _same(graph: bytes, signature: dict[str, Any], matrix: np.ndarray, expected: np.ndarray) -> bool:
    try:
        return _distance(graph, signature, matrix, expected) <= 1
    except ValueError:
        return False


def _distance(graph: bytes, signature: dict[str, Any], matrix: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of the scores, in units of the tolerance."""
    from runner.scoring.inference import BadInput
    from runner.scoring.runtimes import Runtime

    scores = Runtime({FILE: graph}, signature, 1, BadInput).predict(matrix, *matrix.shape)
    return float((abs(scores - expected) / (ROUNDING.absolute + ROUNDING.relative * abs(expected))).max())


def _probes(
    scores: Callable[[pd.DataFrame], np.ndarray], features: pd.DataFrame
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """By column without a missing value the first row without it, where the estimator scores that; and the others."""
    import pandas as pd

    probes: dict[str, pd.DataFrame] = {}
    for name in features.columns[~features.isna().any()].tolist():
        probe = features.head(1).copy()
        if pd.api.types.is_bool_dtype(probe[name].dtype) or pd.api.types.is_integer_dtype(probe[name].dtype):
            probe[name] = probe[name].astype("float64")
        probe.loc[probe.index[0], name] = None
        probes[name] = probe
    if not probes or _scored(scores, pd.concat(list(probes.values()), ignore_index=True)):
        return probes, []
    taken = {name: probe for name, probe in probes.items() if _scored(scores, probe)}
    return taken, [name for name in probes if name not in taken]


def _scored(scores: Callable[[pd.DataFrame], np.ndarray], rows: pd.DataFrame) -> bool:
    import numpy as np

    try:
        return bool(np.isfinite(scores(rows)).all())
    except UsageError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
