"""A sweep tries every combination once, ranks on what the step itself records, and evaluates the winner alone."""

from __future__ import annotations

import csv
import random
import re
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cloud import RemoteProject, jobs, running
from support.commands import Done
from support.projects import PAGES, REAL_TABLE, ROOT, Project, parameters, recorded

from runner.records import USUAL_KERNEL

TOML = """
name = "tiny"
[steps.make]
notebook = "make.ipynb"
outputs = { table = "t.txt" }
[steps.fit]
notebook = "fit.ipynb"
inputs = { table = "make.table" }
outputs = { model = "m.txt" }
[steps.judge]
notebook = "judge.ipynb"
inputs = { model = "fit.model" }
[steps.after]
notebook = "after.ipynb"
inputs = { verdict = "gate.verdict" }
[[gate]]
metric = "judge.score"
min = 0.0
"""
SCORE = "score = 1.0 - abs(depth - 5) / 10 - 2 * abs(eta - 0.1)"


@pytest.fixture
def tiny(project: Project) -> Project:
    project.write("make.ipynb", parameters("table: str = ''\nrows: int = 3"), "open(table, 'w').write('x' * rows)")
    project.write(
        "fit.ipynb",
        parameters("table: str = ''\nmodel: str = ''\ndepth: int = 1\neta: float = 0.5\nwords: str = 'a'"),
        f"{SCORE}\nassert words != 'fail'\nopen(model, 'w').write(f'{{depth}} {{eta}}')",
        "from runner.scraps import metric\nmetric('valid', score, better='higher')\nmetric('loss', 1 - score, better='lower')",
    )
    project.write("judge.ipynb", parameters("model: str = ''"), recorded("score", "0.5"))
    project.write("after.ipynb", parameters("verdict: str = ''"), "print(verdict)")
    project.toml(TOML)
    return project


def swept(project: Project, *arguments: str) -> Done:
    return project.runner("sweep", "fit", "-p", "fit.depth=3,5,7", "-p", "fit.eta=0.1,0.3", "--json", *arguments)


def test_every_combination_is_ranked_and_the_winner_alone_is_evaluated(tiny: Project) -> None:
    done = swept(tiny, "--metric", "fit.valid", "-j", "2")
    assert done.code == 0, done.err
    assert "(cached up to the gate; only after remains)" in done.err
    made = done.json
    assert [tuple(one["values"].values()) for one in made["tried"]][:3] == [("5", "0.1"), ("3", "0.1"), ("7", "0.1")]
    assert [round(one["metrics"]["fit.valid"]["value"], 3) for one in made["tried"]] == [1.0, 0.8, 0.8, 0.6, 0.4, 0.4]
    manifests = [read(run) for run in tiny.runs]
    ran = [step["name"] for manifest in manifests for step in manifest["steps"] if step["status"] == "succeeded"]
    assert {name: ran.count(name) for name in set(ran)} == {"make": 1, "fit": 6, "judge": 1}
    assert made["winner"]["verdict"] == "pass"
    kernels = {step["result"]["kernel"] for manifest in manifests for step in manifest["steps"] if step["result"]}
    assert kernels == {USUAL_KERNEL}
    assert not (tiny.folder / "runs/registry.db").exists()
    assert all("sweep" in manifest["tags"] for manifest in manifests)
    page = Path(made["report"]).read_text()
    assert "fit.depth" in page
    assert "data:image/svg+xml" in page
    # what follows with the winner's values finds everything done, up to the gate
    after = tiny.runner("run", "--json", "-p", "fit.depth=5", "-p", "fit.eta=0.1")
    assert [(step["name"], step["status"]) for step in after.json["steps"]] == [
        ("make", "cached"), ("fit", "cached"), ("judge", "cached"), ("after", "succeeded")
    ]  # fmt: skip
    # and the same sweep once more executes nothing
    again = swept(tiny, "--metric", "fit.loss")
    assert again.json["better"] == "lower"
    assert again.json["tried"][0]["values"] == {"fit.depth": "5", "fit.eta": "0.1"}
    last = read(tiny.runs[-1])
    assert {step["status"] for step in last["steps"]} <= {"cached", "skipped"}


def read(run: Path) -> Any:
    import json

    return json.loads((run / "run.json").read_text())


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--metric", "judge.score"], 2, "on validation rows"),
        (["--metric", "fit.vald"], 2, "did you mean `fit.valid`"),
        ([], 2, "say --metric fit.NAME"),
        (["--metric", "fit.valid", "-p", "fit.dept=1,2"], 2, "depth"),
        (["--metric", "fit.valid", "-p", "make.rows=" + ",".join(map(str, range(200)))], 2, "1,200 combinations"),
    ],
)
def test_what_cannot_be_ranked_or_run_is_named(tiny: Project, arguments: list[str], code: int, said: str) -> None:
    done = swept(tiny, *arguments)
    assert (done.code, said in done.err) == (code, True), done.err
    assert len(tiny.runs) <= 4, "a mistake is said as soon as it is known, not after all combinations"


