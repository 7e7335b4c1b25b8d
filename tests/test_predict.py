"""Files of raw records: the same rows come out, with the scores of the model folder, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import command, environment
from support.models import computed, number, of, records, saved, several, trained
from support.projects import Project
from support.served import approved

import runner.model
from runner.errors import Refused
from runner.model.registry import LocalRegistry
from runner.model.sample import check_answer
from runner.serve.predict import ROWS, LinesWriter, predict

Made = tuple[Project, runner.model.Model]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Made:
    project = Project(tmp_path_factory.mktemp("predict"))
    return project, runner.model.load(approved(project))


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True, precise_float=True)


def raw(rows: int) -> pd.DataFrame:
    """Raw records with a column that the model does not use, first, and text that CSV has to quote."""
    made = records(rows)
    made.insert(0, "note", [f'say "{at}", again\nand again' if at % 50 == 3 else f"n{at}" for at in range(rows)])
    return made.assign(plan=made["plan"].astype("object"))


@pytest.mark.parametrize("source", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_each_form_becomes_each_form_with_every_row(house: Made, tmp_path: Path, source: str, target: str) -> None:
    project, model = house
    frame = raw(300)
    into = tmp_path / f"out{target}"
    done = project.runner("predict", "tiny", str(write(frame, tmp_path / f"in{source}")), "-o", str(into), "--json")
    assert done.code == 0, done.err
    assert done.json | {"seconds": 0} == {
        "model": "tiny/1", "run": "20261122-101630-0000", "rows": 300, "output": str(into), "seconds": 0,
    }  # fmt: skip
    found, expected = read(into), model.predict(frame)
    assert list(found.columns) == [*frame.columns, "prediction", "probability"]
    assert found["note"].tolist() == frame["note"].tolist()
    assert found["probability"].tolist() == expected.tolist()
    assert found["prediction"].astype(str).str.lower().tolist() == [str(bool(p >= 0.4)).lower() for p in expected]
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_without_a_file_csv_goes_to_stdout_and_all_else_to_stderr(house: Made, tmp_path: Path) -> None:
    project, model = house
    frame = raw(20)
    done = project.runner("predict", "tiny/1", str(write(frame, tmp_path / "in.csv")))
    assert done.code == 0
    assert re.fullmatch(r"20 rows scored by tiny/1 in \d+\.\d s\n", done.err)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [float(row["probability"]) for row in rows] == model.predict(frame).tolist()
    assert {row["prediction"] for row in rows} <= {"true", "false"}
    done = project.runner("predict", "tiny/1", str(write(frame[:1], tmp_path / "in.csv")))
    assert done.err.startswith("1 row scored by tiny/1 in ")


def test_the_first_of_a_pipe_may_be_enough(house: Made, tmp_path: Path) -> None:
    project, _ = house
    path = write(pd.concat([raw(1000)] * 60), tmp_path / "in.csv")
    shell = " ".join(f"'{part}'" for part in command("predict", "tiny", str(path)))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{shell} | head -2"],
        cwd=project.folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr


def test_values_come_out_as_they_went_in(house: Made, tmp_path: Path) -> None:
    project, _ = house
    path = tmp_path / "in.csv"
    path.write_text('id,minutes,calls,plan,roaming\n007,1.50,+3,"gold",TRUE\n1e5,,2.0,657.0,\n"x,y",.5,0,,0\n')
    done = project.runner("predict", "tiny", str(path))
    assert [row[:5] for row in csv.reader(io.StringIO(done.out))] == list(csv.reader(io.StringIO(path.read_text())))


def test_a_file_without_a_header_gets_one(house: Made, tmp_path: Path) -> None:
    project, model = house
    frame = records(30)
    path = tmp_path / "in.csv"
    frame.to_csv(path, index=False, header=False)
    done = project.runner("predict", "tiny", str(path))
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert list(rows[0]) == [*frame.columns, "prediction", "probability"]
    assert [float(row["probability"]) for row in rows] == model.predict(frame).tolist()


@pytest.mark.parametrize("make", [computed, number, several])
def test_other_kinds_of_models_predict_too(project: Project, make: Callable[[Path], Path]) -> None:
    folder = approved(project, make)
    frame = records(50)
    done = project.runner("predict", "tiny", str(write(frame, project.folder / "in.csv")))
    scores = runner.model.load(folder).predict(frame)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    if make is number:
        assert "probability" not in rows[0]
        assert [float(row["prediction"]) for row in rows] == scores.tolist()
    elif make is several:
        assert [int(row["prediction"]) for row in rows] == scores.argmax(axis=1).tolist()
        assert [float(row["probability"]) for row in rows] == scores.max(axis=1).tolist()
    else:
        assert [float(row["probability"]) for row in rows] == scores.tolist()


@pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax"])
def test_a_class_has_its_name_in_csv_and_what_a_spreadsheet_would_compute_is_guarded(
    project: Project, objective: str
) -> None:
    labels, raw = ["low", 'say "mid", or so', "=high"], records(100)

    def make(folder: Path) -> Path:
        model = trained(raw, raw["calls"] % 3, objective=objective, num_class=3)
        runner.model.save(folder, model, raw, target="size", labels=labels)
        return folder

    scorer = of(approved(project, make))
    done = project.runner("predict", "tiny", str(write(raw, project.folder / "in.csv")))
    rows = list(csv.DictReader(io.StringIO(done.out)))
    scores = scorer.score(list(raw.itertuples(index=False, name=None)))
    names = [labels[at] for at in (scores.argmax(axis=1) if scores.ndim == 2 else scores.astype(int))]
    assert [row["prediction"] for row in rows] == [name.replace("=", "'=") for name in names]
    assert set(names) == set(labels)
    answer = scorer.reply(scores, "text/csv")[0]
    if scores.ndim == 1:
        assert [row for (row,) in csv.reader(io.StringIO(answer.decode()))] == names
    # by which a target and an endpoint are proved, also one whose container is older and gives the class's number
    first = scorer.score([tuple(scorer.signature["sample_request"].values())])
    check_answer(scorer.signature, scorer.reply(first, "text/csv")[0], "tiny/1")
    check_answer(scorer.signature, ",".join(map(str, first.ravel())).encode(), "tiny/1")
    for wrong in (b"", b"other\n", b'"say ""mid""\n', b"\xff"):
        with pytest.raises(Refused, match="is recorded"):
            check_answer(scorer.signature, wrong, "tiny/1")


def test_unknown_categories_are_refused_or_missing(house: Made, tmp_path: Path) -> None:
    project, model = house
    frame = raw(5)
    frame.loc[3, "plan"] = "iron"
    path = str(write(frame, tmp_path / "in.csv"))
    done = project.runner("predict", "tiny", path)
    assert done.code == 2
    assert "Row 4, column plan: 'iron' is not a known category (657, basic, gold, südost)" in done.err
    done = project.runner("predict", "tiny", path, "--unknown", "missing", "-o", str(tmp_path / "out.parquet"))
    assert read(tmp_path / "out.parquet")["probability"].tolist() == model.predict(frame, unknown="missing").tolist()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_fault_far_down_is_named_by_its_row_and_leaves_no_file(house: Made, tmp_path: Path, suffix: str) -> None:
    project, _ = house
    frame = pd.concat([raw(100)] * 230, ignore_index=True)
    frame["minutes"] = frame["minutes"].astype("object").where(frame.index != 2 * ROWS + 41, "many")
    if suffix == ".parquet":
        frame["minutes"] = frame["minutes"].astype(str).replace("nan", "")
    into = tmp_path / "out.csv"
    into.write_text("from before")
    done = project.runner("predict", "tiny", str(write(frame, tmp_path / f"in{suffix}")), "-o", str(into))
    assert done.code == 2, done.err
    assert f"Row {2 * ROWS + 42}, column minutes: 'many' is not a number" in done.err
    assert into.read_text() == "from before"
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"in{suffix}", "out.csv"]


WRONG = {
    "ragged.csv": (b"minutes,calls,plan,roaming\n1,2,gold,1\n1,2,gold\n", "Row 2: 3 fields where the header has 4."),
    "no-column.csv": (b"minutes,calls,plan\n1,2,gold\n", "Missing column: roaming."),
    "twice.csv": (b"minutes,calls,plan,roaming,plan\n1,2,gold,1,gold\n", "Column plan is there twice."),
    "latin.csv": (b"minutes,calls,plan,roaming\n1,2,s\xfcdost,1\n", "not UTF-8"),
    "quote.csv": (b'minutes,calls,plan,roaming\n1,2,"gold,1\n', "is not CSV"),
    "scored.csv": (b"minutes,calls,plan,roaming,probability\n1,2,gold,1,2\n", "has a column probability already"),
    "half.jsonl": (b'{"minutes": 1, "calls": 2, "plan": null, "roaming": 1}\n{"minutes": 1\n', "Line 2: "),
    "list.jsonl": (b"7\n", "Row 1 is neither an object nor an array"),
    "nothing.parquet": (b"PAR1", "is not a Parquet file"),
    "table.xlsx": (b"", "write the format as its ending"),
}


def test_text_with_an_ending_of_its_own_is_csv(house: Made, tmp_path: Path) -> None:
    project, _ = house
    (tmp_path / "customers.data").write_text("minutes,calls,plan,roaming\n1,2,gold,1\n")
    done = project.runner("predict", "tiny", str(tmp_path / "customers.data"))
    assert (done.code, done.out.count("\n")) == (0, 2), done.err
    (tmp_path / "customers.bin").write_bytes(b"PK\x03\x04\0")
    done = project.runner("predict", "tiny", str(tmp_path / "customers.bin"))
    assert (done.code, "write the format as its ending" in done.err) == (2, True), done.err


def test_a_file_with_another_delimiter_and_encoding_is_read_as_it_is_said(house: Made, tmp_path: Path) -> None:
    project, model = house
    frame = records(40).assign(note="für 5 €")
    frame.to_csv(tmp_path / "export.csv", sep=";", index=False, encoding="cp1252")
    given = ("predict", "tiny", str(tmp_path / "export.csv"), "-o", str(tmp_path / "out.csv"))
    done = project.runner(*given, "--delimiter", ";", "--encoding", "cp1252")
    assert done.code == 0, done.err
    scored = pd.read_csv(tmp_path / "out.csv")
    assert scored["note"].unique() == ["für 5 €"]
    assert np.allclose(scored["probability"], model.predict(frame), atol=1e-6)
    for wrong, said in ((("--delimiter", ";;"), "one character"), (("--encoding", "no-such"), "none of that name")):
        done = project.runner(*given, *wrong)
        assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_scored_is_refused_with_the_place(house: Made, tmp_path: Path, name: str) -> None:
    project, _ = house
    (tmp_path / name).write_bytes(WRONG[name][0])
    done = project.runner("predict", "tiny", str(tmp_path / name), "-o", str(tmp_path / "out.csv"))
    assert (done.code, WRONG[name][1] in done.err) == (2, True), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out.csv").exists()


def test_a_parquet_file_that_is_damaged_or_has_a_column_twice_is_refused(house: Made, tmp_path: Path) -> None:
    project, _ = house
    table = pa.Table.from_pandas(records(3 * ROWS), preserve_index=False)
    damaged, twice = tmp_path / "damaged.parquet", tmp_path / "twice.parquet"
    pq.write_table(table, damaged, row_group_size=ROWS)
    column = pq.ParquetFile(damaged).metadata.row_group(2).column(0)
    at = column.dictionary_page_offset or column.data_page_offset
    content = damaged.read_bytes()
    damaged.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])
    pq.write_table(table.slice(0, 3).append_column("calls", pa.array([1, 2, 3])), twice)
    for path, said in ((damaged, r"after row \d+ it is damaged: "), (twice, "Column calls is there twice")):
        done = project.runner("predict", "tiny", str(path), "-o", str(tmp_path / "out.csv"))
        assert done.code == 2, done.err
        assert re.search(said, done.err), done.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["damaged.parquet", "twice.parquet"]


def test_where_nothing_can_be_written_it_is_said(house: Made, tmp_path: Path) -> None:
    project, _ = house
    path = write(records(20), tmp_path / "in.csv")
    done = project.runner("predict", "tiny", str(path), "-o", str(tmp_path / "nowhere" / "out.csv"))
    assert (done.code, "nowhere is not a folder" in done.err) == (2, True), done.err
    with open("/dev/full", "w") as full:
        failed = subprocess.run(
            command("predict", "tiny", str(path)),
            cwd=project.folder,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert failed.returncode == 8, failed.stderr
    assert "No space left on device" in failed.stderr
    assert "give the command again" in failed.stderr
    assert "runner resume" not in failed.stderr


def test_only_approved_and_unaltered_versions_predict(project: Project) -> None:
    folder = approved(project, approve=False)
    path = str(write(records(3), project.folder / "in.csv"))
    done = project.runner("predict", "tiny/1", path)
    assert (done.code, "tiny/1 is pending" in done.err, done.out) == (8, True, "")
    LocalRegistry(project.folder / "runs/registry.db").decide("tiny", 1, "approved", who="ben", why="ok")
    assert project.runner("predict", "tiny", path).code == 0
    content = (folder / "model.ubj").read_bytes()
    (folder / "model.ubj").write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    done = project.runner("predict", "tiny", path)
    assert (done.code, "registered hash" in done.err, done.out) == (8, True, "")


def test_what_is_read_is_not_written_over(house: Made, tmp_path: Path) -> None:
    project, _ = house
    path = write(records(3), tmp_path / "in.csv")
    before = path.read_bytes()
    assert project.runner("predict", "tiny", str(path), "-o", str(path)).code == 2
    assert path.read_bytes() == before
    done = project.runner("predict", "tiny", str(path), "--json")
    assert (done.code, "-o FILE" in done.err) == (2, True)


def test_a_file_without_a_record_is_refused_as_a_request_and_the_data_notebook_do(house: Made, tmp_path: Path) -> None:
    project, _ = house
    for name, content in (
        ("empty.csv", b""),
        ("header.csv", b"minutes,calls,plan,roaming\n"),
        ("blank.csv", b"minutes,calls,plan,roaming\n  \n"),
        ("empty.jsonl", b"\n\n"),
    ):
        (tmp_path / name).write_bytes(content)
        done = project.runner("predict", "tiny", str(tmp_path / name), "-o", str(tmp_path / "out.csv"))
        assert (done.code, f"{name} has no record" in done.err) == (2, True), done.err
        assert not (tmp_path / "out.csv").exists()


def test_a_last_line_of_spaces_is_not_a_record(house: Made, tmp_path: Path) -> None:
    project, _ = house
    path = write(records(3), tmp_path / "in.csv")
    path.write_text(path.read_text() + "   \n \t\n")
    done = project.runner("predict", "tiny", str(path))
    assert (done.code, len(done.out.splitlines())) == (0, 4), done.err


def test_a_column_that_is_not_used_may_have_any_text(house: Made, tmp_path: Path) -> None:
    project, _ = house
    text = 'minutes,calls,note,plan,roaming\n1,2,"{}",gold,1\n'.format("x, " * 50_000)
    (tmp_path / "in.csv").write_text(text)
    done = project.runner("predict", "tiny", str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv"))
    assert done.code == 0, done.err
    assert len((tmp_path / "out.csv").read_text()) > 150_000


SPELT = {
    "semicolons.csv": ("minutes;calls;plan;roaming\n1;2;gold;1\n", "Line 1 is one field. Its fields are separated by ';': add --delimiter ';'."),
    "tabs.csv": ("minutes\tcalls\tplan\troaming\n1\t2\tgold\t1\n", "Line 1 is one field. Its fields are separated by '\\t': add --delimiter $'\\t'."),
    "quoted.csv": ('"minutes";"calls"\n1;2\n', "Its fields are separated by ';': add --delimiter ';'."),
    "quoted.tsv": ('"minutes"\t"calls"\n1\t2\n', "Its fields are separated by '\\t': add --delimiter $'\\t'."),
    "present.csv": ("minutes,calls,plan,roamin\n1,2,gold,1\n", "Missing column: roaming. There is 'roamin'."),
    "own.csv": ("calls,roaming,plans,minute\n1,1,gold,1\n", "Missing columns: minutes, plan. There is 'minute', 'plans'."),
    "case.csv": ("Minutes,CALLS,Plan,roaming\n1,2,gold,1\n", "Missing columns: minutes, calls, plan. There is 'Minutes', 'CALLS', 'Plan'."),
    "typing.csv": ("minute,calls,plan,roaming\n1,2,gold,1\n", "Missing column: minutes. There is 'minute'."),
    "case.jsonl": ('{"Minutes": 1, "calls": 2, "plan": "gold", "roaming": 1}', "Missing column in row 1: minutes. There is 'Minutes'."),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELT)
def test_another_delimiter_or_spelling_is_named(house: Made, tmp_path: Path, name: str) -> None:
    project, _ = house
    (tmp_path / name).write_text(SPELT[name][0])
    done = project.runner("predict", "tiny", str(tmp_path / name))
    assert (done.code, SPELT[name][1] in done.err) == (2, True), done.err


def test_parquet_may_have_any_types_that_say_the_values(house: Made, tmp_path: Path) -> None:
    project, model = house
    table = pa.table(
        {
            "minutes": pa.array([Decimal("1.5"), None, Decimal("200.25")], type=pa.decimal128(8, 2)),
            "calls": pa.array([1, 2, None], type=pa.int8()),
            "plan": pa.array([657, None, 657], type=pa.int64()),
            "roaming": pa.array(["true", "0", None]).dictionary_encode(),
            "day": pa.array([1, 2, 3], type=pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    done = project.runner("predict", "tiny", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out.parquet"))
    assert done.code == 0, done.err
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.names == [*table.schema.names, "prediction", "probability"]
    assert out.drop_columns(["prediction", "probability"]).equals(table)
    frame = pd.DataFrame(
        {
            "minutes": [1.5, None, 200.25],
            "calls": [1, 2, None],
            "plan": [657, None, 657],
            "roaming": ["true", "0", None],
        }
    )
    assert out["probability"].to_pylist() == model.predict(frame).tolist()


def test_json_lines_keep_what_else_they_have(house: Made, tmp_path: Path) -> None:
    project, model = house
    rows: list[Any] = [
        {"id": {"a": [1]}, "minutes": 1, "calls": 2, "plan": "gold", "roaming": True},
        {"minutes": "2.5", "calls": 2, "plan": "657.0", "roaming": False, "größe": "ü"},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    done = project.runner("predict", "tiny", str(path), "-o", str(tmp_path / "out.jsonl"))
    assert done.code == 0, done.err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = model.predict(pd.DataFrame(rows)).tolist()
    assert found == [
        {**row, "prediction": score >= 0.4, "probability": score} for row, score in zip(rows, scores, strict=True)
    ]


def test_progress_is_told_part_by_part(house: Made, tmp_path: Path) -> None:
    project, _ = house
    frame = pd.concat([raw(1000)] * 25, ignore_index=True)
    scorer = of(next(project.folder.glob("runs/2*/steps/train/out/model")))
    for suffix in (".csv", ".jsonl", ".parquet"):
        told: list[tuple[int, float]] = []
        path = write(frame, tmp_path / f"in{suffix}")
        with open(tmp_path / "out.jsonl", "w") as file:
            rows = predict(scorer, path, LinesWriter(file), on_rows=lambda *one: told.append(one))  # noqa: B023
        assert rows == 25_000
        assert [done for done, _ in told] in ([10_000, 20_000, 25_000], [9_999, 19_999, 25_000])  # a header is a row
        assert [part for _, part in told] == sorted(part for _, part in told)
        assert told[-1][1] == pytest.approx(1, abs=0.05)


MEASURED = """
import resource, sys
from runner.__main__ import main
sys.argv = ["runner", *sys.argv[1:]]
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak_mb(project: Project, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=project.folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1]) / 1024


