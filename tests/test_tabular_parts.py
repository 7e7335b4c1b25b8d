"""Tables larger than memory: text in blocks, files in parts, what is repeated, and the same trees as in memory."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import tabular
from runner.tabular import blocks, parts
from runner.tabular.beside import ahead

VALUES = st.text(alphabet='ab,"\n\r é', max_size=4)


def read(path: Path, columns: list[str], **more: int) -> pd.DataFrame:
    return pd.concat(tabular.read_blocks(path, columns, **more))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12), size=st.integers(1, 13))
def test_blocks_hold_what_the_csv_module_reads(tmp_path: Path, rows: list[tuple[str, ...]], size: int) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("a", "b", "c"), *rows])
    (tmp_path / "t.csv").write_bytes(file.getvalue().encode())
    found = read(tmp_path / "t.csv", ["c", "a", "b"], rows=size)
    assert found[["a", "b", "c"]].to_numpy().tolist() == [[value.strip() for value in row] for row in rows]
    assert found.index.tolist() == list(range(len(rows)))


def test_every_place_where_a_chunk_may_end_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a,b\r\n1,"x\r\n\ny"\r\n\r\né,"q""q"\r\n3,"p,p"\r\n'
    expected = [["1", "x\r\n\ny"], ["é", 'q"q'], ["3", "p,p"]]
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        for size in range(1, 60):
            monkeypatch.setattr(blocks, "CHUNK", size)
            whole = pd.concat(tabular.read_blocks(tmp_path / "t.csv", ["a", "b"], encoding=encoding))
            assert whole.to_numpy().tolist() == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a,b\n" + b"1,2\n" * 30 + b"1,\xff\n", "is not utf-8: byte 126 is 0xff"),
        (b"a,b\n" + b"1,2\n" * 30 + b"1,\0\n", "line 32: a NUL byte"),
        (b"a,b\n" + b"1,2\n" * 30 + b"1,2,3\n", "line 32: 3 values under 2 columns"),
        (b"a,b\n" + b"1,2\n" * 30 + b'1,"2"x\n', "line 32: .*Check the quotes there"),
        (b"a,b\n" + b"1,2\n" * 30 + b'1,"2\n', "Check the quotes there"),
        (b"\n \n", "is empty"),
        (b"\na,b\n\n", "has a header and no rows"),
    ],
)
def test_a_fault_behind_the_first_chunk_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    for size in (7, 1 << 20):
        monkeypatch.setattr(blocks, "CHUNK", size)
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / "t.csv", ["a", "b"])


def test_numbers_are_those_of_pandas() -> None:
    text = pd.DataFrame(
        {
            "whole": ["1", "-2", "007"],
            "gap": ["1", "", "3"],
            "real": ["1.25", "1e3", "-0.1"],
            "odd": ["+5", "inf", "many"],
            "none": ["", "", ""],
        },
        dtype="str",
    )
    pd.testing.assert_frame_equal(tabular.parse_numbers(text), text.apply(pd.to_numeric, errors="coerce"))


def test_one_part_is_the_file_that_pandas_writes_and_nothing_stays_of_a_failure(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "t": ["a", None]})
    with tabular.write_parts({"one": tmp_path / "one.parquet", "two": tmp_path / "two.parquet"}) as write:
        write("one", frame)
        write("two", frame.assign(t=None))
        write("two", frame.assign(n=[None, 1.5]))
    frame.to_parquet(tmp_path / "expected.parquet", index=False)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "two.parquet").num_row_groups == tabular.count_parts(tmp_path / "two.parquet") == 2
    assert pd.concat(tabular.read_parts(tmp_path / "two.parquet"))["n"].tolist()[0::3] == [1, 1.5]
    with pytest.raises(KeyError), tabular.write_parts({"never": tmp_path / "never.parquet"}) as write:  # noqa: PT012
        for _ in range(3):
            write("never", frame)
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.parquet", "one.parquet", "two.parquet"]


def test_what_writing_a_part_raises_comes_with_the_next_or_at_the_end(tmp_path: Path) -> None:
    whole, text = pd.DataFrame({"n": [1.0]}), pd.DataFrame({"n": ["many"]})
    for after in (0, 2):
        written = 0
        places = {"t": tmp_path / "t.parquet"}
        with pytest.raises(pa.ArrowInvalid, match="many"), tabular.write_parts(places) as write:  # noqa: PT012
            for part in [whole, text, *[whole] * after]:
                write("t", part)
                written += 1
        assert written == 2  # nothing is written behind a part that could not be
    assert not list(tmp_path.iterdir())


def test_a_part_that_could_not_be_written_is_not_left_out_unseen(tmp_path: Path) -> None:
    whole, text = pd.DataFrame({"n": [1.0]}), pd.DataFrame({"n": ["many"]})
    files = tabular.PartFiles({"one": tmp_path / "one.parquet", "two": tmp_path / "two.parquet"})
    for part in (whole, text, whole, whole):
        for name in ("one", "two"):
            with contextlib.suppress(pa.ArrowInvalid):
                files.write(name, part)
    with pytest.raises(pa.ArrowInvalid, match="many"):
        files.keep()
    files.discard()
    assert not list(tmp_path.iterdir())


def test_files_that_the_collector_finds_while_one_is_written_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, gone = threading.Event(), threading.Event()
    add, write = parts._File._add, parts._File._write

    def collect(self: Any, frame: pd.DataFrame) -> None:
        if len(frame) == 1:  # before there is a file; by then nobody else holds them
            gone.wait(20)
            gc.collect()
        add(self, frame)

    def last(self: Any, frame: pd.DataFrame) -> None:
        write(self, frame)
        if len(frame) == 2:
            done.set()

    monkeypatch.setattr(parts._File, "_add", collect)
    monkeypatch.setattr(parts._File, "_write", last)
    files: Any = tabular.PartFiles({name: tmp_path / f"{name}.parquet" for name in ("t", "other")})
    files.itself = files
    for rows in (1, 2):
        files.write("t", pd.DataFrame({"n": np.zeros(rows)}))
    del files
    gone.set()
    assert done.wait(20)
    assert not list(tmp_path.iterdir())


def test_parts_are_read_and_written_in_an_exit_handler(tmp_path: Path) -> None:
    code = """
