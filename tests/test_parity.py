"""A saved model scores as the estimator that was judged, by every reader of records; or it is not saved, with a sentence."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from support.projects import Project
from support.served import approved
from support.some import some

import runner.model
import runner.serve.openapi
from runner.errors import Refused, RunnerError, UsageError
from runner.model.registry import LocalRegistry
from runner.model.signature import BadRecords
from runner.scoring.fast_reading import quick
from runner.scoring.inference import BadInput, Scorer
from runner.serve.approved import load
from runner.serve.describe import openapi, page, sample_of

JSON, LINES = "application/json", "application/jsonlines"


def scorers(folder: Path) -> Iterator[Scorer]:
    """As `runner serve` reads, and as an endpoint's container does."""
    for served in (True, False):
        made = Scorer({file.name: file.read_bytes() for file in folder.iterdir()}).self_test()
        if served:
            made.quick = quick(made)
        yield made


def fields(value: Any) -> Any:
    return "" if value is None else value


def plain(frame: pd.DataFrame) -> list[list[Any]]:
    """The rows as a caller has them: Python's own values, None where one is missing."""
    columns = [frame[name].astype("object").where(frame[name].notna(), None).tolist() for name in frame.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def as_csv(rows: list[list[Any]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[fields(value) for value in row] for row in rows])
    return file.getvalue().encode()


def assert_everywhere(folder: Path, frame: pd.DataFrame, expected: np.ndarray, only: int | None = None) -> None:
    """All readers give these scores, to the bit; `only` picks one request for each of them."""
    assert runner.model.load(folder).predict(frame).tobytes() == expected.tobytes()
    names, rows = list(frame.columns), plain(frame)
    by_name = [dict(zip(names[::-1], row[::-1], strict=True)) | {"not used ": [{}]} for row in rows]
    turned = [["x", *row[::-1]] for row in rows]
    requests = [
        (json.dumps(by_name).encode(), JSON),
        (json.dumps({"instances": rows}).encode(), JSON),
        ("\n".join(map(json.dumps, by_name)).encode(), LINES),
        (as_csv([names, *rows]), "text/csv; header=present"),
        (as_csv([["not used ", *names[::-1]], *turned]), "text/csv; header=present"),
        (as_csv(rows), "text/csv; header=absent"),
    ]
    for at, scorer in enumerate(scorers(folder)):
        for body, kind in requests if only is None else [requests[(only + at) % len(requests)]]:
            assert scorer.score(scorer.table(body, kind)).tobytes() == expected.tobytes(), (body, kind)
        alone = [scorer.score(scorer.table(json.dumps(row).encode(), JSON)) for row in by_name[:3]]
        assert np.concatenate(alone).tobytes() == expected[:3].tobytes()


def numbers(rows: int = 600) -> tuple[pd.DataFrame, pd.Series]:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(rows, 2)), columns=["tenure", "charges"])
    return frame, (frame.sum(axis=1) > 0).astype(int)


def categories(known: list[Any], rows: int = 240) -> tuple[pd.DataFrame, pd.Series]:
    """A category that alone decides, and a number."""
    values = np.array(known, dtype="object")[np.arange(rows) % len(known)]
    frame = pd.DataFrame({"plan": pd.Categorical(values), "n": np.arange(rows) % 7 * 1.5})
    return frame, (frame["plan"].astype("object") == known[0]).astype(int)


def trained(
    frame: Any, answers: Any, rounds: int = 5, data: dict[str, Any] | None = None, **options: Any
) -> xgb.Booster:
    matrix = xgb.DMatrix(frame, answers, enable_categorical=True, **(data or {}))
    return xgb.train({"objective": "binary:logistic", "nthread": 1, **options}, matrix, rounds)


def judged(booster: xgb.Booster, frame: pd.DataFrame) -> np.ndarray:
    scores: np.ndarray = booster.predict(xgb.DMatrix(frame, enable_categorical=True))
    return scores


def refused(folder: Path, model: Any, frame: pd.DataFrame, **options: Any) -> str:
    with pytest.raises(UsageError) as error:
        runner.model.save(folder, model, frame, target="y", **options)
    assert not folder.exists()
    assert not list(folder.parent.glob(".*"))
    return str(error.value)


# What an estimator knows and its booster does not


