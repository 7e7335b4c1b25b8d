"""`runner init`: what it sees in a table, what it writes, and that it writes all of it or nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.commands import command, environment
from support.projects import ROOT, Project, program

from runner import tabular
from runner.errors import UsageError
from runner.failpoint import INIT_NAMES, VARIABLE
from runner.init import columns, look, sample, shipped
from runner.init.guess import Guess, guess
from runner.pipeline.plan import plan

SHARED = ROOT.parent / "shared" / "data"
EXAMPLE = ROOT / "runner" / "templates" / "example" / "deliveries.csv"
# a table in which each column is a case of its own
ROWS = 60
CASES: dict[str, Any] = {
    "#": lambda row: row + 1,
    "customerID": lambda row: f"C-{row * 37 % 1000:04d}",
    "age": lambda row: 20 + row * 7 % 50,
    "plan": lambda row: ("basic", "plus", "max")[row % 3],
    "zip": lambda row: f"0{row % 5}123",
    "total": lambda row: "NA" if row == 9 else "" if row == 4 else row / 8,
    "since": lambda row: (dt.date(2024, 1, 28) + dt.timedelta(days=row)).strftime("%d.%m.%Y"),
    "country": lambda row: "DE",
    "empty": lambda row: "",
    "comment": lambda row: f"he said {row}, and then some",
    "orderNo": lambda row: 10_000 + row * row,
    "cancelled": lambda row: "gone" if row % 4 == 0 else "here",
    "churned": lambda row: "yes" if row % 4 == 0 else "no",
}


def table(path: Path, cases: Mapping[str, Any] = CASES, *, rows: int = ROWS, delimiter: str = ",") -> Path:
    lines = [delimiter.join(cases)]
    lines += [delimiter.join(str(case(row)) for case in cases.values()) for row in range(rows)]
    quoted = [re.sub(r"(he said [^;\n]*some)", r'"\1"', line) for line in lines]
    path.write_text("\n".join(quoted) + "\n", encoding="utf-8")
    return path


def looked_at(path: Path, target: str = "churned", **asked: Any) -> Guess:
    return guess(sample.read(path), target=target, **asked)


def kinds(found: Guess) -> dict[str, str]:
    return {column.name: column.kind for column in found.columns}


# Looking at a table


def test_each_column_has_a_kind_and_a_reason(tmp_path: Path) -> None:
    found = looked_at(table(tmp_path / "t.csv"))
    assert kinds(found) == {
        "#": "ignore", "customerID": "key", "age": "number", "plan": "category", "zip": "category", "total": "number",
        "since": "date", "country": "ignore", "empty": "ignore", "comment": "text", "orderNo": "ignore",
        "cancelled": "category", "churned": "target",
    }  # fmt: skip
    said = {column.name: column.comment for column in found.columns}
    assert said["#"] == "counts the rows"
    assert said["customerID"] == "60 values, all different"
    assert said["total"] == "0 to 7.375; NA for missing; 1 blank"
    assert said["country"] == "always DE"
    assert said["empty"] == "all blank"
    assert said["comment"].startswith("all different, too many values")
    assert said["orderNo"].startswith("tells the rows apart")
    assert said["cancelled"].endswith("CAREFUL: repeats the target")
    assert said["churned"] == "no 45, yes 15"
    assert (found.answer.task, found.answer.positive, found.key) == ("binary", "yes", "customerID")
    assert found.markers == ["NA"]
    assert [remark for remark in found.remarks if remark.startswith("cancelled alone gives churned")]


def test_columns_toml_is_read_as_what_was_guessed(tmp_path: Path) -> None:
    found = looked_at(table(tmp_path / "t.csv"))
    written = columns.text(found, "t.csv")
    read = tomllib.loads(written)
    assert read["table"] == {
        "format": "csv", "encoding": "utf-8", "delimiter": ",", "decimal": ".", "missing": ["NA"], "target": "churned",
        "task": "binary", "positive": "yes", "key": "customerID",
    }  # fmt: skip
    assert read["columns"] == kinds(found)
    assert list(read["columns"]) == list(CASES)
    assert read["dates"] == {"since": "%d.%m.%Y"}
    assert '"#" = "ignore"' in written
    assert "# counts the rows" in written


NAMES = [
    'a "quoted" one',
    "new\nline",
    "back\\slash",
    "[table]",
    "a = 1 # no",
    "tab\there",
    "\x1b[31mred",
    "ü'ü",
    "\x7f",
    "a.b",
]


def test_names_that_toml_or_a_terminal_would_obey_are_inert(tmp_path: Path) -> None:
    import csv

    path = tmp_path / "odd.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "target"])
        writer.writerows([*(row * 3 % 7 + at for at in range(len(NAMES))), row % 2] for row in range(40))
    found = looked_at(path, "target")
    written = columns.text(found, "an\x1b]0;evil\x07 name.csv")
    assert list(tomllib.loads(written)["columns"]) == [*NAMES, "target"]
    shown = written + "\n".join(columns.line(column, 20) for column in found.columns)
    assert not [character for character in re.sub(r'^".*" = ', "", shown, flags=re.M) if character in "\x1b\x07\x7f"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    found = looked_at(table(tmp_path / "t.csv", delimiter=delimiter))
    assert found.sample.delimiter == delimiter
    assert len(found.columns) == len(CASES)


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"),
     ("cp1252", "cp1252"), ("latin-1", "latin-1")],
)  # fmt: skip
def test_the_encoding_is_found(tmp_path: Path, encoding: str, named: str) -> None:
    odd = "\x85\x81" if encoding == "latin-1" else "€" * (encoding != "latin-1")
    path = tmp_path / "t.csv"
    text = "größe,stadt,y\n" + "".join(f"{row},{('Köln', 'Öhr' + odd)[row % 2]},{row % 2}\n" for row in range(300))
    path.write_bytes(text.encode(encoding))
    found = looked_at(path, "y")
    assert found.sample.encoding == named
    assert list(kinds(found)) == ["größe", "stadt", "y"]
    assert path.read_bytes().decode(named).removeprefix("\ufeff") == text


def test_a_decimal_comma_is_found_and_only_where_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a;b;c;y\n" + "".join(f"{row},5;{row};{row * 2},25;{row % 2}\n" for row in range(50)))
    found = looked_at(path, "y")
    assert (found.decimal_comma, kinds(found)["a"], kinds(found)["c"]) == (True, "number", "number")
    assert "0.5 to 49.5" in found.columns[0].comment
    assert tomllib.loads(columns.text(found, "t"))["table"]["decimal"] == ","
    path.write_text("a;b;y\n" + "".join(f"{row}.5;{row};{row % 2}\n" for row in range(50)))
    assert not looked_at(path, "y").decimal_comma


@pytest.mark.parametrize("written", look.DATE_FORMATS)
def test_a_date_is_found_in_whatever_form(written: str) -> None:
    start = dt.datetime(2019, 12, 20, 23, 58, 59, 123456, tzinfo=dt.UTC)
    texts = [(start + dt.timedelta(days=37 * day, hours=day)).strftime(written) for day in range(40)]
    column = look.column("when", texts)
    assert column.kind == "date"
    parsed = [dt.datetime.strptime(text, column.date_format) for text in texts]
    assert [one.strftime(written) for one in parsed] == texts


def test_a_date_that_could_be_another_says_so_and_numbers_are_no_dates() -> None:
    assert "would fit too" in look.column("d", ["01/02/2020", "03/04/2020", "05/06/2021"]).comment
    assert "would" not in look.column("d", ["13/02/2020", "03/04/2020", "05/06/2021"]).comment
    assert look.column("order_date", ["20200101", "20200215"]).date_format == "%Y%m%d"
    assert look.column("amount", ["20200101", "20200215"]).kind == "number"


@pytest.mark.parametrize(
    ("values", "task", "positive"),
    [
        (["no", "yes"], "binary", "yes"),
        (["True.", "False."], "binary", "True."),
        (["0", "1"], "binary", "1"),
        ([True, False], "binary", "true"),
        (["b", "a", "b"], "binary", "a"),
        (["setosa", "virginica", "versicolor"], "multiclass", ""),
        (["0", "1", "2"], "multiclass", ""),
        (["3", "4", "6"], "regression", ""),
        (["a", "A", "b", "c"], "multiclass", ""),
        (["none", "mild", "-"], "multiclass", ""),
        ([1.5, 2.25, 7.0], "regression", ""),
        ([str(number) for number in range(29)], "regression", ""),
    ],
)
def test_the_task_follows_from_the_target(values: list[Any], task: str, positive: str) -> None:
    rows = [values[row % len(values)] for row in range(290)]
    found = guess(sample.Sample("jsonl", {"x": [row * 7 % 31 for row in range(290)], "y": rows}, 290), target="y")
    assert (found.answer.task, found.answer.positive) == (task, positive)


@pytest.mark.parametrize("format_name", ["parquet", "jsonl", "xlsx"])
def test_other_formats_are_looked_at_by_their_types(tmp_path: Path, format_name: str) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "id": [f"k{row}" for row in range(ROWS)], "n": [row / 4 for row in range(ROWS)],
            "flag": [row % 3 == 0 for row in range(ROWS)],
            "day": [dt.datetime(2024, 5, 1) + dt.timedelta(days=row) for row in range(ROWS)],
            "y": ["in" if row % 2 else "out" for row in range(ROWS)],
        }
    )  # fmt: skip
    frame.loc[3, "n"] = None
    path = tmp_path / f"t.{format_name}"
    if format_name == "parquet":
        frame.assign(tags=[[1]] * ROWS).to_parquet(path)
    elif format_name == "jsonl":
        lines = frame.assign(day=frame["day"].dt.strftime("%Y-%m-%d"), tags=[[1]] * ROWS)
        lines.to_json(path, orient="records", lines=True)
    else:
        frame.to_excel(path, index=False)
    found = looked_at(path, "y")
    flag = "category" if format_name == "xlsx" else "boolean"
    expected = {"id": "key", "n": "number", "flag": flag, "day": "date", "y": "target"}
    assert kinds(found) == expected | ({} if format_name == "xlsx" else {"tags": "ignore"})
    assert "1 blank" in found.columns[1].comment


@pytest.mark.soak
def test_of_a_large_file_parts_from_beginning_to_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    each = 300_000
    with path.open("w") as file:
        file.write("id,words,y\n")
        for answer in ("no", "maybe", "yes"):  # sorted by the answer: the beginning has one only
            some = "".join(f"{answer}-{row},{'x' * 40}{row % 5},{answer}\n" for row in range(1_000))
            file.write(some * (each // 1_000))
    assert path.stat().st_size > 2 * sample.WHOLE_BYTES
    found = looked_at(path, "y")
    assert not found.sample.whole
    assert found.sample.rows == pytest.approx(3 * each, rel=0.05)
    assert found.sample.rows_read < each
    assert found.answer.task == "multiclass"
    assert kinds(found)["words"] == "category"
    assert "The file is large" in found.remarks[0]


@pytest.mark.soak
def test_a_large_file_of_utf_16_is_read_from_its_beginning_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.init import make as module
    from runner.init.make import Asked, make

    path = tmp_path / "large.csv"
    rows = "".join(f"{row * 7 % 13},Köln,{row % 2}\n" for row in range(100_000))
    path.write_bytes(("größe,stadt,y\n" + rows * 10).encode("utf-16"))
    found = looked_at(path, "y")
    assert (found.sample.encoding, found.sample.whole) == ("utf-16", False)
    assert found.sample.rows == pytest.approx(1_000_000, rel=0.05)
    assert kinds(found) == {"größe": "number", "stadt": "ignore", "y": "target"}
    monkeypatch.setattr(module, "LARGEST_COPY", 10_000_000)
    project = make(tmp_path / "new", "tabular", Asked(path, "y"))
    assert "stays where it is" in project.remarks[0]
    assert project.guess is not None
    assert (project.guess.sample.rows, project.guess.sample.counted) == (1_000_000, True)
    assert plan(tmp_path / "new" / "pipeline.toml").pipeline.steps["data"].inputs["source"].from_ == str(path)


LATE: dict[str, Any] = {  # rows of a large table that no part of the sample has
    "income": lambda row: "n/a" if row == 7_501 else "" if row == 7_502 else f"{row * 7 % 3_001}.5",
    "home": lambda row: "boat" if row == 7_501 else ("own", "rent")[row % 2],
    "years": lambda row: "" if row == 7_503 else row % 9,
    "y": lambda row: ("no", "yes")[row % 3 == 0],
}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_is_rare_in_a_large_file_is_found_by_reading_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import pandas as pd

    from runner.init.make import Asked, make

    monkeypatch.setattr(sample, "WHOLE_BYTES", 8_000)
    monkeypatch.setattr(sample, "MOST_VALUES", 40)
    path = table(tmp_path / "t.csv", LATE, rows=8_000)
    if form != "csv":
        frame = pd.read_csv(path, keep_default_na=False)
        frame["years"] = pd.to_numeric(frame["years"])
        path = tmp_path / f"t.{form}"
        frame.to_parquet(path, row_group_size=1_000) if form == "parquet" else frame.to_json(
            path, orient="records", lines=True
        )
    assert "boat" not in sample.read(path).columns["home"]
    found = make(tmp_path / "new", "tabular", Asked(path, "y")).guess
    assert found is not None
    assert (found.sample.whole, found.sample.counted, found.sample.rows) == (False, True, 8_000)
    assert found.sample.rare["home"] == ["boat"]
    assert set(found.sample.rare["income"]) == {"n/a", None}
    assert found.sample.blanks["years"] == (1, 7_504)
    assert kinds(found) == {"income": "number", "home": "category", "years": "number", "y": "target"}
    assert found.markers == ["n/a"]
    with pytest.raises(UsageError, match="target years is blank in 1 of 8,000 rows, first in row 7,504"):
        make(tmp_path / "other", "tabular", Asked(path, "years"))


def test_names_that_are_numbers_are_names_where_they_count_or_are_years(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    good = "".join(f"{row * 3 % 7}.5,{row % 5},{row % 2}\n" for row in range(40))
    for header in ("0,1,2", "land,2019,2020"):
        path.write_text(f"{header}\n{good}")
        assert list(sample.read(path).columns) == header.split(",")


# Tables that are none


def hostile(folder: Path) -> dict[str, tuple[Path | bytes, str]]:
    """By name: the file, or its bytes, and a part of the sentence."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    good = "".join(f"{row},{row % 3},{row % 2}\n" for row in range(30))
    return {
        "missing": (folder / "nothing", "No such file"),
        "folder": (folder / "folder", "is a folder"),
        "pipe": (folder / "pipe", "not a regular file"),
        "empty": (b"", "is empty"),
        "blank lines": (b"\n\n\n", "is empty"),
        "header only": (b"a,b,y\n", "0 rows"),
        "one row": (b"a,b,y\n1,2,3\n", "1 row"),
        "one column": (b"y\n" + b"1\n" * 30, "has one column"),
        "duplicate": (b"a,a,y\n" + good.encode(), "has 'a' 2 times"),
        "blank names": (b",,y\n" + good.encode(), "has a blank name 2 times"),
        "no header": (good.replace(",", ".5,").encode(), "has no header"),
        "nul": (b"a,b,y\n" + good.encode() + b"1,\0,1\n", "line 32: a NUL byte"),
        "nul in a name": (b"a\0,b,y\n" + good.encode(), "line 1: a NUL byte"),
        "binary": (bytes(range(256)) * 40, "NUL byte"),
        "control": (b"a,b,y\n" + bytes(range(1, 9)) * 40, "control characters"),
        "gzip": (b"\x1f\x8b\x08" + b"0" * 90, "is compressed by gzip"),
        "old excel": (b"\xd0\xcf\x11\xe0" + b"0" * 90, "old Excel"),
        "zip": (b"PK\x03\x04" + b"0" * 90, "no workbook"),
        "parquet cut off": (b"PAR1" + b"0" * 90, "cannot be read as one"),
        "wide": ((",".join(f"c{n}" for n in range(10_000)) + "\n").encode() + (b"1," * 9_999 + b"1\n") * 5, "10,000 columns"),
        "ragged": (f"a,b,y\n{good}1,2\n".encode(), "line 32: 2 values under 3 columns"),
        "open quote": (f'a,b,y\n{good}"1,2,3\n'.encode(), "Check the quotes"),
        "json document": (b'[{"y": 1}]', "JSON lines"),
        "json list": (b'{"y": 1}\n[1]\n', "line 2: a list"),
        "json cut off": (b'{"a": 1, "y": 1}\n{"a": \n', "line 2 is not JSON"),
        "json deep": (b'{"a": 1, "y": 1}\n{"a":' + b"[" * 100_000 + b"}\n", "line 2 is not JSON"),
        "one value": (b"a,y\n" + b"1,no\n" * 30, "'no' in every row"),
        "blank target": (b"a,y\n" + b"1,no\n2,\n3,yes\n" * 10, "blank in 10 of 30 rows, first in row 2"),
        "NA among numbers": ("a,y\n" + "".join(f"{n},{n * 7}.5\n{n},-\n{n},NA\n" for n in range(30)), "has '-' and 'NA' in 60 of 90 rows, first in row 2"),
        "NA among answers": (b"a,y\n" + b"1,no\n2,NA\n3,yes\n" * 10, "has 'NA' in 10 of 30 rows, first in row 2: no value"),
        "capital letters": (b"a,y\n" + b"1,no\n2,Yes\n3,yes\n" * 10, "has 'Yes' in 10 rows and 'yes' in 10"),
        "blanks between": (b"a b y\n" + b"1 2 no\n" * 9, "has one column"),
        "all blank target": (b"a,y\n" + b"1,\n2,\n" * 10, "blank in every row"),
        "all different": ("a,y\n" + "".join(f"{n},text {n}\n" for n in range(60)), "all different texts"),
        "rare answer": (b"a,y\n" + b"1,no\n" * 30 + b"1,yes\n", "'yes' in 1 of 31 rows"),
        "nothing left": (b"a,y\n" + b"1,no\n2,yes\n".replace(b"2", b"1") * 30, "no column is left"),
        "no such column": (b"a,target\n" + b"1,no\n2,yes\n" * 30, "--target 'y': the table has no such column"),
    }  # fmt: skip


