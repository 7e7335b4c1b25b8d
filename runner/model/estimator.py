"""What `save` is given: a booster or a fitted estimator of XGBoost, and how it scores by itself.

Refuses what no record could be scored by as it was judged: rounds that are left open, a base margin, a number that is a
missing value and of which the booster knows nothing. Knows XGBoost's Python package, no folder.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from runner.errors import UsageError, counted
from runner.model.kinds import ROUNDING, ClassNames, Converted, Judged, plain
from runner.model.signature import Column, Label, distinct

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xgboost as xgb

ROUNDS = 50  # whose trees are looked at
# objectives whose estimated base score leaves no gradient at the first tree's root, where nothing else is in the margin
CENTRED = (
    "binary:logistic", "reg:logistic", "reg:squarederror", "count:poisson", "reg:gamma", "reg:tweedie",
    "multi:softprob", "multi:softmax",
)  # fmt: skip
PROBABLE = ("binary:logistic", "reg:logistic")  # give the probability of one label
DEFAULT_BASE = [0.5]  # a custom objective's, which is not estimated


@dataclass(frozen=True)
class Estimator:
    """`booster` has the rounds that score, and no more."""

    booster: xgb.Booster
    config: dict[str, Any]  # the booster's, of the learner
    missing: float | None  # the number that is a missing value; None where NaN alone is
    missing_is_known: bool  # and not assumed
    predict: Callable[[pd.DataFrame], Any]

    @property
    def objective(self) -> str:
        return str(self.config["objective"]["name"])

    @property
    def exact(self) -> bool:
        """Whether it scores on the same processor as a folder; others add in another order."""
        return str(self.config["generic_param"]["device"]) == "cpu"

    @property
    def advice(self) -> str:
        """What to do where its folder gives other scores."""
        if self.config["gradient_booster"]["name"] == "dart":
            return (
                "XGBoost's Booster.predict differs in the last bits of a dart model from inplace_predict, by which "
                "estimators and folders score. Save the fitted XGBClassifier or XGBRegressor."
            )
        return "Save the estimator that was judged, with the frame that it learned from."

    def scores(self, features: pd.DataFrame) -> np.ndarray:
        """As it was judged, float32. Raises UsageError with XGBoost's refusal."""
        import numpy as np

        try:
            return np.asarray(self.predict(features), dtype="float32")
        except Exception as error:  # whatever XGBoost and pandas raise for a frame
            first = (str(error).splitlines() or [type(error).__name__])[0]
            reason = re.sub(r"^\[[\d:]+\] \S+ (Check failed: [^:]*: )?", "", first).rstrip(".")
            names, at = list(features.columns), re.search(r"(\d+)`?(?:th|st|nd|rd)\b", reason)
            if at and int(at[1]) < len(names):
                reason = f"column {names[int(at[1])]} has a type or a category that it did not learn from"
            raise UsageError(
                f"XGBoost would not score the frame that the model is saved with: {reason}. Save it with the frame "
                "that it learned from."
            ) from error


def judged(model: Any, missing: float | None, positive: Label | None, labels: Sequence[Label] | None) -> Judged:
    """`missing` is DMatrix's, for a booster. Raises UsageError for what cannot be saved, with what to do."""
    own = estimator(model, missing)

    def convert(features: pd.DataFrame, columns: Sequence[Column]) -> Converted:
        check_columns(own, features)
        check_learned(own, features)
        return Converted(bytes(own.booster.save_raw("ubj")), in_tree_order(own, columns))

    return Judged(
        file="model.ubj",
        objective=own.objective,
        names=check_names(own, positive, labels),
        missing=own.missing,
        categorical=True,
        tolerance=None if own.exact else ROUNDING,
        advice=own.advice,
        scores=own.scores,
        convert=convert,
    )


def estimator(model: Any, missing: float | None = None) -> Estimator:
    """`missing` is DMatrix's, for a booster. Raises UsageError for what cannot be saved, with what to do."""
    import xgboost as xgb

    if isinstance(model, xgb.Booster):
        return _of_booster(model, missing)
    kind = type(model).__name__
    if not isinstance(model, xgb.XGBModel):
        inner = [f" Its `.{name}` may hold one." for name in ("best_estimator_", "steps") if hasattr(model, name)]
        raise UsageError(
            f"A {kind} is not a booster or an estimator of XGBoost, which is what a model folder holds."
            f"{''.join(inner)} What is done to the columns before goes into a module: save(…, code=…)."
        )
    if not model.__sklearn_is_fitted__():
        raise UsageError(f"The {kind} is not fitted. Fit it before it is saved.")
    missing_number = _number(model.missing)
    if missing is not None and _number(missing) != missing_number:
        raise UsageError(f"missing={missing} was given, and the {kind} was fitted with missing={model.missing}.")
    booster = model.get_booster()
    best = booster.attr("best_iteration")
    scoring_rounds = booster if best is None else _rounds(booster, int(best) + 1)
    # which predict_proba and predict make their answers of, by the best round
    predict = functools.partial(xgb.XGBModel.predict, model)
    return Estimator(scoring_rounds, _config(booster), missing_number, True, predict)