def test_an_estimator_is_saved_with_its_best_round_and_a_booster_that_has_more_is_refused(tmp_path: Path) -> None:
    frame, answers = numbers(3000)
    fitted = xgb.XGBClassifier(n_estimators=500, early_stopping_rounds=50, n_jobs=1)
    fitted.fit(frame[:2000], answers[:2000], eval_set=[(frame[2000:], answers[2000:])], verbose=False)
    booster, best = fitted.get_booster(), fitted.best_iteration + 1
    assert best < booster.num_boosted_rounds()
    runner.model.save(tmp_path / "best", fitted, frame, target="y", positive="1")
    assert_everywhere(tmp_path / "best", frame, fitted.predict_proba(frame)[:, 1])
    said = refused(tmp_path / "all", booster, frame)
    assert f"was best after {best}" in said
    assert f"booster[: {best}]" in said
    for kept in (booster[:best], booster[:]):
        runner.model.save(tmp_path / "cut", kept, frame, target="y")
        assert_everywhere(tmp_path / "cut", frame, judged(kept, frame))


def test_a_number_that_means_missing_is_kept_and_a_booster_that_saw_one_is_refused(tmp_path: Path) -> None:
    frame, answers = numbers()
    frame.loc[::7, "charges"] = -999.0
    fitted = xgb.XGBClassifier(missing=-999.0, n_estimators=20, n_jobs=1).fit(frame, answers)
    runner.model.save(tmp_path / "model", fitted, frame, target="y")
    expected = fitted.predict_proba(frame)[:, 1]
    assert_everywhere(tmp_path / "model", frame, expected)
    assert_everywhere(tmp_path / "model", frame.replace(-999.0, np.nan), expected)
    said = refused(tmp_path / "booster", fitted.get_booster(), frame)
    assert "charges is missing, and the frame has no missing value there" in said
    assert "missing=-999.0" in said
    runner.model.save(tmp_path / "told", fitted.get_booster(), frame, target="y", missing=-999.0)
    assert_everywhere(tmp_path / "told", frame, expected)
    assert "fitted with missing=-999.0" in refused(tmp_path / "other", fitted, frame, missing=-1.0)


@pytest.mark.parametrize(
    "objective", ["binary:logistic", "reg:squarederror", "count:poisson", "reg:gamma", "reg:tweedie", "multi:softprob"]
)
def test_a_base_margin_is_noticed_and_weights_are_not_taken_for_one(tmp_path: Path, objective: str) -> None:
    frame, answers = numbers()
    classes = {"num_class": 3} if objective.startswith("multi") else {}
    answers = answers + (frame["tenure"] > 1) if classes else answers + (0.0 if "logistic" in objective else 0.5)
    margin = 1.5 * frame["charges"].to_numpy()
    margin = np.column_stack([margin, -margin, margin * 0]) if classes else margin
    weights = np.random.default_rng(1).random(len(frame))
    with_margin = trained(frame, answers, data={"base_margin": margin}, objective=objective, **classes)
    assert "trained with a base margin" in refused(tmp_path / "margin", with_margin, frame)
    for options in (
        {"data": {"weight": weights}},
        {"subsample": 0.5},
        {"alpha": 1.0, "lambda": 0.0},
        {"base_score": 0.4},
    ):
        plain = trained(frame, answers, objective=objective, **classes, **options)
        runner.model.save(tmp_path / "model", plain, frame, target="y")
        assert_everywhere(tmp_path / "model", frame[:50], judged(plain, frame[:50]))


def test_what_is_no_probability_is_not_called_one(tmp_path: Path) -> None:
    frame, answers = numbers()

    def gradients(margins: np.ndarray, data: xgb.DMatrix) -> tuple[np.ndarray, np.ndarray]:
        return 1 / (1 + np.exp(-margins)) - data.get_label(), np.full(len(margins), 0.2)

    custom = xgb.train({"nthread": 1}, xgb.DMatrix(frame, answers), 5, obj=gradients)
    hidden = xgb.train({"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(frame, answers), 5, obj=gradients)
    for model in (
        custom,
        trained(frame, answers, objective="binary:logitraw"),
        trained(frame, answers, objective="binary:hinge"),
    ):
        assert "leave it out, or train with binary:logistic" in refused(tmp_path / "chance", model, frame, positive="1")
        runner.model.save(tmp_path / "model", model, frame, target="y")
        assert_everywhere(tmp_path / "model", frame, judged(model, frame))
        scorer = next(scorers(tmp_path / "model"))
        assert scorer.answers(judged(model, frame)[:1])[1] is None
    runner.model.save(tmp_path / "model", hidden, frame, target="y", positive="1")
    assert_everywhere(tmp_path / "model", frame, judged(hidden, frame))


@pytest.mark.parametrize("booster", ["dart", "forest", "exact", "approx", "gblinear"])
def test_other_boosters_are_served_or_refused(tmp_path: Path, booster: str) -> None:
    frame, answers = numbers(500)
    frame.loc[::9, "charges"] = np.nan
    options: dict[str, Any] = {
        "dart": {"booster": "dart", "rate_drop": 0.5}, "forest": {"num_parallel_tree": 4, "subsample": 0.5},
        "exact": {"tree_method": "exact"}, "approx": {"tree_method": "approx"}, "gblinear": {"booster": "gblinear"},
    }[booster]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gblinear is deprecated
        model = trained(frame, answers, **options)
    if booster in ("gblinear", "dart"):
        do = "Train with gbtree or dart" if booster == "gblinear" else "differs in the last bits of a dart model"
        assert do in refused(tmp_path / "model", model, frame)
        return
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))