def test_a_sweep_needs_something_to_sweep_and_a_step_that_is_there(tiny: Project) -> None:
    assert "nothing to sweep" in tiny.runner("sweep", "fit", "-p", "fit.depth=3").err
    tiny.toml(TOML + '[profiles.quick]\nskip = ["fit"]\n')
    skipped = tiny.runner("sweep", "fit", "-p", "fit.depth=3,5", "--metric", "fit.valid", "--profile", "quick")
    assert (skipped.code, "The profile skips fit, so there is nothing to rank" in skipped.err) == (2, True), skipped.err
    assert "did you mean `fit`" in tiny.runner("sweep", "fitt", "-p", "fit.depth=3,5").err
    assert "a value twice" in tiny.runner("sweep", "fit", "-p", "fit.depth=3,3").err


@pytest.mark.soak
def test_a_combination_that_fails_is_ranked_last_with_its_reason(tiny: Project) -> None:
    done = tiny.runner("sweep", "fit", "-p", "fit.words=a,fail,b\\,c", "--metric", "fit.valid", "--json")
    assert done.code == 0, done.err
    assert [one["values"]["fit.words"] for one in done.json["tried"]] == ["a", "b,c", "fail"]
    assert "AssertionError" in done.json["tried"][-1]["why"]
    everything = tiny.runner("sweep", "fit", "-p", "fit.words=fail", "-p", "fit.depth=1,2", "--metric", "fit.valid")
    assert everything.code == 3
    assert "No combination" in everything.err


@pytest.mark.soak
def test_all_combinations_are_forked_from_one_server(tiny: Project) -> None:
    tiny.write(
        "fit.ipynb",
        parameters("table: str = ''\nmodel: str = ''\ndepth: int = 1\neta: float = 0.5"),
        "import os\nopen(model, 'w').write('')",
        recorded("server", "os.getppid()"),
        recorded("valid", "depth - eta"),
    )
    done = swept(tiny, "--metric", "fit.valid", "-j", "2")
    assert done.code == 0, done.err
    assert len({one["metrics"]["fit.server"]["value"] for one in done.json["tried"]}) == 1


def test_the_steps_libraries_are_loaded_while_the_step_before_it_runs(tiny: Project, tmp_path: Path) -> None:
    loaded, site = tmp_path / "loaded", tmp_path / "site"
    site.mkdir()
    (site / "heavy.py").write_text(f"open({str(loaded)!r}, 'w').close()")
    tiny.write(
        "make.ipynb",
        parameters("table: str = ''"),
        "import os, time\ngive_up = time.monotonic() + 60\nopen(table, 'w').write('x')",
        f"while not os.path.exists({str(loaded)!r}):\n    assert time.monotonic() < give_up\n    time.sleep(0.02)",
    )
    tiny.write(
        "fit.ipynb",
        parameters("table: str = ''\nmodel: str = ''\ndepth: int = 1\neta: float = 0.5"),
        "import heavy\nopen(model, 'w').write('')",
        recorded("valid", "depth - eta"),
    )
    asked = ["sweep", "fit", "-p", "fit.depth=3,5", "--metric", "fit.valid", "--json"]
    done = tiny.runner(*asked, env={"PYTHONPATH": str(site)})
    assert done.code == 0, done.err
    assert len(done.json["tried"]) == 2


def test_what_is_said_to_be_next_is_a_command_as_the_shell_reads_it(tiny: Project) -> None:
    tiny.toml(TOML + "[profiles.more]\nparameters = { rows = 4 }\n[model]\nname = 'm'\nfrom = 'fit.model'\n")
    tiny.write(
        "after.ipynb",
        parameters("verdict: str = ''"),
        "def later():\n    import runner.model; runner.model.register(verdict)",
    )
    done = tiny.runner("sweep", "fit", "-p", "fit.words=a b,c", "-p", "fit.depth=5", "--metric", "fit.valid", "--profile", "more")  # fmt: skip
    assert done.code == 0, done.err
    assert "judge.score is 0.5" in done.err
    (said,) = [line for line in done.err.splitlines() if "next: runner" in line]
    assert said.endswith("(cached up to the gate; only registration remains)")
    words = shlex.split(said.partition("next: runner")[2].partition("   (")[0])
    after = tiny.runner(*words, "--json")
    assert [step["status"] for step in after.json["steps"]] == ["cached", "cached", "cached", "succeeded"]


