"""Looking at runs and the pipeline in a terminal: `runs`, `graph`, `logs`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support import judged
from support.judged import RUN
from support.projects import Project

from runner.pipeline.file import load
from runner.records import Metric, StepError
from runner.report.graph import Node, graph, svg, text

TOML = """
name = "tiny"
[steps.data]
notebook = "01_data.ipynb"
inputs = { source = "./<in>.csv" }
outputs = { rows = "rows.csv", test = "test.csv" }
[steps.train]
notebook = "02_train.ipynb"
inputs = { rows = "data.rows" }
outputs = { model = "model/" }
[steps.evaluate]
notebook = "03_evaluate.ipynb"
inputs = { test = "data.test", model = "train.model", champion = "approved:tiny" }
[[gate]]
metric = "evaluate.auc"
min = 0.8
[model]
name = "tiny"
from = "train.model"
[steps.register]
notebook = "04_register.ipynb"
inputs = { model = "train.model", verdict = "gate.verdict" }
"""


@pytest.fixture
def place(tmp_path: Path) -> Project:
    """Three runs: one that passed, one that failed, one with a long note."""
    project = Project(tmp_path)
    project.toml(judged.TOML.format(more=""))
    auc = Metric(value=0.91234, low=0.85, high=0.97, better="higher")
    judged.write(project, judged.manifest_of(project, RUN.format(1), {"train.auc": auc}))
    error = StepError(kind="exception", ename="ValueError", evalue="no rows", cell=2, first_line="answer = 41 + 1")
    judged.write(project, judged.manifest_of(project, RUN.format(2), {}, error=error))
    note = {"note": "n" * 200, "tags": ["nightly"], "profile": "smoke"}
    judged.write(project, judged.manifest_of(project, RUN.format(3), {"train.auc": auc}, **note))
    return project


def test_a_list_of_runs_fits_a_hundred_columns_and_the_json_has_everything(place: Project) -> None:
    lines = place.runner("runs").out.splitlines()
    assert lines[0].split() == ["run", "status", "verdict", "auc", "model", "note"]
    assert max(map(len, lines)) == 100
    assert lines[1].endswith("…")
    assert "profile smoke nnn" in lines[1]
    assert "0.9123" in lines[3]
    told = place.runner("runs", "--json").json
    assert (told[0]["note"], told[0]["tags"], told[0]["metrics"]["train.auc"]["low"]) == ("n" * 200, ["nightly"], 0.85)


def test_the_pipeline_is_drawn_with_rails_for_what_later_steps_take(place: Project) -> None:
    place.toml(TOML)
    out = place.runner("graph").out
    rails = [(line[:6].rstrip(), line[7:].split()[0]) for line in out.splitlines()]
    assert [name for _, name in rails] == ["<in>.csv", "data", "train", "tiny,", "evaluate", "gate", "register", "tiny"]
    assert "◂ data.test, train.model, approved:tiny" in out
    assert max(map(len, out.splitlines())) <= 100
    assert rails[1][0].startswith("●")


def test_each_rail_leads_from_what_makes_something_to_all_that_take_it(place: Project) -> None:
    place.toml(TOML)
    nodes = graph(load(place.folder / "pipeline.toml"))
    lanes: dict[int, set[str]] = {}
    for rail, node in text(nodes):
        at = rail.index("●") // 2
        touched = {lane for lane, mark in enumerate(rail[::2]) if mark in "├┤┼╰╯┴●"}
        fed = {need for lane in touched for need in lanes.get(lane, set())}
        assert set(node.needs) <= fed, (rail, node.id)
        lanes[at] = {node.id}


def test_a_drawing_is_a_file_of_its_own_and_inert(place: Project, tmp_path: Path) -> None:
    drawing = tmp_path / "run.svg"
    assert place.runner("graph", RUN.format(2), "-o", str(drawing)).code == 0
    root = ET.fromstring(drawing.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "train (failed 64.5 s)" in str(root.get("aria-label"))
    told = place.runner("graph", RUN.format(1), "--json").json
    assert [(node["name"], node["status"]) for node in told] == [
        ("in.csv", None), ("train", "succeeded"), ("gate", "pass"), ("tiny", None),
    ]  # fmt: skip
    hostile = svg([Node("step:x", "step", "<script>alert(1)</script>", '"><x', "failed")], {"step:x": '"><y'})
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(hostile).iter()} == {
        "svg", "title", "a", "g", "rect", "text",
    }  # fmt: skip


def test_the_log_of_a_step_has_what_its_cells_printed_with_their_numbers(place: Project) -> None:
    (place.folder / "runs" / RUN.format(2) / "steps" / "train").mkdir(parents=True)
    judged.executed(
        place, 2, {"output_type": "stream", "name": "stdout", "text": "5 rows\n\x1b[2Jgone"},
        {"output_type": "error", "ename": "ValueError", "evalue": "no rows", "traceback": ["Traceback", "ValueError: no rows"]},
    )  # fmt: skip
    done = place.runner("logs", RUN.format(2))
    assert done.out.splitlines() == [
        "train: failed, 64.5 s", "  [2] answer = 41 + 1", "    5 rows", "    gone", "    Traceback", "    ValueError: no rows",
    ]  # fmt: skip
    assert place.runner("logs", RUN.format(2), "train").out == done.out
    silent = place.runner("logs", RUN.format(1))
    assert (silent.code, "have printed nothing" in silent.err) == (2, True)
    assert place.runner("logs", "latest", "nothing").code == 2
    (place.folder / "runs" / RUN.format(2) / "steps" / "train" / "executed.ipynb").write_text(json.dumps({"cells": 3}))
    assert place.runner("logs", RUN.format(2)).code == 8