def _of_booster(booster: xgb.Booster, missing: float | None) -> Estimator:
    import xgboost as xgb

    config, rounds = _config(booster), booster.num_boosted_rounds()
    best = int(booster.attr("best_iteration") or rounds)
    if best + 1 < rounds:
        raise UsageError(
            f"The booster has {rounds} rounds and was best after {best + 1}: XGBoost's estimators score by those, its "
            f"Booster by all. Save the fitted estimator, or say which: booster[: {best + 1}], or booster[:] for all."
        )
    missing_number = math.nan if missing is None else missing

    def predict(features: pd.DataFrame) -> Any:
        return booster.predict(xgb.DMatrix(features, missing=missing_number, enable_categorical=True))

    return Estimator(booster, config, _number(missing), missing is not None, predict)


def check_names(judged: Estimator, positive: Label | None, labels: Sequence[Label] | None) -> ClassNames:
    """`positive` and `labels` as the signature has them. Raises UsageError where the scores are not of such."""
    several = judged.objective.startswith("multi:")
    if positive is not None and judged.objective not in PROBABLE:
        advice = "labels=[…] names the classes" if several else "leave it out, or train with binary:logistic"
        raise UsageError(
            f"positive={positive!r} names what a probability is of, and {judged.objective} gives none: {advice}."
        )
    targets = int(judged.config["learner_model_param"]["num_target"])
    if targets > 1 and judged.objective in PROBABLE:
        raise UsageError(
            f"The model gives {targets} probabilities of a record; an answer has one. Save a model for each."
        )
    if labels is None:
        return ClassNames(None if positive is None else str(plain(positive)), None)
    names, count = [plain(label) for label in labels], int(judged.config["learner_model_param"]["num_class"])
    if not several:
        raise UsageError(
            f"labels are for several classes; {judged.objective} has none. For two classes, say positive=…."
        )
    if (
        len(names) != count
        or len({str(label) for label in names}) != count
        or not all(isinstance(one, Label) for one in names)
    ):
        raise UsageError(
            f"labels needs {count} different texts or whole numbers, one for each class; it has {names!r:.200}."
        )
    return ClassNames(None, names)


def check_columns(judged: Estimator, features: pd.DataFrame) -> None:
    """Raises UsageError where the features are not those that the booster learned from, in their order."""
    booster, columns = judged.booster, list(features.columns)
    learned = booster.feature_names or (columns if booster.num_features() == len(columns) else [])
    if list(learned) == columns:
        return
    absent = [name for name in learned if name not in columns]
    further = [name for name in columns if name not in learned]
    differences = [f"lacks {', '.join(absent[:5])}"] if absent else []
    differences += [f"has the further {', '.join(further[:5])}"] if further else []
    raise UsageError(
        f"The frame has {counted(len(columns), 'column')}, the model learned from {booster.num_features()}: the frame "
        f"{' and '.join(differences) or 'has them in another order'}. Save it with the frame that it learned from."
    )


def in_tree_order(judged: Estimator, columns: Sequence[Column]) -> list[Column]:
    """The columns with the categories that the trees know, in the order of their codes.

    Raises UsageError where that order is not known.
    """
    ordered = []
    for column, names in zip(columns, learned(judged.booster), strict=True):
        if column.kind != "category" or names is None:
            ordered.append(column)
            continue
        texts = _texts(column.categories or [], names)
        if texts is None:
            raise UsageError(
                f"Column {column.name}: the categories are not those that the trees learned, in their order. Save the "
                "model with the frame that it learned from."
            )
        ordered.append(msgspec.structs.replace(column, categories=distinct(column.name, texts)))
    return ordered


def learned(booster: xgb.Booster) -> list[list[bytes] | None]:
    """Per feature the categories by their codes, None where it has none."""
    import pyarrow as pa

    categories: list[list[bytes] | None] = []
    for _, known in booster.get_categories(export_to_arrow=True).to_arrow():
        if known is None:
            categories.append(None)
        elif pa.types.is_integer(known.type):
            categories.append([str(value).encode() for value in known.to_pylist()])
        else:
            categories.append(known.cast(pa.binary()).to_pylist())
    return categories


def cut(texts: Sequence[str]) -> list[bytes]:
    """As XGBoost before 3.4 keeps them: joined, and cut where characters end, not bytes.

    https://github.com/dmlc/xgboost/pull/12371
    """
    joined, ends = "".join(texts).encode(), [0, *itertools.accumulate(map(len, texts))]
    return [joined[start:end] for start, end in itertools.pairwise(ends)]