def test_an_estimator_of_dart_is_served(tmp_path: Path) -> None:
    frame, answers = numbers(500)
    fitted = xgb.XGBClassifier(booster="dart", rate_drop=0.5, n_estimators=5, n_jobs=1).fit(frame, answers)
    runner.model.save(tmp_path / "model", fitted, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, fitted.predict_proba(frame)[:, 1])


def test_an_exact_booster_is_not_suspected_for_the_side_it_gives_what_is_missing(tmp_path: Path) -> None:
    frame, answers = numbers(300)
    model = trained(frame, answers, tree_method="exact")
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))


def test_what_is_not_an_xgboost_model_is_named(tmp_path: Path) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    frame, answers = numbers(300)
    pipe = make_pipeline(StandardScaler(), xgb.XGBClassifier(n_estimators=2, n_jobs=1)).fit(frame, answers)
    said = refused(tmp_path / "model", pipe, frame)
    assert "The pipeline ends in a XGBClassifier, which ONNX would score otherwise" in said
    assert "save(…, code=…)" in said
    assert "is not fitted" in refused(tmp_path / "model", xgb.XGBClassifier(), frame)
    model = trained(frame, answers)
    assert "has them in another order" in refused(tmp_path / "model", model, frame[["charges", "tenure"]])
    assert "lacks tenure" in refused(tmp_path / "model", model, frame[["charges"]])


# Names of classes


@pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax"])
@pytest.mark.parametrize("labels", [["low", "mid", "high"], np.array([10, 20, 30]), None])
def test_an_answer_has_the_name_of_its_class(tmp_path: Path, objective: str, labels: Any) -> None:
    frame, answers = numbers()
    answers = answers + (frame["tenure"] > 1)
    model = trained(frame, answers, objective=objective, num_class=3)
    runner.model.save(tmp_path / "model", model, frame, target="size", labels=labels)
    scores = judged(model, frame)
    assert_everywhere(tmp_path / "model", frame, scores)
    for scorer in scorers(tmp_path / "model"):
        said = json.loads(scorer.reply(scores, JSON)[0])["predictions"]
        names = list(range(3)) if labels is None else list(labels)
        found = scores.argmax(axis=1) if scores.ndim == 2 else scores.astype(int)
        assert [one["prediction"] for one in said] == [names[at] for at in found]
        assert {type(one["prediction"]) for one in said} == {str if names[0] == "low" else int}
        assert [one.get("probability") for one in said] == (
            scores.max(axis=1).tolist() if scores.ndim == 2 else [None] * len(frame)
        )
    assert "labels=[…] names the classes" in refused(tmp_path / "p", model, frame, positive="high")
    assert "needs 3 different" in refused(tmp_path / "l", model, frame, labels=["a", "b"])
    assert "needs 3 different" in refused(tmp_path / "l", model, frame, labels=["a", "b", "b"])