def test_what_is_no_table_gets_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    from runner.init.make import Asked, make

    given = tmp_path / "given"
    given.mkdir()
    for name, (content, part) in hostile(given).items():
        path = content if isinstance(content, Path) else given / f"{name}.csv"
        if not isinstance(content, Path):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UsageError) as refused:
            make(tmp_path / "project", "tabular", Asked(path, "y"))
        said = str(refused.value)
        assert part in said, name
        assert said.endswith("."), name
        assert len(said) < 400, name
        assert [entry.name for entry in tmp_path.iterdir()] == ["given"], name


def test_a_file_without_a_header_takes_names(tmp_path: Path) -> None:
    path = tmp_path / "bare.data"
    path.write_text("".join(f"{row}.5,{row % 3},{row % 2}\n" for row in range(30)))
    found = guess(sample.read(path, ["a", "b", "y"]), target="y")
    assert kinds(found) == {"a": "number", "b": "number", "y": "target"}
    assert found.sample.rows == 30


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_names_stand_before_the_rows_whatever_the_order_of_bytes(tmp_path: Path, encoding: str, mark: str) -> None:
    rows = "".join(f"{row}.5,é{row % 3},{row % 2}\n" for row in range(30))
    (tmp_path / "bare.csv").write_bytes((mark + rows).encode(encoding))
    asked = ("--data", "bare.csv", "--names", "a,b,y", "--target", "y")
    made = tmp_path / "made"
    Project(tmp_path).runner("init", "made", *asked)
    assert (made / "data/bare.csv").read_bytes() == (f"{mark}a,b,y\n{rows}").encode(encoding)
    found = tabular.read_columns(made / "columns.toml")
    (read,) = tabular.read_rows(made / "data/bare.csv", found)
    assert read["a"].tolist() == [f"{row}.5" for row in range(30)]


