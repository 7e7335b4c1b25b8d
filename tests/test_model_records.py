"""Raw records go into a model and probabilities come out, or it is said which row and column is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_folders import SETTINGS, records, saved, trained

import runner.model
from runner.model import table
from runner.model.signature import BadRecords, as_category
from runner.scoring.inference import BadInput, Scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("records") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> runner.model.Model:
    return runner.model.load(folder)


# Scores


def test_raw_records_go_in_and_probabilities_come_out(model: runner.model.Model) -> None:
    raw = records()
    expected = trained(raw).predict(xgb.DMatrix(raw, enable_categorical=True))
    scores = model.predict(raw)
    assert scores.shape == (120,)
    assert ((scores > 0) & (scores < 1)).all()
    assert scores.tolist() == expected.tolist()


def test_records_as_text_in_any_order_with_further_columns_score_the_same(model: runner.model.Model) -> None:
    raw = records()
    text = pd.DataFrame(
        {
            "phone": [f"555-{number}" for number in range(len(raw))],
            **{
                name: raw[name].astype("object").where(raw[name].notna(), "").map(str) for name in reversed(raw.columns)
            },
        }
    )
    assert model.predict(text).tolist() == model.predict(raw).tolist()
    assert model.predict(raw.iloc[50:51]).tolist() == model.predict(raw).tolist()[50:51]
    assert model.predict(raw.iloc[:0]).shape == (0,)


def test_the_sample_scores_as_recorded(model: runner.model.Model, folder: Path) -> None:
    signature = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    sample = signature["sample_request"]
    assert sample == records().astype({"plan": "object"}).iloc[0].to_dict()
    again = json.loads(json.dumps(sample))
    assert float(model.predict(pd.DataFrame([again]))[0]) == signature["sample_prediction"]


def test_a_sample_with_missing_values_scores_as_recorded(tmp_path: Path) -> None:
    raw = records()
    gaps = raw.iloc[[6, *range(6), *range(7, 120)]].reset_index(drop=True)
    gaps.loc[0, "plan"] = None
    runner.model.save(tmp_path / "model", trained(raw), gaps, target="left")
    model = runner.model.load(tmp_path / "model")
    assert (model.signature.sample_request["minutes"], model.signature.sample_request["plan"]) == (None, None)
    assert float(model.predict(pd.DataFrame([model.signature.sample_request]))[0]) == model.signature.sample_prediction


def test_several_classes_give_a_probability_of_each(tmp_path: Path) -> None:
    raw = records()
    booster = xgb.train(
        {**SETTINGS, "objective": "multi:softprob", "num_class": 3},
        xgb.DMatrix(raw, raw["calls"] % 3, enable_categorical=True),
        3,
    )
    runner.model.save(tmp_path / "model", booster, raw, target="kind")
    model = runner.model.load(tmp_path / "model")
    assert model.predict(raw).shape == (120, 3)
    assert model.predict(raw).sum(axis=1) == pytest.approx(1)
    assert model.signature.sample_prediction == pytest.approx(model.predict(raw)[0].tolist())


# Records that cannot be scored


def test_an_unknown_category_is_an_error_or_missing_as_asked(model: runner.model.Model) -> None:
    raw = records(20).astype({"plan": "object"})
    strange = raw.copy()
    strange.loc[4, "plan"] = "platinum"
    with pytest.raises(
        BadRecords, match=r"Row 5, column plan: 'platinum' is not a known category \(basic, gold, südost\)"
    ):
        model.predict(strange)
    assert model.unknown_categories(strange) == {"plan": 1}
    assert model.unknown_categories(raw) == {}
    absent = raw.copy()
    absent.loc[4, "plan"] = None
    assert model.predict(strange, unknown="missing").tolist() == model.predict(absent).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="minutes"), "Missing column: minutes"),
        (lambda f: f.drop(columns=["plan", "calls"]), "Missing columns: calls, plan"),
        (lambda f: f.assign(minutes=f["minutes"].where(f.index != 2, np.inf)), "Row 3, column minutes"),
        (lambda f: f.assign(minutes=f["minutes"].where(f.index != 2, -np.inf)), "Row 3, column minutes"),
        (lambda f: f.assign(minutes=["1e400", *["1"] * 9]), "Row 1, column minutes: '1e400'"),
        (lambda f: f.assign(minutes=["1", "nan", *["1"] * 8]), "Row 2, column minutes: 'nan'"),
        (lambda f: f.assign(calls=["1", "two", *["1"] * 8]), "Row 2, column calls: 'two'"),
        (lambda f: f.assign(calls=[1, [2], *[1] * 8]), "Row 2, column calls"),
        (lambda f: f.assign(calls=[1, 2, {"n": 3}, *[1] * 7]), "Row 3, column calls"),
        (lambda f: f.assign(calls=True), "Row 1, column calls: .*True"),
        (lambda f: f.assign(calls=[1, True, *[1] * 8]).astype({"calls": "object"}), "Row 2, column calls: True"),
        (lambda f: f.assign(calls=pd.Timestamp("2026-01-01")), "Row 1, column calls"),
        (lambda f: f.assign(calls=pd.Timedelta(days=1)), "Row 1, column calls"),
        (lambda f: f.assign(calls=1 + 2j), "Row 1, column calls"),
        (lambda f: f.assign(roaming=["true", "perhaps", *["no"] * 8]), "Row 2, column roaming: 'perhaps'"),
        (lambda f: f.assign(roaming=[0, 1, 7, *[0] * 7]), "Row 3, column roaming"),
        (lambda f: f.assign(plan=[["gold"], *["gold"] * 9]), "Row 1, column plan"),
        (lambda f: pd.concat([f, f[["calls"]]], axis=1), "Column calls is there twice"),
    ],
)
def test_what_cannot_be_scored_is_named_by_row_and_column(
    model: runner.model.Model, change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    for unknown in ("error", "missing"):
        if unknown == "missing" and said.endswith("plan"):
            continue
        with pytest.raises(BadRecords, match=said):
            model.predict(change(records(10)), unknown=unknown)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.dates(),
    st.complex_numbers(),
    st.decimals(allow_nan=False),
    st.sampled_from([[1], {}, "\ud800", 10**400, "1e400"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(records(1).columns, values)), min_size=1, max_size=3))
def test_any_record_can_be_read_or_it_is_said_what_is_wrong(folder: Path, rows: list[Any]) -> None:
    scorer = Scorer({file.name: file.read_bytes() for file in folder.iterdir()}, unknown="missing")
    try:
        made = table.numbers(scorer, table.columns(pd.DataFrame(rows, dtype="object"), scorer))
    except BadInput:
        return
    assert not np.isinf(made).any()
    for name, known in (("roaming", {0, 1}), ("plan", {0, 1, 2})):
        column = made[:, scorer.names.index(name)]
        assert set(column[~np.isnan(column)]) <= known


# How a table is read


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([657, 657.0, "657", " 657 ", "657.0"], ["657"] * 5),
        ([657.5, None, "", "  ", "a b "], ["657.5", None, None, None, "a b"]),
        (["007", "-3.00", "1.50", True], ["007", "-3", "1.50", "True"]),
    ],
)
def test_one_category_in_many_spellings_is_one(values: list[Any], expected: list[str | None]) -> None:
    assert as_category(pd.Series(values, dtype="object")).tolist() == expected