KINDS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "named": (
        {"objective": "multi:softprob", "num_class": 3},
        ["low", "mid", "high"],
        {"enum": ["low", "mid", "high"]},
    ),
    "hard": ({"objective": "multi:softmax", "num_class": 3}, ["low", "mid", "high"], {"enum": ["low", "mid", "high"]}),
    "numbered": ({"objective": "multi:softprob", "num_class": 3}, None, "integer"),
    "two numbers": ({"objective": "reg:squarederror"}, None, "array"),
    "one number": ({"objective": "binary:logitraw"}, None, "number"),
    "probable": ({}, None, "boolean"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_an_answer_is_what_is_answered(project: Project, kind: str) -> None:
    options, labels, type_ = KINDS[kind]
    frame, answers = numbers(300)
    target = {"two numbers": frame.to_numpy(), "one number": answers, "probable": answers}.get(
        kind, answers + (frame["tenure"] > 1)
    )

    def make(folder: Path) -> None:
        runner.model.save(folder, trained(frame, target, **options), frame, target="size", labels=labels)

    folder = approved(project, make)
    version = LocalRegistry(project.folder / "runs/registry.db").get("tiny", 1)
    scorer = load(version, folder)
    sample = json.dumps(list(sample_of(scorer).values())).encode()
    answer = json.loads(scorer.reply(scorer.score(scorer.table(b"[" + sample + b"]", JSON)), JSON)[0])
    rest = runner.serve.openapi.openapi(runner.model.load(folder).signature, version, url="https://x.example")
    for described, schema in ((openapi(scorer, version, 2**20), "Predictions"), (rest, "Prediction")):
        validate(described)
        said = described["components"]["schemas"][schema]
        one = said["properties"]["predictions"]["items"] if schema == "Predictions" else said
        prediction = one["properties"]["prediction"]
        assert prediction.get("type", prediction.get("enum")) == (type_ if isinstance(type_, str) else type_["enum"])
        assert ("probability" in one["properties"]) == ("probability" in answer["predictions"][0])
    example = rest["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert {**example, "model": None} == {**answer["predictions"][0], "model": None}
    html, _ = page(scorer, version)
    assert ("Says which size of low, mid, high." in html) == (labels is not None)


@pytest.mark.parametrize("positive", [True, 1, np.int64(1), np.True_, "True."])
def test_a_label_may_be_of_any_plain_type(tmp_path: Path, positive: Any) -> None:
    frame, answers = numbers(300)
    runner.model.save(tmp_path / "model", trained(frame, answers), frame, target="y", positive=positive)
    assert runner.model.load(tmp_path / "model").signature.positive == str(positive)


def test_several_numbers_are_served_as_such_and_several_probabilities_refused(tmp_path: Path) -> None:
    frame, answers = numbers(300)
    both = np.column_stack([answers, 1 - answers])
    model = trained(frame, both, objective="reg:squarederror")
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))
    scorer = next(scorers(tmp_path / "model"))
    said = json.loads(scorer.reply(judged(model, frame), JSON)[0])["predictions"]
    assert [one["prediction"] for one in said] == judged(model, frame).tolist()
    assert "Save a model for each" in refused(tmp_path / "many", trained(frame, both), frame)


# Categories to the byte


@pytest.mark.parametrize(
    "known",
    [["gold", ""], ["gold", " "], ["gold", " basic", "silver", " basic"], ["basic ", "basic"], ["408.0", "415.0", "510.0"], [0, 1, 2],
     ["nan", "None", "null"], ["True", "true"], ["a,b", 'say "a"', "a\nb", "a\r\nb"], ["süd", "öst", "模型"], ["657", "+657", "0657"], ["1e3", "1000.5"]],
)  # fmt: skip
def test_a_category_is_kept_to_the_byte(tmp_path: Path, known: list[Any]) -> None:
    frame, answers = categories(known)
    model = trained(frame, answers)
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))
    signature = runner.model.load(tmp_path / "model").signature
    assert signature.columns[0].categories == [str(one) for one in frame["plan"].cat.categories]


def test_only_what_matches_no_category_is_read_as_the_text_of_a_number(tmp_path: Path) -> None:
    frame, answers = categories(["408.0", "415", " gold"])
    runner.model.save(tmp_path / "model", trained(frame, answers), frame, target="y")
    model = runner.model.load(tmp_path / "model")
    known = {
        text: float(model.predict(pd.DataFrame({"plan": [text], "n": [1.5]}))[0]) for text in ("408.0", "415", " gold")
    }
    for scorer in scorers(tmp_path / "model"):
        for value, text in (
            (408, "408.0"),
            (408.0, "408.0"),
            ("408", "408.0"),
            (" 408.00 ", "408.0"),
            (415.0, "415"),
            ("415.0", "415"),
        ):
            body = json.dumps({"plan": value, "n": 1.5}).encode()
            assert float(scorer.score(scorer.table(body, JSON))[0]) == known[text]
            assert model.predict(pd.DataFrame({"plan": [value], "n": [1.5]})).tolist() == [known[text]]
        for value in ("gold", " gold ", "Gold", 408.5, True, "4e2"):
            with pytest.raises(BadInput, match="is not a known category"):
                scorer.score(scorer.table(json.dumps({"plan": value, "n": 1.5}).encode(), JSON))
            with pytest.raises(BadRecords, match="is not a known category"):
                model.predict(pd.DataFrame({"plan": [value], "n": [1.5]}))


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["408", "408.0"], "the categories '408' and '408.0' are one to whoever sends a number"),
        (["7", " 7"], "are one to whoever sends a number"),
        (["gold", "", None], "CSV writes a missing value and the category '' alike"),
    ],
)
def test_categories_that_a_reader_would_make_one_are_refused(tmp_path: Path, known: list[Any], said: str) -> None:
    frame, answers = categories(known)
    assert said in refused(tmp_path / "model", trained(frame, answers), frame)


def test_the_column_that_xgboost_does_not_take_is_named(tmp_path: Path) -> None:
    frame, answers = categories([0, 1, 2])
    model = trained(frame, answers)
    said = refused(tmp_path / "model", model, frame.assign(plan=frame["plan"].astype(str)))
    assert "column plan has a type or a category that it did not learn from. Save it with the frame" in said
    assert "0-based" not in said


