"""What `save` is given, of whatever library: which kind of model it is, and all that the folder needs of it.

model.ubj    XGBoost: `runner.model.estimator`
model.txt    LightGBM: `runner.model.lightgbm`
model.onnx   scikit-learn, as a graph: `runner.model.sklearn`, `runner.model.onnx`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError
from runner.model.signature import Column, Label

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PROBABILITY, CLASSES, NUMBER = "binary:logistic", "multi:softprob", "reg:"  # what scores are, in XGBoost's words
TAKEN = (
    "A model folder takes boosters and estimators of XGBoost and LightGBM, and estimators and pipelines of scikit-learn"
)


@dataclass(frozen=True)
class ClassNames:
    """What an answer calls the classes."""

    positive: str | None
    labels: list[Label] | None


@dataclass(frozen=True)
class Tolerance:
    """Scores may differ by `absolute` + `relative` times the estimator's score."""

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:g} + {self.relative:g} of the score"


ROUNDING = Tolerance(1e-6, 1e-5)  # of float32, and of sums in another order


@dataclass(frozen=True)
class Converted:
    """The bytes that score, and the columns that they take, a category's texts in the order of its codes."""

    content: bytes
    columns: list[Column]
    required: list[str] = field(default_factory=list)  # columns of which the estimator takes no missing value


@dataclass(frozen=True)
class Judged:
    """A fitted estimator. `scores` are as it was judged, float32, shape (n_rows,) or (n_rows, n_classes)."""

    file: str  # of the folder
    objective: str
    names: ClassNames
    missing: float | None  # the number that is a missing value; None where NaN alone is
    categorical: bool  # whether it learns from pandas' categories, also where a frame has text
    tolerance: Tolerance | None  # None: to the bit
    advice: str  # what to do where its folder gives other scores
    scores: Callable[[pd.DataFrame], np.ndarray]
    convert: Callable[[pd.DataFrame, Sequence[Column]], Converted]


def judged(model: Any, missing: float | None, positive: Label | None, labels: Sequence[Label] | None) -> Judged:
    """Raises UsageError for what cannot be saved, with what to do. The libraries are imported where one made it."""
    libraries = {one.__module__.partition(".")[0] for one in type(model).__mro__}
    if "xgboost" in libraries:
        from runner.model import estimator

        return estimator.judged(model, missing, positive, labels)
    if missing is not None:
        raise UsageError(f"missing={missing} is for XGBoost's boosters; to others NaN alone is a missing value.")
    if "lightgbm" in libraries:
        from runner.model import lightgbm

        return lightgbm.judged(model, positive, labels)
    if "sklearn" in libraries and hasattr(model, "predict"):
        from runner.model import sklearn

        return sklearn.judged(model, positive, labels)
    kind = type(model).__name__
    raise UsageError(
        f"{'An' if kind[:1] in 'AEIOU' else 'A'} {kind} is none of what can be saved. {TAKEN}. Nothing is kept as a "
        "pickle, which can run code when it is loaded."
    )


def class_names(classes: Sequence[Any], positive: Label | None, labels: Sequence[Label] | None) -> ClassNames:
    """What the estimator's own classes are called, in the order of its probabilities.

    `positive` and `labels` may only say the same, or name classes that the estimator has as 0, 1, … Raises UsageError.
    """
    own = [plain(one) for one in classes]
    numbered = own in (list(range(len(own))), [False, True])
    if len(own) == 2:
        if labels is not None:
            raise UsageError("labels are for several classes. For two classes, say positive=….")
        if positive is None:
            return ClassNames(None if numbered else str(own[1]), None)
        if not numbered and str(plain(positive)) not in map(str, own):
            raise UsageError(f"positive={positive!r} is none of the estimator's classes, {_listed(own)}.")
        return ClassNames(str(plain(positive)), None)
    if positive is not None:
        raise UsageError(
            f"positive={positive!r} names one of two classes, and the model has {len(own)}: {_listed(own)}."
        )
    names = own if labels is None else [plain(one) for one in labels]
    same = len({str(name) for name in names}) == len(names) == len(own)
    if not same or not all(isinstance(one, Label) for one in names) or (names != own and not numbered):
        raise UsageError(f"labels={names!r:.200} are not the estimator's classes, {_listed(own)}, in their order.")
    return ClassNames(None, names)


def place_of_positive(classes: Sequence[Any], names: ClassNames) -> int:
    """Which of two probabilities the answer has."""
    texts = [str(plain(one)) for one in classes]
    return texts.index(names.positive) if names.positive in texts else 1


def plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def _listed(classes: Sequence[Any]) -> str:
    return f"{', '.join(map(repr, classes[:8]))}{', …' if len(classes) > 8 else ''}"
