"""Records read without pandas are scored as the model folder scores them: bit for bit, or refused in the same words."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.commands import environment
from support.models import (
    ODD,
    PLANS,
    SETTINGS,
    computed,
    mixed,
    number,
    of,
    records,
    saved,
    several,
    texts,
    trained,
    whole,
)
from support.projects import REAL_TABLE, ROOT

import runner.model
from runner.errors import UsageError
from runner.model.signature import BadRecords
from runner.scoring.fast_reading import quick
from runner.scoring.inference import BadInput, Scorer, accepted, model_fn


def other_order(folder: Path) -> Path:
    """Trained on categories in another order than the signature's, and on more of them."""
    raw = records()
    mixed = raw.assign(plan=raw["plan"].cat.set_categories(["gold", "657", "more", "basic", "südost"]))
    return saved(folder, booster=trained(mixed))


def one_column(folder: Path) -> Path:
    raw = records()[["minutes"]]
    runner.model.save(folder, trained(raw), raw, target="left")
    return folder


def numbers_only(folder: Path) -> Path:
    raw = records()[["minutes", "calls"]]
    runner.model.save(folder, trained(raw), raw, target="left")
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "plain": saved,
    "computed": computed,
    "other_order": other_order,
    "several": several,
    "number": number,
    "numbers_only": numbers_only,
}
Pair = tuple[Scorer, runner.model.Model]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for name, kind in KINDS.items():
        folder = kind(tmp_path_factory.mktemp(name) / "model")
        made[name] = (of(folder), runner.model.load(folder))
    return made