def test_the_categories_order_is_the_trees(tmp_path: Path) -> None:
    frame, answers = categories(["gold", "basic", "silver"])
    learned = frame.assign(plan=frame["plan"].cat.set_categories(["silver", "more", "gold", "basic"]))
    model = trained(learned, answers)
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, learned))
    signature = runner.model.load(tmp_path / "model").signature
    assert signature.columns[0].categories == ["silver", "more", "gold", "basic"]
    odd, answers = categories(["süd", "öst", "模型"])
    model = trained(odd.assign(plan=odd["plan"].cat.set_categories(["模型", "öst", "süd"])), answers)
    assert "Column plan: the categories are not those that the trees learned" in refused(tmp_path / "odd", model, odd)


# Rows, columns and code


def test_the_first_row_that_differs_is_named_with_its_values_and_both_scores(tmp_path: Path) -> None:
    frame, answers = numbers()
    model = trained(frame, answers, 2)
    frame["charges"] = frame["charges"].mask(frame.index == 271, np.inf)
    assert "Row 272, column charges: inf is not a finite number" in refused(tmp_path / "model", model, frame)
    frame, answers = categories(["gold", ""])
    model = trained(frame, answers)
    frame.loc[201, "plan"] = None
    said = refused(tmp_path / "model", model, frame)
    assert re.search(r"Row 202 of the frame is read otherwise from CSV, where plan is '' and not None", said)
    assert re.search(r"it scores 0\.\d+, and from there 0\.\d+, so the model was not saved", said)
    assert "(plan=None, n=7.5)" in said


def test_a_column_named_by_a_number_is_read_where_the_header_is_told(tmp_path: Path) -> None:
    frame, answers = numbers(300)
    frame.columns = ["0", "1"]
    model = trained(frame, answers)
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))
    for scorer in scorers(tmp_path / "model"):
        with pytest.raises(BadInput, match="may be a header or a record"):
            scorer.table(b"0,1\n1,0\n", "text/csv")
        assert len(scorer.score(scorer.table(b"0.5,1.5\n1,0\n", "text/csv"))) == 2


def test_a_column_may_have_backslashes_in_its_name(tmp_path: Path) -> None:
    frame, answers = numbers(300)
    frame.columns = ["C:\\users", r"\\u12"]  # XGBoost's own JSON of these cannot be read
    model = trained(frame, answers)
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert_everywhere(tmp_path / "model", frame, judged(model, frame))


def test_the_sample_stands_in_the_models_order(tmp_path: Path) -> None:
    frame, answers = numbers(300)
    runner.model.save(tmp_path / "model", trained(frame, answers), frame, target="y")
    signature = json.loads((tmp_path / "model" / "signature.json").read_text())
    assert list(signature["sample_request"]) == ["tenure", "charges"]
    for scorer in scorers(tmp_path / "model"):
        body = json.dumps([list(signature["sample_request"].values())]).encode()
        assert scorer.score(scorer.table(body, JSON)).tolist() == [signature["sample_prediction"]]


DATES = """
import pandas as pd


def transform(frame):
    day = pd.to_datetime(frame["day"])
    return pd.DataFrame({"year": day.dt.year.astype("float64"), "plan": frame["plan"].astype("category")})
"""


