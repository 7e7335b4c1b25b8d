"""Models of XGBoost, LightGBM and scikit-learn in one format: the same records in, the estimator's own scores out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC
from support.kinds import FILES, answers, coded, expected, fitted, preprocessing, records, save
from support.projects import ROOT
from support.served import CSV, JSON

import runner.model
from runner.errors import UsageError
from runner.model.kinds import ROUNDING
from runner.model.signature import BadRecords
from runner.scoring.fast_reading import quick
from runner.scoring.inference import BadInput, Scorer

QUESTIONS = ("binary", "several", "number")
EVERY = [(kind, question) for kind in FILES for question in QUESTIONS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    place = tmp_path_factory.mktemp("kinds")
    return {(kind, question): save(place / f"{kind}-{question}", kind, question) for kind, question in EVERY}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))  # type: ignore[no-any-return]


def near(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.isclose(scores, wanted, rtol=ROUNDING.relative, atol=ROUNDING.absolute)


def refusal(folder: Path, model: Any, frame: pd.DataFrame, **options: Any) -> str:
    with pytest.raises(UsageError) as raised:
        runner.model.save(folder, model, frame, **{"target": "y", **options})
    assert not folder.exists()
    return str(raised.value)


# What is saved


@pytest.mark.parametrize(("kind", "question"), EVERY)
def test_a_folder_scores_as_its_estimator(folders: dict[tuple[str, str], Path], kind: str, question: str) -> None:
    folder, wanted = folders[kind, question], expected(kind, question)
    assert sorted(file.name for file in folder.iterdir()) == sorted([FILES[kind], "signature.json"])
    model = runner.model.load(folder)
    scores = model.predict(records())
    assert near(scores, wanted).all()
    assert kind == "sklearn" or scores.tobytes() == wanted.tobytes()
    names = {"binary": ("yes", None), "several": (None, ["low", "mid", "top"]), "number": (None, None)}
    assert (model.signature.positive, model.signature.labels) == names[question]
    assert model.signature.format == (2 if kind == "xgboost" else 3)


@pytest.mark.parametrize(("kind", "question"), EVERY)
def test_every_reader_of_records_gives_the_same_bits(
    folders: dict[tuple[str, str], Path], kind: str, question: str
) -> None:
    folder = folders[kind, question]
    frame = records().iloc[:60]
    wanted = runner.model.load(folder).predict(frame)
    bodies = [
        (json.dumps(rows(frame)).encode(), JSON),
        (json.dumps({"instances": [list(row.values()) for row in rows(frame)]}).encode(), JSON),
        (frame.to_csv(index=False).encode(), f"{CSV}; header=present"),
    ]
    for reader in (quick, lambda _: lambda *_: None):
        scorer = Scorer(files(folder)).self_test()
        scorer.quick = reader(scorer)  # type: ignore[no-untyped-call]
        for body, content_type in bodies:
            assert scorer.score(scorer.table(body, content_type)).tobytes() == wanted.tobytes()
        alone = [scorer.score(scorer.table(json.dumps(row).encode(), JSON)) for row in rows(frame)]
        assert np.concatenate(alone).tobytes() == wanted.tobytes()


def test_equal_arguments_give_equal_bytes(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    for kind, question in EVERY:
        assert files(save(tmp_path / "model", kind, question)) == files(folders[kind, question]), (kind, question)


@pytest.mark.parametrize("kind", FILES)
def test_an_unknown_category_is_refused_or_scored_as_missing(folders: dict[tuple[str, str], Path], kind: str) -> None:
    model = runner.model.load(folders[kind, "binary"])
    frame = records().iloc[:5].assign(plan=["gold", "platinum", None, "basic", "657"])
    with pytest.raises(BadRecords, match="Row 2, column plan: 'platinum' is not a known category"):
        model.predict(frame)
    scores = model.predict(frame, unknown="missing")
    missing = frame.assign(plan=frame["plan"].replace("platinum", None))
    assert scores.tobytes() == model.predict(missing).tobytes()
    assert near(scores, expected(kind, "binary", missing.astype({"plan": records()["plan"].dtype}))).all()
    assert model.unknown_categories(frame) == {"plan": 1}


@pytest.mark.parametrize("kind", ["lightgbm", "sklearn"])
def test_a_missing_value_is_scored_as_the_estimator_does_or_refused_as_it_does(
    folders: dict[tuple[str, str], Path], kind: str
) -> None:
    folder = folders[kind, "binary"]
    needed = ["roaming"] if kind == "sklearn" else []  # which nothing imputes
    assert (json.loads((folder / "signature.json").read_text()).get("required") or []) == needed
    record = rows(records().iloc[[1]])[0]
    scorer = Scorer(files(folder))
    for reader in (quick(scorer), lambda *_: None):
        scorer.quick = reader
        for name in record:
            body = json.dumps({**record, name: None}).encode()
            if name in needed:
                with pytest.raises(
                    BadInput, match=f"Row 1, column {name}: the value is missing, and the model needs it"
                ):
                    scorer.score(scorer.table(body, JSON))
                continue
            frame = records().iloc[[1]].astype({"calls": "float64", "roaming": "float64"})
            frame.loc[1, name] = None
            assert near(scorer.score(scorer.table(body, JSON)), expected(kind, "binary", frame)).all(), name
    several = [record, {**record, "roaming": None}]
    if needed:
        with pytest.raises(BadInput, match="Row 2, column roaming"):
            scorer.score(scorer.records(several))


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(5, random_state=1),
        ExtraTreesClassifier(5, max_depth=6, random_state=1),
        GradientBoostingClassifier(n_estimators=5, random_state=1),
        HistGradientBoostingClassifier(max_iter=5),
        MLPClassifier((4,), max_iter=400, tol=0.1, random_state=1),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("question", ["binary", "several"])
@pytest.mark.cases(5)
def test_estimators_of_scikit_learn_are_scored_as_they_score(tmp_path: Path, model: Any, question: str) -> None:
    """Behind a scaler, whose last bits would take another branch of a tree in float32."""
    pipe = make_pipeline(preprocessing(), model).fit(records(), answers(question))
    runner.model.save(tmp_path / "model", pipe, records(), target="stays")
    wanted = pipe.predict_proba(records())
    scores = runner.model.load(tmp_path / "model").predict(records())
    assert near(scores, wanted[:, 1] if question == "binary" else wanted).all()


def encoders() -> dict[str, Any]:
    return {
        "rare": OneHotEncoder(min_frequency=0.3, handle_unknown="infrequent_if_exist"),
        "dropped": OneHotEncoder(drop="first"),
        "order": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
        "order, gaps": OrdinalEncoder(),
        "a word for gaps": make_pipeline(SimpleImputer(strategy="constant", fill_value="none"), OneHotEncoder()),
    }


@pytest.mark.cases(5)
@pytest.mark.parametrize("name", encoders())
@pytest.mark.parametrize("as_text", [True, False], ids=["text", "categories"])
def test_encoders_of_text_and_of_what_is_missing_are_in_the_graph(tmp_path: Path, name: str, as_text: bool) -> None:
    frame = records().astype({"plan": "object" if as_text else "category"})
    columns = preprocessing("passthrough", encoders()[name])
    pipe = make_pipeline(columns, RandomForestRegressor(5, random_state=1)).fit(frame, answers("number"))
    runner.model.save(tmp_path / "model", pipe, frame, target="points")
    assert near(runner.model.load(tmp_path / "model").predict(frame), pipe.predict(frame)).all()


def test_histogram_boosting_takes_categories_and_gaps_as_they_are(tmp_path: Path) -> None:
    frame = coded(records())
    model = HistGradientBoostingClassifier(max_iter=10, categorical_features="from_dtype").fit(frame, answers("binary"))
    runner.model.save(tmp_path / "model", model, frame, target="stays")
    loaded = runner.model.load(tmp_path / "model")
    assert near(loaded.predict(frame), model.predict_proba(frame)[:, 1]).all()
    assert not loaded.signature.required


def test_an_estimator_alone_and_the_best_of_a_search_are_taken(tmp_path: Path) -> None:
    frame = records()[["calls", "roaming"]].astype("float64")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2
    )
    for at, model in enumerate([LinearRegression(), search]):
        wanted = answers("binary") == "yes"
        model.fit(frame, wanted)
        runner.model.save(tmp_path / str(at), model, frame, target="y")
        scores = model.predict_proba(frame)[:, 1] if at else model.predict(frame)
        assert near(runner.model.load(tmp_path / str(at)).predict(frame), scores).all()


def test_the_positive_class_may_be_the_first_of_scikit_learns(tmp_path: Path) -> None:
    pipe = fitted("sklearn", "binary")
    runner.model.save(tmp_path / "model", pipe, records(), target="leaves", positive="no")
    model = runner.model.load(tmp_path / "model")
    assert model.signature.positive == "no"
    assert near(model.predict(records()), pipe.predict_proba(records())[:, 0]).all()


def test_features_that_a_module_computes_go_into_every_kind(tmp_path: Path) -> None:
    (tmp_path / "features.py").write_text(
        "import pandas as pd\n\n\ndef transform(frame):\n"
        "    return pd.DataFrame({'rate': frame['calls'] / 7, 'plan': frame['plan'], 'long': frame['note'].str.len()})\n"
    )
    scope: dict[str, Any] = {}
    exec((tmp_path / "features.py").read_text(), scope)
    frame = records()[["calls", "plan"]].assign(note=[f"x{at % 3}" * (at % 5 + 1) for at in range(400)])
    features = scope["transform"](frame)
    pipe = make_pipeline(
        preprocessing().set_params(transformers=[
            ("numbers", StandardScaler(), ["rate", "long"]), ("texts", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
        ]),
        LogisticRegression(),
    ).fit(features, answers("binary"))  # fmt: skip
    boosted = lgb.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(features, answers("binary"))
    for name, model in (("onnx", pipe), ("text", boosted)):
        runner.model.save(tmp_path / name, model, frame, target="y", code=tmp_path / "features.py")
        assert near(runner.model.load(tmp_path / name).predict(frame), model.predict_proba(features)[:, 1]).all()
        assert (tmp_path / name / "features.py").exists()


def test_the_best_round_of_lightgbm_is_the_one_that_scores(tmp_path: Path) -> None:
    frame, wanted = coded(records()), answers("binary") == "yes"
    model = lgb.LGBMClassifier(n_estimators=60, learning_rate=0.9, verbose=-1, n_jobs=1)
    stop = lgb.early_stopping(3, verbose=False)
    model.fit(frame[:200], wanted[:200], eval_X=frame[200:], eval_y=wanted[200:], callbacks=[stop])
    assert 0 < model.best_iteration_ < 60
    runner.model.save(tmp_path / "estimator", model, frame, target="y", positive="yes")
    assert runner.model.load(tmp_path / "estimator").predict(frame).tobytes() == expected_of(model, frame).tobytes()
    booster = lgb.train({"objective": "binary", "verbose": -1, "num_threads": 1}, lgb.Dataset(frame, wanted), 9)
    booster.best_iteration = 2
    runner.model.save(tmp_path / "booster", booster, frame, target="y")
    scores = runner.model.load(tmp_path / "booster").predict(frame)
    assert scores.tobytes() == booster.predict(frame, num_iteration=2).astype("float32").tobytes()
    assert scores.tobytes() != booster.predict(frame, num_iteration=9).astype("float32").tobytes()


def expected_of(model: Any, frame: pd.DataFrame) -> np.ndarray:
    return np.asarray(model.predict_proba(frame)[:, 1], dtype="float32")


# What is refused


class Doubling(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, frame: Any, answers: Any = None) -> Doubling:
        self.fitted_ = True
        return self

    def transform(self, frame: Any) -> Any:
        return np.asarray(frame) * 2


class Homemade:
    def predict(self, frame: Any) -> Any:
        return frame


def test_what_cannot_be_saved_is_named_with_what_is_taken(tmp_path: Path) -> None:
    frame, wanted = records()[["calls"]], answers("binary")
    folder = tmp_path / "model"
    said = refusal(folder, Homemade(), frame)
    assert "A Homemade is none of what can be saved" in said
    assert "XGBoost and LightGBM, and estimators and pipelines of scikit-learn" in said
    assert "pickle" in said
    assert "is not fitted" in refusal(folder, LogisticRegression(), frame)
    assert "is not fitted" in refusal(folder, lgb.LGBMClassifier(), frame)
    assert "gives no probabilities" in refusal(folder, LinearSVC().fit(frame, wanted), frame)
    assert "neither a classifier nor a regressor" in refusal(folder, KMeans(2, n_init=1).fit(frame), frame)
    assert "A Pipeline is none of what can be saved" in refusal(
        folder, make_pipeline(StandardScaler()).fit(frame), frame
    )
    unknown = make_pipeline(Doubling(), LogisticRegression()).fit(frame, wanted)
    assert "skl2onnx makes no ONNX graph of the Pipeline" in refusal(folder, unknown, frame)
    computing = make_pipeline(FunctionTransformer(np.log1p), LogisticRegression()).fit(frame, wanted)
    said = refusal(folder, computing, frame)
    assert said.endswith("Put the function into a module: save(…, code=…).")
    assert "issue" not in said
    boosted = make_pipeline(StandardScaler(), lgb.LGBMClassifier(n_estimators=2, verbose=-1)).fit(frame, wanted)
    assert "The pipeline ends in a LGBMClassifier" in refusal(folder, boosted, frame)
    assert "none of the estimator's classes, 'no', 'yes'" in refusal(
        folder, fitted("sklearn", "binary"), records(), positive="maybe"
    )
    assert "are not the estimator's classes" in refusal(
        folder, fitted("lightgbm", "several"), coded(records()), labels=["top", "mid", "low"]
    )
    assert "NaN alone is a missing value" in refusal(
        folder, fitted("lightgbm", "binary"), coded(records()), missing=-1.0
    )
    assert "the model learned from 5" in refusal(folder, fitted("lightgbm", "binary"), records()[["calls", "plan"]])


def test_a_graph_that_scores_a_row_otherwise_is_refused_with_the_row_and_the_tolerance(tmp_path: Path) -> None:
    frame = records()[["calls"]].astype("float64")
    model = LogisticRegression().fit(frame, answers("binary"))
    learned = model.predict_proba
    model.predict_proba = lambda x: learned(x) + np.where(np.arange(len(x)) == 3, 0.01, 0)[:, None] * [-1, 1]
    said = refusal(tmp_path / "model", model, frame)
    assert "Row 4 of the frame scores" in said
    assert f"more apart than {ROUNDING}" in said
    assert not (tmp_path / "model").exists()


def test_without_the_extra_the_command_that_installs_it_is_said(tmp_path: Path) -> None:
    """A folder of each kind, in a process that has neither onnxruntime nor LightGBM."""
    save(tmp_path / "onnx", "sklearn")
    save(tmp_path / "text", "lightgbm")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('onnxruntime', 'lightgbm'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import importlib.util\nusual = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'lightgbm' else usual(name, *more)\n"
        "import runner.model\n"
        "for name in ('onnx', 'text'):\n"
        "    try:\n        runner.model.load(Path(name))\n    except Exception as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    assert "no onnxruntime, which scores model.onnx: pip install onnxruntime" in done.stdout
    assert "no LightGBM, which scores model.txt: pip install lightgbm" in done.stdout
