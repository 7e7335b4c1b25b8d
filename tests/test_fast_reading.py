"""The fast path beside the standard library's: the same rows to the bit, the same refusals, the same answers."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import of, records, trained

import runner.model
from runner.scoring.fast_reading import SOME_BYTES, quick, texts
from runner.scoring.inference import CSV, JSON, BadInput, Scorer

MANY = SOME_BYTES // 5  # rows of two numbers that are read in several parts
NUMBERS = ["1", "0", "-0", "-0.0", "12.5", "1e5", "1E-3", "9007199254740993", "18446744073709551617", "1e-400", "0.1234567890123456789"]  # fmt: skip
WRONG = [
    "NaN", "Infinity", "-Infinity", "1e999", "3.5e38", "-3.40282347e38", "1" + "0" * 39, "1" * 4000, "1" * 5000, "null", "true",
    '"1"', '"\\ud800"', "[1]", "{}", "", "01", "1.", "+1", ".5", "1_0", "1 2", "0x1", "1,2", "[1", "1]", "1],[1", "é", "\u00a01",
    "\x0b1", "\0",
]  # fmt: skip


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("numbers") / "model"
    raw = records()[["minutes", "calls"]]
    runner.model.save(folder, trained(raw), raw, target="left")
    return of(folder)


def result(scorer: Scorer, body: bytes, kind: str, *, fast: bool) -> bytes:
    """The scores, or the refusal."""
    scorer.quick = quick(scorer) if fast else lambda *_: None
    try:
        return scorer.score(scorer.table(body, kind)).tobytes()
    except BadInput as error:
        return error.body()


def check(scorer: Scorer, body: bytes, kind: str) -> None:
    assert result(scorer, body, kind, fast=True) == result(scorer, body, kind, fast=False)


def arrays(rows: list[str], *, between: str = ", ") -> str:
    return f"[{between.join(f'[{row}]' for row in rows)}]"


@pytest.mark.parametrize("value", [*NUMBERS, *WRONG])
@pytest.mark.parametrize("count", [1, 2, MANY])
def test_a_value_is_read_or_refused_alike_wherever_it_stands(scorer: Scorer, value: str, count: int) -> None:
    for at in {0, count - 1}:
        rows = ["1.5,2"] * count
        rows[at] = f"3,{value}"
        check(scorer, "\n".join(rows).encode(), CSV)
        check(scorer, arrays(rows).encode(), JSON)
        check(scorer, f'{{"instances": {arrays(rows)}}}'.encode(), JSON)


@pytest.mark.parametrize("row", ["", "1", "1,2,3", "[1,2]", "[[1,2]]", " ", "1,2,"])
@pytest.mark.parametrize("count", [1, 3, MANY])
def test_a_row_of_another_width_is_refused_alike(scorer: Scorer, row: str, count: int) -> None:
    for at in {0, count - 1}:
        rows = ["1.5,2"] * count
        rows[at] = row
        check(scorer, arrays(rows, between=",").encode(), JSON)
        check(scorer, "\n".join(rows).encode(), CSV)


FORMS = [
    "{}", " {}\n", "\ufeff{}", "\ufeff\ufeff{}", "\x0b{}", "{}x", "{}]", "[{}", "[{}]", "{},", "{}\0", '{{"instances":{}}}',
    '{{ "instances" : {} }}\n', '{{"instances":{}', '{{"instances":{}}}}}', '{{"instances":{},"a":1}}', '{{"a":1,"instances":{}}}',
    '{{"instances":{},"instances":[[1,2]]}}', '{{"instances":[[1,2]],"instances":{}}}', '{{"Instances":{}}}',
    '{{"\\u0069nstances":{}}}',
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 3, MANY])
def test_what_stands_around_the_rows_is_read_or_refused_alike(scorer: Scorer, form: str, count: int) -> None:
    rows = [f"{at}, 2.5" for at in range(count)]
    whole = arrays(rows, between="],\n ["[1:-1])
    for text in (whole, whole[:-1] + ",]", whole[:-1] + " , ]", whole[:-1] + "\n]", whole[:-1]):
        check(scorer, form.format(text).encode(), JSON)
    check(scorer, b"\xff" + form.format(whole).encode(), JSON)
    check(scorer, form.format(whole).encode() + b"\xff", JSON)


@pytest.mark.parametrize("ending", ["]", "],", "],\n ", "],[", "],]", "],[3,4]", "] ,[3,4]", "]\n,\n[3,4]", "],,[3,4]"])
def test_what_follows_the_end_of_a_part_is_read_or_refused_alike(scorer: Scorer, ending: str) -> None:
    check(scorer, f"[[{' ' * SOME_BYTES}1,2{ending}]".encode(), JSON)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n", " ", ",", "\n1", "\n]", "\0"])
@pytest.mark.parametrize("count", [1, 3, MANY])
def test_the_end_of_csv_is_read_or_refused_alike(scorer: Scorer, ending: str, count: int) -> None:
    text = "\n".join(f"{at},2.5" for at in range(count)) + ending
    for body in (
        text.encode(),
        f"\ufeff{text}".encode(),
        text.encode() + b"\xff",
        text.replace("\n", "\n\n", 1).encode(),
    ):
        check(scorer, body, CSV)


def test_many_rows_are_the_numbers_in_their_order(scorer: Scorer) -> None:
    numbers = np.random.default_rng(1).normal(0, 1000, (MANY, 2))
    scorer.quick = quick(scorer)
    for body, kind in (
        (json.dumps(numbers.tolist()).encode(), JSON),
        (json.dumps({"instances": numbers.tolist()}).encode(), JSON),
        ("\n".join(",".join(map(repr, row)) for row in numbers.tolist()).encode(), CSV),
    ):
        table = scorer.table(body, kind)
        assert isinstance(table, np.ndarray)
        assert table.tobytes() == numbers.tobytes()


@given(st.lists(st.floats() | st.floats(width=32) | st.integers(0, 2**32 - 1).map(lambda n: struct.unpack("f", struct.pack("I", n))[0]) | st.integers(-3, 99), max_size=40))  # fmt: skip
def test_numbers_of_an_answer_are_written_as_python_writes_them(values: list[float]) -> None:
    assert texts(values) == list(map(repr, values))


def test_an_answer_is_the_same_by_both_writers(scorer: Scorer) -> None:
    scores = np.random.default_rng(2).random(500, dtype="float32") ** 9  # some need an exponent
    plain = [scorer.reply(scores, kind) for kind in (JSON, CSV, "application/jsonlines")]
    written, scorer.texts = scorer.texts, texts
    try:
        assert [scorer.reply(scores, kind) for kind in (JSON, CSV, "application/jsonlines")] == plain
    finally:
        scorer.texts = written
    assert [one["probability"] for one in json.loads(plain[0][0])["predictions"]] == scores.tolist()