def test_text_that_code_reads_is_open(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text(DATES)
    days = pd.Series(pd.date_range("2010-01-01", periods=600, freq="W").astype(str)).mask(
        lambda one: one.index % 9 == 0
    )
    frame = pd.DataFrame({"day": days, "plan": np.where(np.arange(600) % 2, "gold", "basic")})
    scope: dict[str, Any] = {}
    exec(DATES, scope)
    answers = (scope["transform"](frame)["year"] > 2015).astype(int)
    model = trained(scope["transform"](frame), answers)
    runner.model.save(tmp_path / "model", model, frame, target="y", code=tmp_path / "features.py")
    assert_everywhere(tmp_path / "model", frame, judged(model, scope["transform"](frame)))
    loaded = runner.model.load(tmp_path / "model")
    assert [column.kind for column in loaded.signature.columns] == ["text", "text"]
    later = loaded.predict(pd.DataFrame({"day": ["2031-03-01", None, ""], "plan": ["gold"] * 3}))
    assert later[0] > 0.5 > later[1] == later[2]
    with pytest.raises(BadRecords, match="Row 1, column plan: 'iron' is not a known category"):
        loaded.predict(pd.DataFrame({"day": ["2031-03-01"], "plan": ["iron"]}))
    with pytest.raises(BadRecords, match="Row 1, column day: a list is not text"):
        loaded.predict(pd.DataFrame({"day": [["2031-03-01"]], "plan": ["gold"]}))


def test_features_that_depend_on_other_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text("def transform(frame):\n    return frame - frame.mean()\n")
    frame, answers = numbers(300)
    said = refused(tmp_path / "model", trained(frame - frame.mean(), answers), frame, code=tmp_path / "features.py")
    assert "among the others and" in said
    assert "A record's features must follow from that record" in said


def test_code_that_reads_a_type_that_no_request_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text(
        "def transform(frame):\n    return frame.assign(n=frame.n.map(type).eq(int) * 1.0)\n"
    )
    frame = pd.DataFrame({"n": np.arange(300), "x": np.arange(300) % 7 * 1.0})
    model = trained(frame.assign(n=1.0), frame["x"] > 3)
    runner.model.save(tmp_path / "model", model, frame[["n", "x"]], target="y", code=tmp_path / "features.py")
    model = trained(frame.assign(n=frame["x"]), frame["x"] > 3)
    (tmp_path / "features.py").write_text(
        "def transform(frame):\n    return frame.assign(n=frame.x if frame.n.dtype == 'int64' else 0.0)\n"
    )
    said = refused(tmp_path / "other", model, frame, code=tmp_path / "features.py")
    assert "by the estimator and" in said


def test_a_row_far_down_is_found_and_a_large_frame_is_scored_whole(tmp_path: Path) -> None:
    """Requests are made of its first rows, and of each that has something new."""
    frame, answers = categories(["gold", "", "basic"], 45_000)
    model = trained(frame, answers, 2)
    runner.model.save(tmp_path / "model", model, frame, target="y")
    assert runner.model.load(tmp_path / "model").predict(frame).tobytes() == judged(model, frame).tobytes()
    frame.loc[38_000, "plan"] = None
    assert "Row 38001 of the frame is read otherwise from CSV" in refused(tmp_path / "other", model, frame)
    frame.loc[38_000, "plan"] = "gold"
    frame["n"] = frame["n"].mask(frame.index == 44_000, np.inf)
    assert "Row 44001, column n: inf is not a finite number" in refused(tmp_path / "other", model, frame)


# Folders that an earlier version saved


def earlier(folder: Path, model: xgb.Booster, frame: pd.DataFrame, **said: Any) -> Path:
    """The folder as format 1 had it."""
    runner.model.save(folder, model, frame, target="y")
    path = folder / "signature.json"
    signature = json.loads(path.read_text()) | {"format": 1} | said
    path.write_text(json.dumps({name: value for name, value in signature.items() if name not in ("labels", "missing")}))
    return folder


def test_an_earlier_folder_is_loaded_where_it_scores_as_it_should(tmp_path: Path) -> None:
    from runner.aws.package import package

    frame, answers = categories(["gold", "657", "südost"])
    model = trained(frame, answers)
    folder = earlier(tmp_path / "model", model, frame)
    assert_everywhere(folder, frame, judged(model, frame))
    assert package(folder).files["model.ubj"]
    columns = json.loads((folder / "signature.json").read_text())["columns"]
    columns[0]["categories"].reverse()
    spaced, answers = categories([" gold", "basic"])
    ours = earlier(tmp_path / "spaced", trained(spaced, answers), spaced)
    stripped = json.loads((ours / "signature.json").read_text())["columns"]
    stripped[0]["categories"] = ["gold", "basic"]
    for wrong in (
        earlier(tmp_path / "turned", model, frame, columns=columns),
        earlier(tmp_path / "stripped", trained(spaced, answers), spaced, columns=stripped),
        earlier(tmp_path / "raw", trained(frame, frame["n"] > 3, objective="binary:logitraw"), frame, positive="yes"),
    ):
        for read in (runner.model.load, package):
            with pytest.raises(
                Refused,
                match=r"(not those of its trees, in their order|and it is not one)\. An earlier version of runner saved it",
            ):
                read(wrong)


# Any frame, any objective


FAMILIES = {
    "binary": ["binary:logistic", "binary:logitraw", "binary:hinge", "reg:logistic"],
    "several": ["multi:softprob", "multi:softmax"],
    "number": [
        "reg:squarederror", "reg:squaredlogerror", "reg:pseudohubererror", "reg:absoluteerror", "reg:quantileerror",
        "reg:gamma", "reg:tweedie", "count:poisson", "custom",
    ],
    "other": ["survival:cox", "survival:aft", "rank:ndcg", "rank:map", "rank:pairwise"],
}  # fmt: skip
TWISTS: dict[str, dict[str, Any]] = {
    "codes": {}, "frame": {}, "estimator": {}, "marked": {}, "best": {}, "weights": {},
    "dart": {"booster": "dart", "rate_drop": 0.5}, "exact": {"tree_method": "exact"}, "forest": {"num_parallel_tree": 2},
}  # fmt: skip
any_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="[]<\0"), max_size=3
)  # which XGBoost takes
names = any_text | st.sampled_from(
    ["a", "b", "0", "1", "2.5", " a", "a ", "", " ", "A", "true", "instances", "a,b", 'say "a"', "a\nb", "süd", "模型", "None", "nan",
     "\ufeffx", "x" * 60, "label", "weight", "missing", "\t", "a;b", "-", "=1+1", "\u202e", "\r"]
)  # fmt: skip
texts = any_text | st.sampled_from(
    ["gold", "basic", "", " ", " gold", "gold ", "1", "1.0", "01", "+1", "1e0", "0", "true", "True", "nan", "NaN", "None", "null",
     "inf", "a,b", 'say "a"', "a\nb", "\r", "süd", "öst", "模型", "\ufeff", "a", "b", "657.0", "-0", "=1", "\u2028", "\x1c"]
)  # fmt: skip
wholes = st.integers(-2, 3) | st.integers(-(2**60), 2**60)
Chance = np.random.Generator