def _texts(texts: list[str], names: list[bytes]) -> list[str] | None:
    """The names as text: by the frame's own texts where XGBoost has cut them. None where that cannot be."""
    whole, cuts = [text.encode() for text in texts], cut(texts)
    if names in (whole, cuts):
        return texts
    known: Mapping[bytes, str] = dict(zip(cuts, texts, strict=True)) | dict(zip(whole, texts, strict=True))
    plain = list(itertools.takewhile(bytes.isascii, names))  # what comes after another character may be cut
    decoded = [name.decode() if at < len(plain) else known.get(name) for at, name in enumerate(names)]
    return [one for one in decoded if one is not None] if None not in decoded else None


def check_learned(judged: Estimator, features: pd.DataFrame) -> None:
    """Raises UsageError where its trees say that they learned from what no record has."""
    trees = _trees(judged.booster)
    if trees and _has_margin(judged.config, trees):
        raise UsageError(
            "The booster was trained with a base margin, an offset that each row had and a record has not, so it would "
            "score otherwise. Train it without; the offset may be a column."
        )
    updaters = {updater["name"] for updater in judged.config["gradient_booster"].get("updater", [])}
    if judged.missing_is_known or updaters & {
        "grow_colmaker",
        "grow_gpu_hist",
        "grow_gpu_approx",
    }:  # whose trees do not tell
        return
    for name in _missed(trees, features):
        raise UsageError(
            f"The trees learned what to do where {name} is missing, and the frame has no missing value there. Save the "
            "fitted estimator, which knows what was missing to it; or the booster with missing=-999.0, if DMatrix was "
            'given that. missing=float("nan") says that only NaN was missing.'
        )


def _has_margin(config: dict[str, Any], trees: list[dict[str, Any]]) -> bool:
    """Whether the first round starts from another margin than the base score that was estimated from all labels.

    Only where that can be known: https://xgboost.readthedocs.io/en/stable/tutorials/intercept.html
    """
    model, objective = config["learner_model_param"], config["objective"]
    booster = config["gradient_booster"].get("gbtree", config["gradient_booster"])
    base = json.loads(model["base_score"])
    base = base if isinstance(base, list) else [base]
    if (
        objective["name"] not in CENTRED
        or model["boost_from_average"] != "1"
        or base == DEFAULT_BASE
        or not config["metrics"]  # loaded from a file, which does not say how it was trained
        or float(booster["tree_train_param"]["subsample"]) < 1
        or float(objective.get("reg_loss_param", {}).get("scale_pos_weight", 1)) != 1
        or booster["gbtree_train_param"]["process_type"] != "default"
        or config["learner_train_param"]["multi_strategy"] != "one_output_per_tree"
    ):
        return False
    first = trees[: max(1, len(base)) * int(booster["gbtree_model_param"]["num_parallel_tree"])]
    widest = max(abs(weight) for tree in first for weight in tree["base_weights"])
    start = max(abs(tree["base_weights"][0]) for tree in first)
    return bool(start > 1e-3 * widest + 1e-5 * max(map(abs, base)))


def _missed(trees: list[dict[str, Any]], features: pd.DataFrame) -> list[str]:
    """Columns of numbers without a missing value, for which a tree nevertheless has a side for missing values."""
    import numpy as np

    sides = np.zeros(features.shape[1], dtype=bool)
    for tree in trees:
        inner = (np.array(tree["left_children"]) >= 0) & (np.array(tree["split_type"]) == 0)
        sides[np.array(tree["split_indices"])[inner & (np.array(tree["default_left"]) == 1)]] = True
    return [str(features.columns[at]) for at in np.flatnonzero(sides) if not features.iloc[:, at].isna().any()]


def _trees(booster: xgb.Booster) -> list[dict[str, Any]]:
    # XGBoost writes one backslash before a u where JSON needs two: https://github.com/dmlc/xgboost, src/common/json.cc
    written = _rounds(booster, ROUNDS).save_raw("json").replace(rb"\u", rb"\\u")
    model = json.loads(written)["learner"]["gradient_booster"]
    trees: list[dict[str, Any]] = model.get("gbtree", model)["model"]["trees"]
    return trees


def _rounds(booster: xgb.Booster, count: int) -> xgb.Booster:
    return booster[:count] if 0 < count < booster.num_boosted_rounds() else booster


def _config(booster: xgb.Booster) -> dict[str, Any]:
    import xgboost as xgb

    try:
        learner: dict[str, Any] = json.loads(booster.save_config())["learner"]
    except xgb.core.XGBoostError as error:
        raise UsageError("The booster has learned nothing yet. Train it before it is saved.") from error
    if learner["gradient_booster"]["name"] == "gblinear":
        raise UsageError(
            "A model of booster=gblinear cannot be served: XGBoost does not predict with it in place, and has "
            "deprecated it. Train with gbtree or dart."
        )
    return learner


def _number(missing: float | None) -> float | None:
    return None if missing is None or not math.isfinite(missing) else float(missing)