def test_a_name_that_the_files_encoding_cannot_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_bytes(
        "".join(f"{row}.5,é{row % 3},{row % 2}\n" for row in range(30)).encode("cp1252")
    )
    done = Project(tmp_path).runner("init", "made", "--data", "bare.csv", "--names", "a,ł,y", "--target", "y")
    assert (done.code, "the table is cp1252, which has no 'ł'" in done.err) == (2, True)
    assert not (tmp_path / "made").exists()


def test_of_values_that_nothing_separates_the_four_delimiters_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bare.data"
    path.write_text("1.5 2 0\n" * 30)
    with pytest.raises(
        UsageError, match=r"line 1: 1 value under 3 columns\. Separate values by a comma, a semicolon, a tab"
    ):
        sample.read(path, ["a", "b", "y"])


def test_blanks_after_each_comma_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "adult.csv"
    path.write_text("age, work, y\n" + "".join(f"{row}, w{row % 3}, {row % 2}\n" for row in range(30)))
    found = guess(sample.read(path), target="y")
    sentence = "Names and values begin with a blank, as the file has them."
    assert (found.target, sentence in found.remarks) == (" y", True)
    assert sentence in columns.text(found, path.name)
    path.write_text(path.read_text().replace(", ", ","))
    assert not [remark for remark in guess(sample.read(path), target="y").remarks if "blank" in remark]