@pytest.mark.soak
def test_a_sweep_that_is_stopped_goes_on_where_it_was(tiny: Project) -> None:
    tiny.write(
        "fit.ipynb",
        parameters("table: str = ''\nmodel: str = ''\ndepth: int = 1"),
        "import time; time.sleep(1.5); open(model, 'w').write(str(depth))",
        recorded("valid", "float(depth)"),
    )
    arguments = ["sweep", "fit", "-p", "fit.depth=1,2,3", "--metric", "fit.valid"]
    process = tiny.start(*arguments)
    until = time.monotonic() + 60
    while not any(
        step["status"] == "succeeded" for run in tiny.runs for step in read(run)["steps"] if step["name"] == "fit"
    ):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "goes on with what is missing" in said
    done = tiny.runner(*arguments, "--json")
    assert done.code == 0, done.err
    assert done.json["tried"][0]["values"] == {"fit.depth": "3"}
    fits = [step["status"] for run in tiny.runs for step in read(run)["steps"] if step["name"] == "fit"]
    assert fits.count("succeeded") == 3


@pytest.mark.soak
def test_runs_side_by_side_share_the_cores(tiny: Project) -> None:
    import os

    assert swept(tiny, "--metric", "fit.valid", "-j", "2").code == 0
    threads = {
        step["result"]["threads"]
        for run in tiny.runs
        for step in read(run)["steps"]
        if step["name"] == "fit" and step["status"] == "succeeded"
    }
    assert threads == {max(1, (os.cpu_count() or 1) // 2)}


@pytest.mark.soak
def test_in_sagemaker_the_combinations_are_jobs_side_by_side(tmp_path: Path) -> None:
    with running() as cloud:
        far = RemoteProject(tmp_path, cloud)
        far.write(
            "fit.ipynb",
            parameters("model: str = ''\ndepth: int = 1"),
            "import time; time.sleep(2); open(model, 'w').write(str(depth))",
            recorded("valid", "float(depth)"),
        )
        far.toml('name = "far"\n[steps.fit]\nnotebook = "fit.ipynb"\noutputs = { model = "m.txt" }\n')
        done = far.runner(
            "sweep", "fit", "-p", "fit.depth=1,2,3", "--metric", "fit.valid", "--on", "sagemaker", "--json"
        )
        assert done.code == 0, done.err
        assert [one["values"]["fit.depth"] for one in done.json["tried"]] == ["3", "2", "1"]
        described = [cloud.client("sagemaker").describe_processing_job(ProcessingJobName=name) for name in jobs(cloud)]
    assert len(described) == 3, "the winner is taken from its combination"
    latest_start = max(job["ProcessingStartTime"] for job in described)
    assert latest_start < min(job["ProcessingEndTime"] for job in described)


@pytest.mark.soak
def test_the_page_looks_right_with_everything_in_it(tiny: Project) -> None:
    done = tiny.runner("sweep", "fit", "-p", "fit.depth=3,5", "--metric", "fit.valid", env=PAGES)
    page = next((tiny.folder / "runs/sweeps").glob("*/report.html")).read_text()
    assert re.search(r"<b>5</b>: fit.valid 0.2", page), done.out
    assert 'alt="fit.valid of 2 combinations over fit.depth' in page


@pytest.mark.soak
def test_on_shuffled_labels_the_winners_are_no_better_than_chance(tmp_path: Path) -> None:
    if not REAL_TABLE.exists():
        pytest.skip(f"the real table is not at {REAL_TABLE}")
    project = Project(tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("work", "__pycache__"))
    shutil.copytree(ROOT / "data", tmp_path / "data")
    shutil.copy(ROOT / "pipeline.toml", tmp_path)
    with REAL_TABLE.open(newline="") as file:
        header, *rows = csv.reader(file)
    scores = []
    for number in range(10):
        labels = [row[-1] for row in rows]
        random.Random(number).shuffle(labels)
        place = tmp_path / f"shuffled-{number}.csv"
        with place.open("w", newline="") as file:
            csv.writer(file).writerows([header, *([*row[:-1], label] for row, label in zip(rows, labels, strict=True))])
        done = project.runner(
            "sweep", "train", "-p", "train.max_depth=2,5", "-p", "train.eta=0.1,0.3", "-p", f"data.source={place}",
            "--metric", "train.validation_auc", "-j", "2", "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        scores.append(done.json["winner"]["metrics"]["evaluate.auc"]["value"])
    assert sum(scores) / len(scores) == pytest.approx(0.5, abs=0.02)
