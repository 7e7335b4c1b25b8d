"""Examples: a table, `runner init` and nothing else, up to a version that answers a row of the table as it stands."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import environment
from support.projects import ROOT, Project, program
from support.served import Client, serving

SHARED = ROOT.parent / "shared" / "data"


def of_scikit_learn(folder: Path, name: str) -> Path:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
    frame = bunch.frame
    if name == "iris":
        frame["target"] = [f"Iris {bunch.target_names[number]}" for number in frame["target"]]
    path = folder / f"{name}.csv"
    frame.to_csv(
        path, index=name == "breast_cancer"
    )  # with pandas' own column of row numbers, as such files often have
    return path


def customers(folder: Path) -> Path:
    """As a German spreadsheet exports it: semicolons, decimal commas, cp1252, dates with points."""
    path = folder / "Kunden März.csv"
    with path.open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Kunde", "Betrag", "Stadt", "Datum", "Rabatt", "gekündigt"])
        for row in range(3_000):
            amount, city = row * 7919 % 1000 / 8, row * 31 % 4
            day = dt.date(2023, 1, 1) + dt.timedelta(days=row * 17 % 700)
            leaves = (amount > 90) != (city == 2) or row % 9 == 0
            discount = "" if row % 10 == 3 else f"{row % 13},5"
            shown = f"{amount:.2f}".replace(".", ",")
            names = ("Köln", "München", "Größe", "Ulm")
            writer.writerow(
                [f"K{row:05d}", shown, names[city], f"{day:%d.%m.%Y}", discount, "ja" if leaves else "nein"]
            )
    return path


def typed(folder: Path) -> Path:
    """Parquet with times, truth values and missing numbers; the target is a number."""
    import numpy as np
    import pandas as pd

    rng, rows = np.random.default_rng(3), 2_000
    x, group = rng.normal(size=rows), rng.integers(0, 4, rows)
    frame = pd.DataFrame(
        {
            "when": pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 9000, rows), unit="h"),
            "amount": x, "flag": rng.random(rows) < 0.5, "group": np.array(list("abcd"))[group],
        }
    )  # fmt: skip
    frame["y"] = 3 * np.abs(x) + 2 * (group == 1) * frame["flag"] + rng.normal(size=rows) / 3
    frame.loc[::50, "amount"] = None
    frame.to_parquet(folder / "typed.parquet")
    return folder / "typed.parquet"


def lines(folder: Path) -> Path:
    """JSON lines with a list in each record; two answers of which neither is a yes."""
    records = [
        {"id": 7_000 + row * row, "size": None if row % 40 == 0 else row * 37 % 101, "tags": ["x"], "on": row % 3 == 0,
         "side": "left" if (row * 37 % 101 > 60) != (row % 3 == 0) else "right"}
        for row in range(1_500)
    ]  # fmt: skip
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def shared(name: str) -> Callable[[Path], Path]:
    def given(folder: Path) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"{name} is not beside this checkout")
        return SHARED / name

    return given


def first_record(path: Path) -> dict[str, Any]:
    """The first row of a table as JSON has it: the text of CSV, the values of the others."""
    if path.suffix == ".parquet":
        import pandas as pd

        record: dict[str, Any] = json.loads(pd.read_parquet(path).head(1).to_json(orient="records", date_format="iso"))[
            0
        ]
        return record | {"when": str(pd.read_parquet(path)["when"][0]).replace(" ", "T")}
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            return dict(json.loads(file.readline()))
    odd = path.name.startswith("Kunden")
    with path.open(encoding="cp1252" if odd else "utf-8", newline="") as file:
        return dict(next(csv.DictReader(file, delimiter=";" if odd else ",")))


def made(folder: Path, table: Path | None, target: str | None) -> Project:
    """The project that `runner init` makes of the table, with one run that passed and its version approved."""
    given = [] if table is None else ["--data", str(table), "--target", str(target)]
    done = Project(folder).runner("init", "example", *given)
    assert done.code == 0, done.err
    project = Project(folder / "example")
    done = project.runner("run", "--json")
    assert done.code == 0, done.err
    assert done.json["model_version"] == {"name": "example", "version": 1, "status": "pending"}
    done = project.runner("approve", "example/1", "--reason", "looked at")
    assert done.code == 0, done.err
    return project


def asked(project: Project, record: dict[str, Any], bad: dict[str, Any]) -> Any:
    """What the served version says of the record; one with a bad value is refused."""
    with serving(project, model="example") as served:
        client = Client(served.port)
        refused, scored = client.score(bad), client.score(record)
        client.close()
    assert refused.status == 400, refused.body
    assert scored.status == 200, scored.body
    return scored.json["predictions"][0]


@pytest.mark.soak
def test_the_example_that_ships_becomes_a_version_that_answers(tmp_path: Path) -> None:
    project = made(tmp_path, None, None)
    record = first_record(project.folder / "data" / "deliveries.csv")
    told = asked(project, record, record | {"distance_km": "far"})
    assert told["prediction"] in (True, False, "yes", "no")
    assert 0 <= told["probability"] <= 1
    done = project.runner("run", "--profile", "smoke")  # as a pull request does
    assert done.code == 0, done.err
    done = project.runner("predict", "example", "data/deliveries.csv", "-o", "scored.csv")
    assert done.code == 0, done.err
    assert len((project.folder / "scored.csv").read_text().splitlines()) == 4_001


TABLES: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any]]] = {
    "telco": (shared("telco.csv"), "Churn", {"tenure": "long"}),
    "churn": (shared("churn.txt"), "Churn?", {"Day Mins": "many"}),
    "abalone": (shared("abalone.data"), "Rings", {"Length": "long"}),
    "iris": (lambda folder: of_scikit_learn(folder, "iris"), "target", {"petal length (cm)": "long"}),
    "wine": (lambda folder: of_scikit_learn(folder, "wine"), "target", {"alcohol": "much"}),
    "cancer": (lambda folder: of_scikit_learn(folder, "breast_cancer"), "target", {"mean radius": "wide"}),
    "customers": (customers, "gekündigt", {"Betrag": "viel"}),
    "typed": (typed, "y", {"amount": "much"}),
    "lines": (lines, "side", {"size": "large"}),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", TABLES)
def test_a_table_becomes_a_version_that_answers_its_rows_as_they_stand(tmp_path: Path, name: str) -> None:
    make, target, bad = TABLES[name]
    table = make(tmp_path)
    project = made(tmp_path, table, target)
    told = (project.folder / "README.md").read_text(encoding="utf-8")
    line = shlex.split(re.findall(r"\$ runner (predict .*)", told)[0])  # the file as it stands
    done = project.runner(*line)
    assert done.code == 0, done.err
    record = first_record(table)
    assert asked(project, record, record | bad)["prediction"] is not None


@pytest.mark.soak
def test_its_two_commands_need_nothing_but_python_and_make(tmp_path: Path) -> None:
    done = Project(tmp_path).runner("init", "alone")
    assert done.code == 0, done.err
    kept = {
        name: value for name, value in environment().items() if not name.startswith(("MAKE", "MFLAGS", "VIRTUAL_ENV"))
    }
    for command in ("run", "test"):
        line = [program("make"), command]
        done = subprocess.run(line, cwd=tmp_path / "alone", env=kept, capture_output=True, text=True, check=False)  # type: ignore[assignment]
        assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    assert Project(tmp_path / "alone").runs
    shown = subprocess.run(
        [".venv/bin/python", "-c", "import runner; print(runner.__file__)"], cwd=tmp_path / "alone", env=kept,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith(str(tmp_path / "alone" / ".venv") + os.sep)