import atexit, pandas as pd
from runner import tabular
def last():
    with tabular.write_parts({"t": "t.parquet"}) as write:
        for at in range(3):
            write("t", pd.DataFrame({"n": [float(at)]}))
    print([part["n"].tolist() for part in tabular.read_parts("t.parquet")])
atexit.register(last)
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[[0.0], [1.0], [2.0]]\n", "")


def test_a_frame_may_be_changed_once_it_was_given_to_be_written(tmp_path: Path) -> None:
    with tabular.write_parts({"t": tmp_path / "t.parquet"}) as write:
        for at in range(3):
            frame = pd.DataFrame({"n": np.full(200_000, float(at))})
            write("t", frame)
            frame.loc[:, "n"] = -1.0
            frame["more"] = 1
    found = pd.read_parquet(tmp_path / "t.parquet")
    assert found["n"].value_counts().to_dict() == {0.0: 200_000, 1.0: 200_000, 2.0: 200_000}
    assert list(found) == ["n"]


def test_the_next_part_is_made_while_one_is_worked_on_and_an_error_comes_in_its_place() -> None:
    made: list[int] = []
    reached = threading.Event()

    def parts() -> Iterator[int]:
        for at in range(4):
            if at == 3:
                raise ValueError("the fourth")
            made.append(at)
            if at == 2:
                reached.set()
            yield at

    reading = ahead(parts())
    assert next(reading) == 0
    assert made == [0]  # whoever takes a first part only reads no further
    assert next(reading) == 1
    assert reached.wait(30)  # without having been asked for
    assert next(reading) == 2
    with pytest.raises(ValueError, match="the fourth"):
        next(reading)
    before = threading.active_count()
    reading = ahead(iter(range(9)))
    assert [next(reading), next(reading)] == [0, 1]
    assert threading.active_count() == before + 1
    reading.close()
    assert threading.active_count() == before


def test_repeated_keys_and_rows_are_found_across_blocks() -> None:
    table = pd.DataFrame({"key": ["a", "b", "c", "b", "d", "a"], "value": ["1", "2", "3", "x", "4", "1"]}, dtype="str")

    def found(frame: pd.DataFrame) -> tabular.Repeats:
        pieces = [frame.iloc[at : at + 2] for at in range(0, len(frame), 2)]
        return tabular.repeats(lambda: iter(pieces), "key", [tabular.key_hashes(piece["key"]) for piece in pieces])

    assert (found(table).rows, found(table).keys, found(table).copies.index.tolist()) == (4, ["a", "b"], [0, 5])
    assert (found(table[:5]).rows, found(table[:5]).copies.empty) == (2, True)
    assert found(table[:3]).rows == 0


def test_external_memory_learns_the_trees_of_memory_and_a_sample_has_what_save_needs(tmp_path: Path) -> None:
    from runner.model import load, save

    chance = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": chance.integers(0, 200, 3000).astype("float64"), "kind": chance.choice(["b", "a"], 3000)}
    )
    frame.loc[2500, ["x", "kind"]] = [np.nan, "rare"]
    frame["y"] = (chance.random(3000) < 0.2 + 0.6 * (frame["x"] > 100)).astype("int8")
    with tabular.write_parts({"one": tmp_path / "one.parquet", "some": tmp_path / "some.parquet"}) as write:
        write("one", frame)
        for at in range(0, 3000, 1000):
            write("some", frame[at : at + 1000])
    known = pd.CategoricalDtype(tabular.known_values(tmp_path / "some.parquet", ["kind"])["kind"])

    def records(part: pd.DataFrame) -> pd.DataFrame:
        return part[["x"]].assign(kind=tabular.known_category(part["kind"], known))

    matrices = [tabular.read_matrix(tmp_path / f"{name}.parquet", records, "y") for name in ("one", "some")]
    assert [type(matrix) for matrix in matrices] == [xgb.DMatrix, xgb.ExtMemQuantileDMatrix]
    options = {"objective": "binary:logistic", "max_depth": 3, "subsample": 0.8, "seed": 1, "nthread": 2}
    boosters = [xgb.train(options, matrix, 10) for matrix in matrices]
    assert boosters[0].save_raw("json") == boosters[1].save_raw("json")
    judged = tabular.read_matrix(tmp_path / "one.parquet", records, "y", reference=matrices[1])
    assert (boosters[0].predict(judged) == boosters[0].predict(matrices[0])).all()
    sample = tabular.sample_rows(map(records, tabular.read_parts(tmp_path / "some.parquet")), 7)
    assert 430 <= len(sample) <= 432
    assert sample["kind"].tolist().count("rare") == 1
    save(tmp_path / "model", boosters[1], sample, target="y", positive="1")
    scores = load(tmp_path / "model").predict(records(frame).astype({"kind": "str"}))
    assert np.array_equal(scores, boosters[0].predict(matrices[0]))