def gaps(chance: Chance, rows: int, values: Any, dtype: str) -> Any:
    return pd.array(
        [None if none else value for none, value in zip(chance.random(rows) < 0.3, values, strict=True)], dtype=dtype
    )


NUMBERS: dict[str, Callable[[Chance, int], Any]] = {
    "float64": lambda chance, rows: chance.normal(size=rows),
    "float32": lambda chance, rows: chance.normal(size=rows).astype("float32"),
    "with gaps": lambda chance, rows: np.where(chance.random(rows) < 0.3, np.nan, chance.normal(size=rows).round(1)),
    "far": lambda chance, rows: chance.choice([0.0, -0.0, 1e-45, 3.4e38, -3.4e38, 1e30, 0.1, 1 / 3, 2**53 + 2.0], rows),
    "marked": lambda chance, rows: chance.choice([-999.0, 1.5, 2.5, 4.0], rows),
    "int64": lambda chance, rows: chance.integers(-5, 5, rows),
    "huge": lambda chance, rows: chance.integers(-(2**62), 2**62, rows),
    "uint8": lambda chance, rows: chance.integers(0, 255, rows).astype("uint8"),
    "Int64": lambda chance, rows: gaps(chance, rows, chance.integers(0, 9, rows), "Int64"),
    "Float64": lambda chance, rows: gaps(chance, rows, chance.random(rows), "Float64"),
    "bool": lambda chance, rows: chance.random(rows) < 0.5,
    "boolean": lambda chance, rows: gaps(chance, rows, chance.random(rows) < 0.5, "boolean"),
}  # fmt: skip
RARE: dict[str, Callable[[Chance, int], Any]] = {
    "infinite": lambda chance, rows: chance.choice([0.0, 1.0, np.inf, 1e39], rows),
    "objects": lambda chance, rows: gaps(chance, rows, (chance.random(rows) < 0.5).tolist(), "object"),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[pd.DataFrame, int]:
    """A frame of 1 to 12 rows, and the seed of all else that is random."""
    seed, rows = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 12))
    chance, columns = np.random.default_rng(seed), {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        kind = draw(st.sampled_from([*["texts"] * 6, "wholes", "wholes", *list(NUMBERS) * 2, "infinite", "objects"]))
        if make := (NUMBERS | RARE).get(kind):
            columns[name] = make(chance, rows)
            continue
        known = draw(st.lists(texts if kind == "texts" else wholes, min_size=1, max_size=4, unique=True))
        codes = chance.integers(-(chance.random() < 0.3), len(known), rows)
        columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(known), ordered=bool(seed % 2))
    return pd.DataFrame(columns), seed


def answers_of(objective: str, rows: int, chance: Chance) -> np.ndarray:
    if objective.startswith("multi:"):
        return np.resize(np.arange(3), rows)
    return np.resize([0, 1], rows) if objective.startswith(("binary:", "rank:")) else chance.random(rows) * 0.8 + 0.1


def squares(margins: np.ndarray, data: xgb.DMatrix) -> tuple[np.ndarray, np.ndarray]:
    return margins - data.get_label(), np.ones(len(margins))


def settings_of(objective: str, twist: str, seed: int) -> dict[str, Any]:
    made = {"max_depth": 2, "min_child_weight": 0, "max_cat_to_onehot": 1 + seed % 4, **TWISTS[twist]}
    made |= {"num_class": 3} if objective.startswith("multi:") else {}
    made |= {"quantile_alpha": 0.5} if "quantile" in objective else {}
    return made if objective == "custom" else {**made, "objective": objective}