# The command


def test_without_a_terminal_the_question_is_which_option_to_give(project: Project) -> None:
    table(project.folder / "t.csv")
    done = project.runner("init", "new", "--data", "t.csv")
    assert done.code == 2
    assert "--target COLUMN" in done.err
    assert "churned" in done.err
    assert not (project.folder / "new").exists()


def test_what_belongs_to_a_table_needs_one(project: Project) -> None:
    assert "--data FILE" in project.runner("init", "new", "--target", "y").err
    assert "brings its own table" in project.runner("init", "new", "--template", "blank", "--data", "t.csv").err
    assert not list(project.folder.iterdir())


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("init")
    done = Project(folder).runner("init", "My first, project", "--template", "blank", "--json")
    assert done.code == 0, done.err
    made = Project(folder / "My first, project")
    assert done.json["files"] == sorted(
        str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()
    )
    return made


def test_a_project_is_sound_and_named_after_its_folder(blank: Project) -> None:
    assert plan(blank.folder / "pipeline.toml").pipeline.name == "My-first-project"
    assert (blank.folder / "README.md").read_text().startswith("# My-first-project\n")
    assert "{{" not in (blank.folder / "README.md").read_text() + (blank.folder / "pipeline.toml").read_text()


def test_its_one_test_runs_the_smoke_profile(blank: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unittest", "discover", "-s", "tests"], cwd=blank.folder, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ran 1 test" in done.stderr
    assert blank.manifest["profile"] == "smoke"
    assert {step["status"] for step in blank.manifest["steps"]} == {"succeeded"}


def test_its_workflows_and_locks_are_this_repositorys(blank: Project) -> None:
    same = [
        ".github/workflows/main.yml",
        ".github/workflows/pull-request.yml",
        "codebuild-buildspec.yml",
        "requirements.lock",
    ]
    for name in same:
        assert (blank.folder / name).read_bytes() == (ROOT / name).read_bytes()
    lock = (blank.folder / "requirements-all.lock").read_bytes()
    assert lock == (ROOT / "requirements-project.lock").read_bytes()
    asked = re.findall(r"make (\S+)", "".join((blank.folder / name).read_text() for name in same[:3]))
    assert set(asked) == {".venv/.core", ".venv/.all"}
    for target in ("run", "test", "studio", *asked):
        shown = [program("make"), "--dry-run", target]
        done = subprocess.run(shown, cwd=blank.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert target == "studio" or "papermill_runner-" in done.stdout


def test_environment_yml_has_the_pins_without_what_tests_this_program(blank: Project) -> None:
    import yaml

    written = yaml.safe_load((blank.folder / "environment.yml").read_text())
    pins = written["dependencies"][-1]["pip"]
    assert pins[-1] == f"./wheels/{next((blank.folder / 'wheels').iterdir()).name}"
    names = {pin.partition("==")[0] for pin in pins[:-1]}
    assert {"papermill", "pandas", "jupyterlab", "sagemaker"} <= names
    assert not {"pytest", "moto[server]", "sphinx", "mypy"} & names


def test_the_shipped_use_case_is_a_template_that_stays_what_it_is(project: Project) -> None:
    done = project.runner("init", "copy", "--template", "churn", "--aws")
    assert done.code == 0, done.err
    folder = project.folder / "copy"
    for path in sorted(
        [*(ROOT / "notebooks").glob("*.ipynb"), ROOT / "data" / "churn.csv", *(ROOT / "infra").rglob("*")]
    ):
        if path.is_file() and path.suffix != ".pyc":  # another test may be importing one of them
            assert (folder / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert (folder / "pipeline.toml").read_text().startswith((ROOT / "pipeline.toml").read_text())
    assert plan(folder / "pipeline.toml").pipeline.name == "churn"
    assert os.access(folder / "infra" / "studio-lifecycle.sh", os.X_OK)
    assert "runner approve churn/1" in (folder / "README.md").read_text()


def test_nothing_that_is_there_is_overwritten(project: Project) -> None:
    (project.folder / "README.md").write_text("mine")
    done = project.runner("init", ".", "--template", "blank")
    assert done.code == 2
    assert "has README.md already, and nothing is overwritten" in done.err
    assert [entry.name for entry in project.folder.iterdir()] == ["README.md"]
    done = project.runner("init", "README.md", "--template", "blank")
    assert "is not a folder" in done.err
    assert (project.folder / "README.md").read_text() == "mine"


def test_a_folder_that_has_other_things_keeps_them(project: Project) -> None:
    (project.folder / ".git").mkdir()
    (project.folder / "LICENSE").write_text("mine")
    done = project.runner("init", ".", "--template", "blank")
    assert done.code == 0, done.err
    assert (project.folder / "LICENSE").read_text() == "mine"
    assert plan(project.folder / "pipeline.toml").steps
    assert not list(project.folder.glob(".runner-init*"))


@pytest.mark.cases(1)
@pytest.mark.parametrize(("point", "there"), list(itertools.product(INIT_NAMES, [False, True])))
def test_a_killed_init_leaves_nothing_half_and_the_next_one_clears_it_away(
    project: Project, point: str, there: bool
) -> None:
    folder = project.folder / "new"
    if there:
        folder.mkdir()
    done = project.runner("init", "new", "--template", "blank", env={VARIABLE: point})
    assert done.code == -signal.SIGKILL
    assert not (folder / "pipeline.toml").exists()
    assert folder.exists() == there
    assert not [entry for entry in project.folder.rglob("*") if "-init-" not in str(entry) and entry != folder]
    done = project.runner("init", "new", "--template", "blank")
    assert done.code == 0, done.err
    assert [entry.name for entry in project.folder.iterdir()] == ["new"]
    assert not list(folder.glob(".*init*"))


# The program itself, as a wheel


def test_the_wheel_has_what_the_build_has_and_a_record_of_it(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(asked, cwd=ROOT, capture_output=True, check=True)
    (built,) = tmp_path.glob("*.whl")
    name, packed = shipped.wheel()
    assert name == built.name
    (tmp_path / "packed.whl").write_bytes(packed)
    with zipfile.ZipFile(built) as one, zipfile.ZipFile(tmp_path / "packed.whl") as other:
        assert set(one.namelist()) == set(other.namelist())
        differing = {path for path in one.namelist() if one.read(path) != other.read(path)}
        assert {Path(path).name for path in differing} <= {"RECORD", "WHEEL", "METADATA"}
    assert shipped.wheel() == (name, packed)


def test_from_an_installed_wheel_a_project_is_made_with_the_same_wheel(blank: Project, tmp_path: Path) -> None:
    (wheel,) = (blank.folder / "wheels").iterdir()
    line = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(line, check=True)
    installed = environment({"PYTHONPATH": str(tmp_path / "site")})
    done = subprocess.run(
        command("init", "made", "--template", "churn", "--aws", "--json"), cwd=tmp_path, env=installed,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = Project(tmp_path).runner("init", "here", "--template", "churn", "--aws", "--json")
    assert json.loads(done.stdout)["files"] == here.json["files"]
    for name in here.json["files"]:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_the_examples_bytes_are_what_its_script_makes() -> None:
    script = ROOT / "data" / "make_deliveries.py"
    made = subprocess.run(
        [sys.executable, "-c", "import make_deliveries as m; print(m.deliveries().to_csv(index=False), end='')"],
        cwd=script.parent, capture_output=True, check=True,
    )  # fmt: skip
    assert made.stdout == EXAMPLE.read_bytes()
    assert kinds(looked_at(EXAMPLE, "late"))["ordered"] == "date"


def test_on_a_terminal_it_asks_what_it_cannot_know(project: Project) -> None:
    cases = {"a": CASES["age"], "b": CASES["plan"], "kind": lambda row: "east" if row % 3 else "west"}
    table(project.folder / "t.csv", cases)
    ours, theirs = os.openpty()
    line = command("init", "new", "--data", "t.csv")
    with subprocess.Popen(
        line, cwd=project.folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    ) as asked:
        os.close(theirs)
        shown = b""
        for question, answer in ((b"to be predicted?", b"\n"), (b"east or west?", b"east\n")):
            while question not in shown:
                shown += os.read(ours, 4096)
            os.write(ours, answer)
        while asked.poll() is None:
            with contextlib.suppress(OSError):  # as a terminal's other end says that it is closed
                shown += os.read(ours, 4096)
    os.close(ours)
    assert asked.returncode == 0, shown
    assert b"[kind]" in shown
    assert b"[west]" in shown
    written = tomllib.loads((project.folder / "new" / "columns.toml").read_text())["table"]
    assert (written["target"], written["positive"]) == ("kind", "east")