@pytest.mark.soak
@pytest.mark.parametrize("times", [20, 1000], ids=["a little more", "a lot more rows"])
def test_more_rows_take_no_more_memory(house: Made, tmp_path: Path, times: int) -> None:
    project, _ = house
    frame = pd.concat([records(1000)] * 10, ignore_index=True)
    small, large = write(frame, tmp_path / "small.csv"), tmp_path / "large.csv"
    header, _, rows = small.read_bytes().partition(b"\n")
    with open(large, "wb") as file:
        file.write(header + b"\n")
        for _ in range(times):
            file.write(rows)
    few = peak_mb(project, "predict", "tiny", str(small), "-o", str(tmp_path / "small-out.csv"))
    many = peak_mb(project, "predict", "tiny", str(large), "-o", str(tmp_path / "large-out.csv"))
    assert many - few < 12
    with open(tmp_path / "large-out.csv", "rb") as file:
        assert sum(1 for _ in file) == times * 10_000 + 1
    assert np.isfinite(few)


def test_the_model_of_these_tests_is_the_one_that_is_saved(house: Made, tmp_path: Path) -> None:
    _, model = house
    assert (
        runner.model.load(saved(tmp_path / "model")).predict(records(9)).tolist() == model.predict(records(9)).tolist()
    )