def boosted(frame: Any, objective: str, twist: str, seed: int, **data: Any) -> xgb.Booster:
    chance = np.random.default_rng(seed + 1)
    rows = len(frame)
    answers = answers_of(objective, rows, chance)
    if twist == "weights":
        data["weight"] = chance.random(rows)
    if objective.startswith("rank:"):
        data |= {"qid": np.zeros(rows), "weight": None}
    if objective == "survival:aft":
        data |= {"label_lower_bound": answers, "label_upper_bound": answers}
    matrix = xgb.DMatrix(frame, answers, enable_categorical=True, nthread=1, **data)
    options = {"nthread": 1, **settings_of(objective, twist, seed)}
    return xgb.train(options, matrix, 2, obj=squares if objective == "custom" else None)


@functools.cache
def of_codes(kinds: tuple[str, ...], objective: str) -> xgb.Booster:
    """Trees that know no names: of any frame with columns of these kinds, where a category is its code."""
    matrix = np.random.default_rng(5).integers(0, 4, (40, len(kinds))).astype("float64")
    return boosted(matrix, objective, "codes", 2, feature_types=list(kinds))


def fitted(frame: pd.DataFrame, objective: str, twist: str, seed: int) -> Any:
    """An estimator, whose `missing` may be a number, and whose best round may be another than its last."""
    options = settings_of(objective, twist, seed) | {"n_estimators": 3, "n_jobs": 1, "enable_categorical": True}
    options |= {"missing": -999.0} if twist == "marked" else {}
    answers = answers_of(objective, len(frame), np.random.default_rng(seed))
    if objective.startswith("rank:"):
        return xgb.XGBRanker(**options).fit(frame, answers, qid=np.zeros(len(frame)))
    if objective == "custom":
        options["objective"] = lambda truth, margins: (margins - truth, np.ones(len(truth)))
    kind = xgb.XGBClassifier if objective.startswith(("binary:", "multi:")) else xgb.XGBRegressor
    if twist != "best":
        return kind(**options).fit(frame, answers)
    made = kind(**options | {"n_estimators": 8, "early_stopping_rounds": 2})
    return made.fit(frame, answers, eval_set=[(frame[::-1], answers)], verbose=False)


def model_of(frame: pd.DataFrame, objective: str, twist: str, seed: int) -> tuple[Any, np.ndarray]:
    """What is given to save, and the scores by which it is judged. Raises as XGBoost does where it cannot learn."""
    if twist in ("estimator", "marked", "best") and objective not in ("survival:aft", "multi:softmax"):
        made = fitted(frame, objective, twist, seed)
        return made, np.asarray(xgb.XGBModel.predict(made, frame), dtype="float32")
    if twist == "codes":
        made = of_codes(tuple("c" if dtype == "category" else "q" for dtype in frame.dtypes), objective)
    else:
        made = boosted(frame, objective, twist, seed)
    return made, judged(made, frame)


def outcome(folder: Path, frame: pd.DataFrame, objective: str, twist: str, seed: int, *, all_requests: bool) -> str:
    """Saved, and then every reader gives the scores by which it was judged; or refused, or XGBoost could not learn."""
    try:
        model, expected = model_of(frame, objective, twist, seed)
    except (AssertionError, TypeError, ValueError, xgb.core.XGBoostError):  # a NUL, brackets in a name, …
        return "not learned"
    positive = {"positive": "yes"} if seed % 3 == 0 else {}
    try:
        runner.model.save(folder, model, frame, target="y", **positive)
    except RunnerError as error:
        said = str(error)
        assert said.endswith(".")
        assert not re.search(r"Traceback|/workspace/|Check failed|\(0-based\)|\bnp\.", said), said
        return "refused"
    assert_everywhere(folder, frame, expected, None if all_requests else seed)
    return "saved"


def hold(family: str, folder: Path, examples: int, *, all_requests: bool) -> Counter[str]:
    """How many of so many drawn frames had which outcome; raises AssertionError for one that scores otherwise."""
    found: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(frames(), st.sampled_from(FAMILIES[family]), st.sampled_from(["codes"] * 4 + list(TWISTS)))
    def holds(drawn: tuple[pd.DataFrame, int], objective: str, twist: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[outcome(folder / "model", *([drawn[0], objective, twist, drawn[1]]), all_requests=all_requests)] += 1

    holds()
    return found


@pytest.mark.parametrize("family", some(FAMILIES, ["binary"]))
def test_any_frame_is_scored_as_judged_by_every_reader_or_refused(family: str, tmp_path: Path) -> None:
    found = hold(family, tmp_path, 100, all_requests=False)
    assert found["saved"] > 20
    assert found["refused"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
def test_many_more_frames_are_scored_as_judged_by_every_reader_or_refused(family: str, tmp_path: Path) -> None:
    found = hold(family, tmp_path, 12_500, all_requests=True)
    assert found["saved"] > 2_500