def fields(rows: list[list[str]], header: list[str] | None = None) -> bytes:
    """As CSV."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([*([header] if header else []), *rows])
    return file.getvalue().encode()


def same(scorer: Scorer, model: runner.model.Model, frame: pd.DataFrame, body: bytes, kind: str) -> None:
    """The body scores as the frame does, to the bit; or both refuse."""
    for one in (quick(scorer), lambda *_: None):
        scorer.quick = one
        _same(scorer, model, frame, body, kind)


def as_pandas_says(error: Exception) -> str:
    """To pandas a whole number is a float where one of its column is missing, beyond 2**53 another one; a long value is
    shortened."""
    return re.sub(r"-?\d+(\.\d+)?(e[-+]\d+)?", lambda number: str(float(number[0])), str(error)[:100])


def _same(scorer: Scorer, model: runner.model.Model, frame: pd.DataFrame, body: bytes, kind: str) -> None:
    expected: Any
    try:
        expected = model.predict(frame, unknown=scorer.columns[0].unknown)  # type: ignore[arg-type]
    except (BadRecords, xgb.core.XGBoostError) as error:
        expected = error
    if isinstance(expected, Exception):
        with pytest.raises(BadInput) as refused:
            scorer.score(scorer.table(body, kind))
        assert refused.value.status == 400
        if isinstance(expected, BadRecords):
            assert as_pandas_says(refused.value) == as_pandas_says(expected)
        return
    found = scorer.score(scorer.table(body, kind))
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), rows=st.lists(whole | mixed, min_size=1, max_size=5))
@example(kind="plain", rows=[{"minutes": 1e39, "calls": 1, "plan": "gold", "roaming": True}])
@example(kind="plain", rows=[{"minutes": 10**400, "calls": 1, "plan": "gold", "roaming": True}])
@example(kind="plain", rows=[{"minutes": None, "calls": None, "plan": None, "roaming": None}] * 2)
@example(
    kind="computed",
    rows=[{"minutes": 1, "calls": 1, "plan": None, "roaming": roaming} for roaming in (None, 2**53 + 1)],
)
def test_json_records_score_as_the_model_folder_does(
    pairs: dict[str, Pair], kind: str, rows: list[dict[str, Any]]
) -> None:
    for row in rows:
        row.setdefault("more", None)
    odd = "\ud800" in [value for row in rows for value in row.values()]
    frame = pd.DataFrame(rows, dtype="object" if odd else None)  # pandas' own text cannot hold it
    same(*pairs[kind], frame, json.dumps(rows).encode(), "application/json")
    same(*pairs[kind], frame, "\n".join(map(json.dumps, rows)).encode(), "application/jsonlines")


plain_texts = texts.filter(lambda text: "\0" not in text)
rows_of_text = st.lists(
    st.tuples(
        st.floats(0, 400).map(str) | plain_texts,
        st.integers(0, 10).map(str) | plain_texts,
        st.sampled_from([*PLANS, "657.0", ""]) | plain_texts,
        st.sampled_from(["true", "False", "1", "0", ""]) | plain_texts,
    ).map(list),
    min_size=1,
    max_size=5,
)
clean_rows = st.lists(
    st.tuples(
        st.floats(0, 400).map(str) | st.just(""),
        st.integers(0, 10).map(str) | st.just(""),
        st.sampled_from([*PLANS, ""]),
        st.sampled_from(["true", "False", "1", "0", ""]),
    ).map(list),
    min_size=1,
    max_size=40,
)


@pytest.mark.soak
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), rows=rows_of_text | clean_rows, header=st.booleans())
@example(kind="plain", rows=[[text, "1", "gold", "1"] for text in ("nan", "1")], header=True)
@example(kind="computed", rows=[["7" * 39, "0", "basic", "true"]], header=False)
def test_csv_scores_as_the_model_folder_does(
    pairs: dict[str, Pair], kind: str, rows: list[list[str]], header: bool
) -> None:
    names = pairs[kind][0].names
    rows = [row[: len(names)] for row in rows]
    frame = pd.DataFrame(rows, columns=names)
    if header:
        body, frame = fields([row[::-1] for row in rows], names[::-1]), frame.iloc[:, ::-1]
    else:
        body = fields(rows)
    same(*pairs[kind], frame, body, f"text/csv; header={'present' if header else 'absent'}")


@pytest.mark.parametrize("text", [text for text in ODD if "\0" not in text])
def test_every_odd_text_is_read_as_by_the_model_folder(pairs: dict[str, Pair], text: str) -> None:
    for column in range(4):
        row = ["180.5", "3", "gold", "true"]
        row[column] = text
        frame = pd.DataFrame([row, row], columns=pairs["plain"][0].names)
        same(*pairs["plain"], frame, fields([row, row]), "text/csv; header=absent")
        record = json.dumps(dict(zip(frame.columns, row, strict=True))).encode()
        same(*pairs["plain"], frame.iloc[:1], record, "application/json")


def test_unknown_categories_can_be_missing_values(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    frame = pd.DataFrame([[180.5, 3, "silver", True], [180.5, 3, None, True]], columns=records().columns)
    body = frame.to_json(orient="records").encode()
    scorer, model = of(folder, "missing"), runner.model.load(folder)
    same(scorer, model, frame, body, "application/json")
    with pytest.raises(
        BadInput, match=r"Row 1, column plan: 'silver' is not a known category \(657, basic, gold, südost\)"
    ):
        of(folder).score(of(folder).table(body, "application/json"))


@pytest.mark.parametrize("value", [["gold"], [], {"plan": "gold"}, [[["gold"]]]])
def test_a_list_or_an_object_is_no_category_even_where_unknown_ones_are_missing(tmp_path: Path, value: Any) -> None:
    folder = saved(tmp_path / "model")
    frame = pd.DataFrame([[180.5, 3, "silver", True], [180.5, 3, value, True]], columns=records().columns)
    body, shown = frame.to_json(orient="records").encode(), "an object" if isinstance(value, dict) else "a list"
    scorer, model = of(folder, "missing"), runner.model.load(folder)
    same(scorer, model, frame, body, "application/json")
    with pytest.raises(BadRecords, match=f"Row 2, column plan: {shown} is not a known category"):
        model.predict(frame, unknown="missing")
    with pytest.raises(UsageError, match="Column plan has the type object, which a record cannot have"):
        runner.model.save(tmp_path / "other", trained(records(2)), frame, target="left")


def test_a_signature_may_know_categories_that_the_trees_do_not(tmp_path: Path) -> None:
    """XGBoost gives such a one the code of another; here it is as unknown as any, and no row of it can be judged."""
    raw = records()
    known = raw.assign(plan=raw["plan"].cat.set_categories(["able", *sorted(PLANS)]))
    runner.model.save(tmp_path / "model", trained(raw), known, target="left")
    record = {"minutes": 1.0, "calls": 1, "plan": "able", "roaming": False}
    scorer = of(tmp_path / "model")
    with pytest.raises(BadInput, match="'able' is not a known category"):
        scorer.score(scorer.table(json.dumps(record).encode(), "application/json"))
    known.loc[4, "plan"] = "able"
    with pytest.raises(UsageError, match="Row 5, column plan: 'able' is not a known category"):
        runner.model.save(tmp_path / "model", trained(raw), known, target="left")


def test_trees_that_were_trained_on_codes_take_the_signatures(tmp_path: Path) -> None:
    raw = records()
    matrix = np.column_stack([raw["minutes"], raw["calls"], raw["plan"].cat.codes.replace(-1, np.nan), raw["roaming"]])
    kinds = ["q", "q", "c", "q"]
    answers = raw["calls"] > 5
    data = xgb.DMatrix(matrix.astype(float), answers, feature_types=kinds, enable_categorical=True)
    folder = saved(tmp_path / "model", booster=xgb.train(SETTINGS, data, 5))
    same(of(folder), runner.model.load(folder), raw, raw.to_json(orient="records").encode(), "application/json")


@pytest.mark.soak
@pytest.mark.parametrize("table", [REAL_TABLE, ROOT / "data" / "churn.csv"])
def test_a_real_table_scores_to_the_bit(tmp_path: Path, table: Path) -> None:
    if not table.exists():
        pytest.skip(f"the real table is not at {table}")
    frame = pd.read_csv(table)
    answers = frame["Churn?"] == "True."
    raw = frame.drop(columns=["Churn?", "Phone"])
    for name in ("State", "Area Code", "Int'l Plan", "VMail Plan"):
        raw[name] = runner.model.as_category(raw[name]).astype("category")
    booster = xgb.train(SETTINGS, xgb.DMatrix(raw, answers, enable_categorical=True), 40)
    runner.model.save(tmp_path / "model", booster, raw, target="Churn?", positive="True.")
    scorer, model = of(tmp_path / "model"), runner.model.load(tmp_path / "model")
    assert len(frame) >= 3000
    same(scorer, model, frame, table.read_bytes(), "text/csv")
    same(scorer, model, frame, frame.to_json(orient="records").encode(), "application/json")
    for start in range(8):
        same(scorer, model, frame[start : start + 1], frame[start : start + 1].to_csv().encode(), "text/csv")


HEADERS = [
    (b"minutes,calls,plan,roaming\n1,2,gold,1\n", 1),
    (b"roaming,more,plan,calls,minutes\n1,x,gold,2,1\n", 1),
    (b" minutes , calls,plan,roaming\r\n1,2,gold,1\r\n\r\n", 1),
    (b"\xef\xbb\xbfminutes,calls,plan,roaming\n1,2,gold,1\n \n1,2,gold,0", 2),
    (b"1,2,gold,1\n1,2,gold,0\n", 2),
    (b"1,2,gold,1\r1,2,gold,0", 2),
    (b'"minutes","calls","plan","roaming"\n1,2,"gold",1\n', 1),
]


@pytest.mark.parametrize(("body", "rows"), HEADERS)
def test_a_header_is_found_where_there_is_one(pairs: dict[str, Pair], body: bytes, rows: int) -> None:
    scorer = pairs["plain"][0]
    assert len(scorer.score(scorer.table(body, "text/csv"))) == rows


def test_for_one_column_a_blank_line_is_a_missing_value(tmp_path: Path) -> None:
    folder = one_column(tmp_path / "model")
    scorer, model = of(folder), runner.model.load(folder)
    same(scorer, model, pd.DataFrame({"minutes": ["1", "", "2"]}), b"1\n\n2\n", "text/csv; header=absent")
    same(scorer, model, pd.DataFrame({"minutes": ["", "2"]}), b'minutes\n""\n2', "text/csv")
    same(scorer, model, pd.DataFrame({"minutes": [5]}), b'{"instances": [[5]]}', "application/json")


SHAPES = [
    [{"minutes": 1, "calls": 2, "plan": "gold", "roaming": True}],
    {"minutes": 1, "calls": 2, "plan": "gold", "roaming": True, "unused": {"deep": []}},
    {"instances": [{"minutes": 1, "calls": 2, "plan": "gold", "roaming": True}], "more": 1},
    {"instances": [[1, 2, "gold", True]]},
    [[1, "2", "gold", "true"]],
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_may_come_in_several_shapes(pairs: dict[str, Pair], shape: Any) -> None:
    scorer, model = pairs["plain"]
    frame = pd.DataFrame([[1, 2, "gold", True]], columns=scorer.names)
    same(scorer, model, frame, json.dumps(shape).encode(), "application/json")


REFUSED: list[tuple[bytes, str, int, int | None, str | None, str]] = [
    (b"minutes,calls,roaming\n1,2,1\n", "text/csv", 400, None, "plan", "Missing column: plan."),
    (b"minutes,calls\n1,2\n", "text/csv", 400, None, "plan", "Missing columns: plan, roaming."),
    (b"minutes,calls,plan,roaming,calls\n1,2,gold,1,2\n", "text/csv", 400, None, "calls", "Column calls is there twice."),
    (b"1,2,gold,1\n1,2,gold\n", "text/csv", 400, 2, None, "Row 2: 3 fields where the model has 4."),
    (b"minutes,calls,plan,roaming\n1,2,gold,1,9\n", "text/csv", 400, 1, None, "Row 1: 5 fields where the header has 4."),
    (b'1,2,"gold,1\n', "text/csv", 400, None, None, "not CSV"),
    (b"1;2;gold;1\n", "text/csv", 400, 1, None, "Row 1: the fields are separated by ';'. Write commas."),
    (b'"gold";1;"2";1\n', "text/csv", 400, None, None, "The body is not CSV: the fields are separated by ';'. Write commas."),
    (b'"gold" ,1\n', "text/csv", 400, None, None, "The body is not CSV: ',' expected after '\"'."),
    (b"1,2,gold,1\n1,2,gold,x\n", "text/csv", 400, 2, "roaming", "Row 2, column roaming: 'x' is neither true nor false."),
    (b"1,2,gold,1\ninf,2,gold,1\n", "text/csv", 400, 2, "minutes", "Row 2, column minutes: 'inf' is not a number."),
    (b"1e39,2,gold,1\n", "text/csv", 400, 1, "minutes", "'1e39' is not a finite number."),
    (b"1,2,iron,1\n", "text/csv", 400, 1, "plan", "Row 1, column plan: 'iron' is not a known category"),
    (b"1,2,g\xfcld,1\n", "text/csv", 400, None, None, "not UTF-8, at byte 5"),
    (b"minutes,calls,plan,roaming\n", "text/csv", 400, None, None, "no record"),
    (b"", "text/csv", 400, None, None, "no record"),
    (b"", "application/json", 400, None, None, "not JSON"),
    (b"[]", "application/json", 400, None, None, "no record"),
    (b"7", "application/json", 400, None, None, "neither a record, nor a list"),
    (b"[7]", "application/json", 400, 1, None, "Row 1 is neither an object nor an array"),
    (b"[[1,2]]", "application/json", 400, 1, None, "Row 1 is an array of 2; the model has 4 columns."),
    (b'{"instances": 7}', "application/json", 400, None, None, "neither a record, nor a list"),
    (b'[{"minutes": 1}]', "application/json", 400, 1, "calls", "Missing columns in row 1: calls, plan, roaming."),
    (b"[[1,2,\"gold\",1],[NaN,2,\"gold\",1]]", "application/json", 400, 2, "minutes", "Row 2, column minutes: 'NaN' is not a number"),
    (b"[[1e400,2,\"gold\",1]]", "application/json", 400, 1, "minutes", "Row 1, column minutes: inf is not a finite number."),
    (b"[[true,2,\"gold\",1]]", "application/json", 400, 1, "minutes", "Row 1, column minutes: True is not a number."),
    (b"[[1,2,\"gold\",2]]", "application/json", 400, 1, "roaming", "Row 1, column roaming: 2 is neither true nor false."),
    (b"[" * 100_000, "application/json", 400, None, None, "not JSON"),
    (b'{"a": ' * 100_000, "application/json", 400, None, None, "not JSON"),
    (b"[1" + b"0" * 5000 + b"]", "application/json", 400, None, None, ""),
    (b'{"minutes": 1\n', "application/jsonlines", 400, None, None, "Line 1: The body is not JSON"),
    (b"x", "text/plain", 415, None, None, "Content-Type 'text/plain' is not one of text/csv, application/json"),
    (b"x", "", 415, None, None, "Content-Type '' is not one of"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "status", "row", "column", "said"), REFUSED)
def test_what_is_wrong_is_said_with_row_and_column(
    pairs: dict[str, Pair], body: bytes, kind: str, status: int, row: int | None, column: str | None, said: str
) -> None:
    scorer = pairs["plain"][0]
    for one in (lambda *_: None, quick(scorer)):
        scorer.quick = one
        with pytest.raises(BadInput) as refused:
            scorer.score(scorer.table(body, kind))
        error = refused.value
        assert (error.status, error.row, error.column) == (status, row, column)
        assert said in str(error)
        assert json.loads(error.body()) == {"error": str(error), "row": row, "column": column}


def test_a_line_of_json_is_one_record_and_no_list_of_them(tmp_path: Path) -> None:
    for make, line in ((numbers_only, b"[[1, 2], [3, 4]]"), (saved, json.dumps(SHAPES[0]).encode())):
        scorer = of(make(tmp_path / make.__name__))
        for one in (quick(scorer), lambda *_: None):
            scorer.quick = one
            with pytest.raises(BadInput, match="Row 1"):
                scorer.score(scorer.table(line, "application/jsonlines"))


def test_code_that_fails_is_said_and_its_features_are_checked(pairs: dict[str, Pair], tmp_path: Path) -> None:
    scorer = pairs["computed"][0]
    with pytest.raises(BadInput, match=r"Row 2, column rate: -?inf is not a finite number"):
        scorer.score(scorer.table(b"1,2,gold,1\n-1,2,gold,1\n", "text/csv"))
    code = "def transform(frame):\n    assert frame['calls'].max() < 9, 'too many'\n    return frame[['calls']]\n"
    (tmp_path / "features.py").write_text(code)
    raw = records()
    raw = raw[raw["calls"] < 9].reset_index(drop=True)
    runner.model.save(tmp_path / "model", trained(raw[["calls"]]), raw, target="left", code=tmp_path / "features.py")
    strict = of(tmp_path / "model")
    with pytest.raises(BadInput, match=r"features\.py has no features of these records: AssertionError\('too many'\)"):
        strict.score(strict.table(b"1,9,gold,1\n", "text/csv"))
    strict.computes.transform = lambda frame: float("many")
    with pytest.raises(BadInput, match=r"of these records: could not convert string to float: 'many'\.$"):
        strict.score(strict.table(b"1,9,gold,1\n", "text/csv"))


ACCEPTS = {
    "": "application/json", "*/*": "application/json", "text/csv": "text/csv", "text/*": "text/csv",
    "application/json;q=0.2, text/csv;q=0.9": "text/csv", "text/html, application/*;q=0.5": "application/json",
    "text/csv;q=0, */*;q=0.1": "application/json", "application/x-ndjson": "application/jsonlines", "TEXT/CSV": "text/csv",
}  # fmt: skip


@pytest.mark.parametrize(("accept", "kind"), ACCEPTS.items())
def test_the_answers_form_is_the_one_that_is_liked_best(accept: str, kind: str) -> None:
    assert accepted(accept) == kind


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*", "nonsense", "text/csv;q=x"])
def test_a_form_that_cannot_be_given_is_refused(accept: str) -> None:
    with pytest.raises(BadInput) as refused:
        accepted(accept)
    assert refused.value.status == 406


def test_an_answer_has_the_prediction_and_its_probability(pairs: dict[str, Pair]) -> None:
    raw = records(6)
    for kind, (scorer, model) in pairs.items():
        raw = records(6)[scorer.names]
        scores = scorer.score(scorer.table(raw.to_json(orient="records").encode(), "application/json"))
        answer = json.loads(scorer.reply(scores, "application/json")[0])
        lines = scorer.reply(scores, "application/jsonlines")[0].splitlines()
        assert answer["model"] == "tiny/1"
        assert [json.loads(line) for line in lines] == answer["predictions"]
        text = scorer.reply(scores, "text/csv")[0].decode().splitlines()
        read = np.array([[float(one) for one in line.split(",")] for line in text], dtype="float32")
        assert read.reshape(scores.shape).tobytes() == model.predict(raw).tobytes()
        one = answer["predictions"][0]
        if kind == "number":
            assert one == {"prediction": float(scores[0])}
        elif kind == "several":
            assert one == {"prediction": int(scores[0].argmax()), "probability": float(scores[0].max())}
        else:
            assert one == {"prediction": bool(scores[0] >= scorer.threshold), "probability": float(scores[0])}


def test_scoring_loads_neither_pandas_nor_the_python_package_of_xgboost(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    code = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('inference', {str(ROOT / 'runner/scoring/inference.py')!r})\n"
        "m = u.module_from_spec(s); sys.modules['inference'] = m; s.loader.exec_module(m)\n"
        f"print(m.model_fn({str(folder)!r}).names)\n"
        "print([n for n in ('pandas', 'xgboost', 'scipy', 'sklearn', 'msgspec', 'runner') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout == "['minutes', 'calls', 'plan', 'roaming']\n[]\n", done.stderr


@pytest.mark.parametrize("change", ["other_trees", "other_sample", "no_model", "columns"])
def test_a_folder_that_cannot_score_its_sample_is_refused(tmp_path: Path, change: str) -> None:
    folder = saved(tmp_path / "model")
    path = folder / "signature.json"
    signature = json.loads(path.read_text())
    if change == "other_trees":
        trained(records(), seed=2, max_depth=1).save_model(folder / "model.ubj")
    elif change == "other_sample":
        signature["sample_prediction"] += 0.01
    elif change == "columns":
        signature["columns"].pop()
    else:
        (folder / "model.ubj").unlink()
    path.write_text(json.dumps(signature))
    with pytest.raises((ValueError, KeyError), match=r"scores|model\.json|[Nn]umber of columns"):
        model_fn(str(folder))


def test_the_errors_are_the_projects_own_kind_of_message(pairs: dict[str, Pair]) -> None:
    """One message, whichever way the records come."""
    scorer, model = pairs["plain"]
    frame = pd.DataFrame([[1, 2, "gold", True], [1, "x", "gold", True]], columns=scorer.names)
    with pytest.raises(UsageError) as expected:
        model.predict(frame)
    with pytest.raises(BadInput) as found:
        scorer.score(scorer.table(frame.to_csv(index=False).encode(), "text/csv"))
    assert str(found.value) == str(expected.value)