FORMULAS = ['=HYPERLINK("https://evil.example")', "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "x;=1", "\t=1"]
HARMLESS = ["-5", "+49 30 1234", "-1,234.50", "-", "plain; text", "a=b", "2024-01-31", "-3 %"]


def test_what_a_spreadsheet_would_compute_gets_an_apostrophe_and_is_counted(house: Made, tmp_path: Path) -> None:
    project, model = house
    frame = raw(len(FORMULAS) + len(HARMLESS)).rename(columns={"note": "=note"})
    frame["=note"] = FORMULAS + HARMLESS
    frame["minutes"] = -frame["minutes"]
    for suffix in (".csv", ".jsonl", ".parquet"):
        done = project.runner("predict", "tiny", str(write(frame, tmp_path / f"in{suffix}")))
        assert done.code == 0, done.err
        found = pd.read_csv(io.StringIO(done.out))
        assert (
            found["'=note"].tolist()
            == [text.replace("=1", "'=1") if text[0] in "x\t" else f"'{text}" for text in FORMULAS] + HARMLESS
        )
        assert found["minutes"].equals(frame["minutes"])
        assert found["probability"].tolist() == model.predict(frame).tolist()
        assert "7 cells have an apostrophe before what a spreadsheet would compute; --raw leaves it out" in done.err
    for target, words in ((".csv", ["--raw"]), (".jsonl", []), (".parquet", [])):
        into = tmp_path / f"out{target}"
        done = project.runner("predict", "tiny", str(tmp_path / "in.csv"), "-o", str(into), *words)
        assert "apostrophe" not in done.err
        assert read(into)["=note"].tolist() == FORMULAS + HARMLESS
