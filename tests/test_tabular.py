"""What the tabular notebooks call: tables read as columns.toml says, measures with intervals, slices, reasons."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.tables import Table, flowers, loans, prices

from runner import tabular
from runner.errors import UsageError
from runner.model import split
from runner.tabular import blocks

CHANCE = np.random.default_rng(0)
WEIGHTS = np.stack([np.bincount(CHANCE.integers(0, 300, 300), minlength=300) for _ in range(4)]).astype("float64")


def read(folder: Path, table: Table) -> pd.DataFrame:
    table.write(folder)
    return pd.concat(tabular.read_rows(folder / "table.csv", tabular.read_columns(folder / "columns.toml")))


def test_measures_of_two_answers_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, log_loss, roc_auc_score

    scores = CHANCE.random(300).round(2).clip(0.01, 0.99)  # with ties
    truth = (CHANCE.random(300) < scores).astype("int64")
    found = tabular.measures("binary", truth, scores, WEIGHTS, threshold=0.4)
    for at, weights in enumerate(WEIGHTS):
        expected = {
            "auc": roc_auc_score(truth, scores, sample_weight=weights),
            "pr_auc": average_precision_score(truth, scores, sample_weight=weights),
            "log_loss": log_loss(truth, scores, sample_weight=weights),
            "brier": brier_score_loss(truth, scores, sample_weight=weights),
            "accuracy": accuracy_score(truth, scores >= 0.4, sample_weight=weights),
        }
        assert {name: values[at] for name, values in found.items()} == pytest.approx(expected)
    assert tabular.main_measure("binary", truth, scores, WEIGHTS) == pytest.approx(found["auc"])


def test_measures_of_several_answers_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

    scores, truth = CHANCE.dirichlet(np.ones(4), 300), CHANCE.integers(0, 4, 300)
    found = tabular.measures("multiclass", truth, scores, WEIGHTS)
    for at, weights in enumerate(WEIGHTS):
        aucs = [roc_auc_score(truth == one, scores[:, one], sample_weight=weights) for one in range(4)]
        expected = {
            "auc": np.mean(aucs),
            "log_loss": log_loss(truth, scores, sample_weight=weights),
            "accuracy": accuracy_score(truth, scores.argmax(axis=1), sample_weight=weights),
            "macro_f1": f1_score(truth, scores.argmax(axis=1), average="macro", sample_weight=weights),
        }
        assert {name: values[at] for name, values in found.items()} == pytest.approx(expected)
    assert tabular.main_measure("multiclass", truth, scores, WEIGHTS) == pytest.approx(found["auc"])


def test_measures_of_a_number_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    truth = CHANCE.normal(5, 2, 300)
    scores = truth + CHANCE.normal(0, 1, 300)
    found = tabular.measures("regression", truth, scores, WEIGHTS)
    for at, weights in enumerate(WEIGHTS):
        expected = {
            "rmse": root_mean_squared_error(truth, scores, sample_weight=weights),
            "mae": mean_absolute_error(truth, scores, sample_weight=weights),
            "r2": r2_score(truth, scores, sample_weight=weights),
        }
        assert {name: values[at] for name, values in found.items()} == pytest.approx(expected)


def test_a_class_that_a_sample_lacks_is_left_out_of_its_means() -> None:
    truth, scores = np.array([0, 0, 1, 1, 2]), np.eye(3)[[0, 1, 1, 1, 2]]
    without = tabular.measures("multiclass", truth, scores, np.array([[1.0, 1, 1, 1, 0]]))
    assert np.isfinite([without["auc"][0], without["macro_f1"][0]]).all()
    alone = tabular.measures("binary", truth == 0, scores[:, 0], np.array([[1.0, 1, 0, 0, 0]]))
    assert np.isnan(alone["auc"][0])


def test_an_interval_holds_its_value_and_equal_seeds_give_equal_intervals() -> None:
    values = CHANCE.normal(3, 1, 200)

    def mean(weights: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
        return {"mean": weights @ values[at] / weights.sum(axis=1)}

    one = tabular.resample(mean, 200, seed=1)["mean"]
    assert one == tabular.resample(mean, 200, seed=1)["mean"]
    assert one["low"] < one["value"] < one["high"]
    assert one["high"] - one["low"] == pytest.approx(4 * values.std() / 200**0.5, rel=0.15)
    wide = tabular.resample(mean, 200, seed=1, confidence=0.99)["mean"]
    assert wide["high"] - wide["low"] > one["high"] - one["low"]


def test_samples_of_a_large_table_take_little_memory() -> None:
    rows, scores = 200_000, CHANCE.random(200_000)
    truth = CHANCE.random(rows) < scores
    tracemalloc.start()
    tabular.resample(
        lambda some, at: {"auc": tabular.main_measure("binary", truth[at], scores[at], some)},
        rows,
        seed=1,
        resamples=30,
        most_rows=rows,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400e6  # all weights at once would be 48 MB, many times over, and grow with their number


def test_a_column_that_repeats_the_answer_tells_it_and_a_name_of_rows_does_not() -> None:
    truth = pd.Series(CHANCE.integers(0, 2, 600))
    noise, names = pd.Series(CHANCE.normal(size=600)), pd.Series([f"n{at}" for at in range(600)])
    for copy in (truth * -3.0, truth.map({0: "a", 1: "b"}).astype("category"), truth.where(truth == 1) * 1.0):
        assert tabular.alone(copy, truth, "binary") > 0.999
    assert tabular.alone(noise, truth, "binary") < 0.6
    assert tabular.alone(names.astype("category"), truth, "binary") < 0.6
    numbers = pd.Series(CHANCE.lognormal(3, 2, 600))
    for copy in (numbers * 1.95583, -(numbers**0.5)):
        assert tabular.alone(copy, numbers, "regression") > 0.999
    assert tabular.alone(noise, numbers, "regression") < 0.1
    several = pd.Series(CHANCE.choice(["x", "y", "z"], 600))
    assert tabular.alone(several.astype("category"), several, "multiclass") > 0.999
    assert tabular.alone(noise, several, "multiclass") < 0.65
    parted = pd.Series(
        np.where(truth == 1, CHANCE.choice([-1.0, 1.0], 600), 0.0)
    )  # in the middle one, outside the other
    assert tabular.alone(parted, truth, "binary") > 0.99


def test_slices_are_the_parts_that_are_large_enough() -> None:
    frame = pd.DataFrame(
        {"age": [*range(90), *[np.nan] * 10], "plan": pd.Categorical(["a"] * 60 + ["b"] * 35 + ["c"] * 5)}
    )
    masks = tabular.slices(frame, fewest=10)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "age: 0 to 29": 30, "age: 30 to 59": 30, "age: 60 to 89": 30, "age: missing": 10, "plan: a": 60, "plan: b": 35
    }  # fmt: skip
    kinds = np.array([0] * 62 + [1] * 38)
    assert set(tabular.slices(frame, fewest=10, kinds=kinds, fewest_of_kind=2)) == {"age: 60 to 89", "plan: b"}
    assert list(tabular.slices(frame, fewest=1000)) == ["all rows"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_table_in_another_format_has_the_same_values(tmp_path: Path, form: str) -> None:
    table = loans(40)
    expected = read(tmp_path, table)
    columns = tabular.read_columns(tmp_path / "columns.toml")
    typed = expected.assign(income=pd.to_numeric(expected["income"]), years=pd.to_numeric(expected["years"]))
    path = tmp_path / f"table.{form}"
    if form == "parquet":
        typed.to_parquet(path)
    else:
        typed.to_json(path, orient="records", lines=True)
    (tmp_path / "columns.toml").write_text(table.with_table(format=form).columns, encoding="utf-8")
    frame = pd.concat(tabular.read_rows(path, tabular.read_columns(tmp_path / "columns.toml")))
    for name in ("income", "years"):
        assert tabular.as_number(frame[name], columns).equals(tabular.as_number(expected[name], columns))
    assert tabular.as_label(frame["home"]).equals(tabular.as_label(expected["home"]))
    assert tabular.row_hash(frame[columns.used]).tolist() == tabular.row_hash(expected[columns.used]).tolist()


def test_a_quote_within_a_value_does_not_cut_a_row_however_large_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CHUNK", 1000)
    monkeypatch.setattr(blocks, "LONGEST", 2000)
    pipes = [f'{number},a 5" pipe' if number == 2 else f"{number},another" for number in range(1000)]
    (tmp_path / "pipes.csv").write_text("size,pipe\n" + "\n".join(pipes))
    frame = pd.concat(blocks.read_blocks(tmp_path / "pipes.csv", ["size", "pipe"]))
    assert (frame["size"] + "," + frame["pipe"]).tolist() == pipes


def test_dates_of_parquet_are_the_text_that_a_record_has(tmp_path: Path) -> None:
    table = prices(30)
    table.write(tmp_path)
    columns = tabular.read_columns(tmp_path / "columns.toml")
    text = read(tmp_path, table)["sold"]
    typed = pd.to_datetime(text, format="%d.%m.%Y")
    assert tabular.as_date(typed, columns).equals(tabular.as_date(text, columns))


def test_categories_are_known_as_they_are_written_and_numbers_as_one() -> None:
    labels = tabular.as_label(pd.Series(["1", "1.0", " 2", " b", "b", "007", None]))
    assert list(labels.cat.categories) == [" b", "007", "1", "2", "b"]
    assert tabular.as_label(pd.Series([True, False, None])).cat.categories.tolist() == ["False", "True"]


def test_equal_rows_have_equal_hashes_whatever_the_order_of_columns_and_the_type_of_numbers() -> None:
    one = pd.DataFrame({"a": [1.0, 2.5], "b": ["x", None]})
    other = pd.DataFrame({"b": ["x", ""], "a": ["1.00", "2.50"]})
    assert tabular.row_hash(one).tolist() == tabular.row_hash(other).tolist()
    assert tabular.row_hash(one).nunique() == 2


def test_features_are_written_only_where_text_holds_numbers_or_dates(tmp_path: Path) -> None:
    loans().write(tmp_path)
    columns = tabular.read_columns(tmp_path / "columns.toml")
    frame = pd.DataFrame({"income": [1.0], "years": [2.0], "home": pd.Categorical(["own"])})
    assert tabular.write_features(tmp_path / "features.py", frame, columns) is None
    assert not (tmp_path / "features.py").exists()
    prices().write(tmp_path)
    columns = tabular.read_columns(tmp_path / "columns.toml")
    rows = {"size": ["12,5", "k. A.", None], "sold": ["31.12.2024", "", None], "place": ["Bonn", "Köln", "Bonn"]}
    module = tabular.write_features(tmp_path / "features.py", pd.DataFrame(rows), columns)
    assert module is not None
    made = module.transform(pd.DataFrame(rows))
    assert list(made) == ["size", "sold (days)", "sold (month)", "sold (weekday)", "place"]
    assert made.iloc[0, :4].tolist() == [12.5, 20088, 12, 1]
    assert made.iloc[1:, :4].isna().all(axis=None)
    with pytest.raises(ValueError, match="column size: '12,5,1' is not a number"):
        module.transform(pd.DataFrame({**rows, "size": ["12,5,1", "1", "1"]}))


def test_names_that_xgboost_refuses_are_others_in_the_model_alone(tmp_path: Path) -> None:
    import xgboost as xgb

    import runner.model

    frame = pd.DataFrame({"size [m]": CHANCE.normal(size=50), "a<b": CHANCE.normal(size=50)})
    columns = tabular.Columns(
        table=tabular.read_columns(_written(tmp_path, loans())).table, kinds=dict.fromkeys(frame, "number")
    )
    code = tabular.write_features(tmp_path / "features.py", frame, columns)
    assert code is not None
    features = code.transform(frame)
    assert list(features) == ["size (m)", "a‹b"]
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(features, frame["a<b"]), 2)
    runner.model.save(tmp_path / "model", booster, frame, target="y", code=code)
    assert len(runner.model.load(tmp_path / "model").predict(frame)) == 50
    both = tabular.Columns(table=columns.table, kinds=dict.fromkeys(["size [m]", "size (m)"], "number"))
    with pytest.raises(UsageError, match=r"Two columns would be called size \(m\)"):
        tabular.write_features(tmp_path / "features.py", frame.rename(columns={"a<b": "size (m)"}), both)


def test_a_column_called_as_a_part_of_a_date_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"when": ["2026-01-02"], "when (days)": [1.0], "when (hour)": [2.0]})
    kinds: dict[str, tabular.columns.Kind] = {"when": "date", "when (days)": "number", "when (hour)": "number"}
    table = tabular.read_columns(_written(tmp_path, loans())).table
    columns = tabular.Columns(table=table, kinds=kinds, dates={"when": "%Y-%m-%d"})
    with pytest.raises(UsageError, match=r"Two columns would be called when \(days\)"):
        tabular.write_features(tmp_path / "features.py", frame, columns)
    code = tabular.write_features(tmp_path / "features.py", frame.drop(columns="when (days)"), columns)
    assert code is not None  # the format has no hour


@pytest.mark.parametrize("name", ["prediction", "probability"])
def test_a_target_that_predictions_would_be_written_over_is_refused(tmp_path: Path, name: str) -> None:
    place = tmp_path / "columns.toml"
    place.write_text(f'[table]\ntarget = "{name}"\ntask = "regression"\n[columns]\n"{name}" = "target"\nx = "number"\n')
    with pytest.raises(UsageError, match=f"{name} is what a prediction is called"):
        tabular.read_columns(place)


def _written(folder: Path, table: Table) -> Path:
    table.write(folder)
    return folder / "columns.toml"


def test_contributions_add_up_to_the_scores_and_reasons_name_the_largest(tmp_path: Path) -> None:
    import xgboost as xgb

    import runner.model

    frame = pd.DataFrame({"size": CHANCE.normal(size=200), "plan": pd.Categorical(CHANCE.choice(["a", "b"], 200))})
    truth = frame["size"] * 3 + (frame["plan"] == "a")
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(frame, truth, enable_categorical=True), 5)
    runner.model.save(tmp_path / "model", booster, frame, target="y")
    raw = frame.astype({"plan": "str"})
    moved = tabular.contributions(tmp_path / "model", raw)
    scores = runner.model.load(tmp_path / "model").predict(raw)
    left = scores - moved.sum(axis=1).to_numpy()
    assert np.ptp(left) < 1e-4
    features = tabular.model_features(tmp_path / "model", raw)
    (words,) = tabular.reasons(moved.iloc[[0]], features.iloc[[0]])
    assert words.startswith(f"size = {features['size'].iloc[0]:.6g} ({moved['size'].iloc[0]:+.3g})")


def test_what_a_model_may_have_seen_is_known_by_its_own_columns(tmp_path: Path) -> None:
    import xgboost as xgb

    import runner.model

    frame = pd.DataFrame({"size": CHANCE.normal(size=200).round(3), "more": CHANCE.normal(size=200).round(3)})
    shares = {"test": 0.3, "train": 0.7}
    booster = xgb.train({"nthread": 1}, xgb.DMatrix(frame, frame["size"]), 2)
    given: dict[str, Any] = {"target": "y"}
    runner.model.save(tmp_path / "m", booster, frame, **given, split={"seed": 1, "key": "row_hash", "shares": shares})
    model = runner.model.load(tmp_path / "m")
    rows = frame.assign(row_hash="that of other columns", another=1.0)
    expected = [side != "test" for side in split(tabular.row_hash(frame), seed=1, shares=shares)]
    assert tabular.may_have_seen(model, rows).tolist() == expected
    runner.model.save(tmp_path / "n", booster, frame, **given, split={"seed": 1, "key": "id", "shares": shares})
    assert tabular.may_have_seen(runner.model.load(tmp_path / "n"), rows).all()  # no id here


WRONG: dict[str, tuple[Any, str]] = {
    "no such target": (loans().with_table(target="paid"), r'target = "paid", and in \[columns\] .* is "target"'),
    "no positive answer": (loans().with_table(positive=""), "positive is missing"),
    "a date without a format": (replace(prices(), dates={}), "the date sold has no format"),
    "an unknown key": (loans().with_table(colour="red"), "unknown field `colour`"),
    "another task": (loans().with_table(task="ranking"), "Invalid enum value 'ranking'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_columns_toml_is_refused_with_what_is_wrong(tmp_path: Path, wrong: str) -> None:
    table, sentence = WRONG[wrong]
    table.write(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        tabular.read_columns(tmp_path / "columns.toml")


def test_files_that_are_not_the_declared_table_are_refused(tmp_path: Path) -> None:
    table = flowers(20)
    table.write(tmp_path)
    columns, path = tabular.read_columns(tmp_path / "columns.toml"), tmp_path / "table.csv"
    for content, sentence in (
        (b"", "is empty"),
        (table.content.splitlines()[0], "has a header and no rows"),
        (table.content.replace(b"sort A", b"sort\0A"), "a NUL byte"),
        (table.content.replace(b"sort A", b'"sort A'), "Check the quotes there"),
        (table.content.replace(b"width", b"length"), r"has \['length'\] more than once"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            list(tabular.read_rows(path, columns))
    with pytest.raises(UsageError, match="should hold one table, and has none"):
        tabular.only_file(tmp_path / "absent")
    (tmp_path / "columns.toml").write_text(table.with_table(format="jsonl").columns, encoding="utf-8")
    columns = tabular.read_columns(tmp_path / "columns.toml")
    path.write_text(json.dumps({"length": 1}) + "\n[1]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 2 is not an object"):
        list(tabular.read_rows(path, columns))
