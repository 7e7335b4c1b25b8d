"""A search draws its trials from ranges, ends the poor ones early, and goes on where it was killed."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cloud import RemoteProject, jobs, running
from support.commands import Done
from support.projects import PAGES, Project, notebook, parameters, recorded

from runner.errors import UsageError
from runner.notebook.parameters import declared
from runner.records import FORKED, STANDARD, StepJob, StepResult, encode, read
from runner.run.pruning import PrunedExecutor
from runner.run.space import Choices, Range, Search, drawn_from, range_in
from runner.run.study import Study
from runner.step.execute import RESULT, Progress
from runner.step.local import LocalExecutor

CELL = """
eta: float = 0.1  # above 0 to 1
depth: int = 5
either: int | float = 1
words: str = 'a'
kind: Literal[1, 2] = 1
anything = None
"""
DECLARED, _ = declared(CELL, "python", Path("nb.ipynb"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("fit.eta", "0.01:0.3:log", Range(0.01, 0.3, log=True)),
        ("fit.eta", " 1:2 ", Range(1, 2)),
        ("fit.eta", "-1e-3:.5", Range(-0.001, 0.5)),
        ("fit.depth", "3:9", Range(3, 9, whole=True)),
        ("fit.depth", "1:64:log", Range(1, 64, log=True, whole=True)),
        ("fit.either", "3:9", Range(3, 9, whole=True)),
        ("fit.either", "3:9.5", Range(3, 9.5)),
        ("fit.anything", "3:9", Range(3, 9, whole=True)),
        ("fit.words", "3:9", None),
        ("fit.kind", "1:2", None),
        ("fit.eta", "0.1", None),
        ("fit.eta", "1:2:3", None),
        ("data.source", "s3://bucket/a", None),
    ],
)
def test_a_range_is_one_where_the_notebook_declares_a_number(name: str, text: str, expected: Range | None) -> None:
    assert range_in(name, text, DECLARED.get(name.partition(".")[2])) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fit.depth": "3:9.5"}, "takes whole numbers (int)"),
        ({"fit.eta": "0.3:0.1"}, "write the lower end first"),
        ({"fit.eta": "0.3:0.3"}, "nothing in it"),
        ({"fit.eta": "0:1:log"}, "begins above 0"),
        ({"fit.eta": "0.1", "fit.words": "3:9"}, "nothing to search"),
        ({"fit.words": "a,a"}, "a value twice"),
        ({"seed": "1,2"}, "write fit.NAME"),
        ({"make.rows": "1:9"}, "write fit.NAME"),
    ],
)
def test_a_range_that_cannot_be_drawn_from_is_said(given: Mapping[str, str], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        drawn_from(given, "fit", {**DECLARED, "rows": DECLARED["depth"]})
    assert said in str(raised.value)


def test_what_has_one_value_holds_for_all_and_the_rest_is_drawn() -> None:
    fixed, space = drawn_from({"seed": "7", "fit.eta": "0.1:1", "fit.words": "a,b\\,c"}, "fit", DECLARED)
    assert fixed == {"seed": "7"}
    assert space == {"fit.eta": Range(0.1, 1), "fit.words": Choices(("a", "b,c"))}
    corners = Search({**space, "fit.kind": Choices(("1", "2", "3"))}, 5).corners()
    assert [tuple(corner.values()) for corner in corners] == [("0.1", "a", "1"), ("1.0", "b,c", "2"), ("1.0", "b,c", "3")]  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A trial, as a study is told of it."""

    values: Mapping[str, str]
    state: str = "complete"
    score: float | None = None
    reported: Mapping[int, float] = field(default_factory=dict)


SPACE = {"fit.eta": Range(0.012345, 0.3, log=True), "fit.depth": Range(3, 9, whole=True), "fit.words": Choices(("a", "b"))}  # fmt: skip


def worth(values: Mapping[str, str]) -> float:
    far = abs(float(values.get("fit.eta", 0)) - 0.1) + abs(int(values["fit.depth"]) - 5) / 10
    return -far - (values["fit.words"] == "b")


def drawn(search: Search, *, anew: bool = False, better: Any = "higher") -> list[Known]:
    """All trials of a search, one after the other; with `anew` each by a process that knows only the record."""
    study, trials = Study(search), list[Known]()
    for _ in range(search.trials):
        study = Study(search) if anew else study
        values = study.next_values(trials, better)
        if values is None:
            break
        trials.append(Known(values, score=worth(values) if better == "higher" else -worth(values)))
    return trials


def test_equal_seeds_draw_equally_also_after_a_new_start_and_other_seeds_draw_others() -> None:
    for method in ("tpe", "random"):
        whole = drawn(Search(SPACE, 25, method, seed=3))
        assert whole == drawn(Search(SPACE, 25, method, seed=3), anew=True)
        assert whole != drawn(Search(SPACE, 25, method, seed=4))
        for trial in whole:
            eta, depth = trial.values["fit.eta"], trial.values["fit.depth"]
            assert 0.012345 <= float(eta) <= 0.3
            assert len(eta.lstrip("0.")) <= 5
            assert int(depth) in range(3, 10)


@pytest.mark.soak
def test_tpe_finds_more_than_chance_does_whichever_way_is_better() -> None:
    best: dict[str, list[float]] = {"tpe": [], "random": [], "lower": []}
    for seed in range(3):
        best["tpe"].append(max(trial.score or 0 for trial in drawn(Search(SPACE, 30, "tpe", seed))))
        best["random"].append(max(trial.score or 0 for trial in drawn(Search(SPACE, 30, "random", seed))))
        best["lower"].append(
            max(-(trial.score or 0) for trial in drawn(Search(SPACE, 30, "tpe", seed), better="lower"))
        )
    assert sum(best["tpe"]) > sum(best["random"])
    assert sum(best["lower"]) > sum(best["random"])


def test_nothing_is_drawn_twice_and_a_small_space_ends() -> None:
    space = {"fit.depth": Range(1, 3, whole=True), "fit.words": Choices(("a", "b"))}
    for method in ("tpe", "random"):
        trials = [tuple(trial.values.values()) for trial in drawn(Search(space, 50, method))]
        assert sorted(trials) == [(depth, word) for depth in "123" for word in "ab"]


def test_a_trial_outlasts_the_median_of_complete_ones_and_no_fewer_than_five() -> None:
    values = {"fit.eta": "0.1", "fit.depth": "3", "fit.words": "a"}
    study = Study(Search(SPACE, 9))
    trials = [Known(values, score=number, reported={0: number / 2, 1: number}) for number in range(1, 6)]
    others = [Known(values, "pruned", reported={0: 99.0, 1: 99.0}), Known(values, "failed"), Known(values, "running")]
    for better, sign in (("higher", 1.0), ("lower", -1.0)):
        shown = [Known(values, score=sign * (t.score or 0), reported={k: sign * v for k, v in t.reported.items()}) for t in trials]  # fmt: skip
        assert study.outlasts({0: -9 * sign}, [*shown[:4], *others], better), "too few to compare with"
        assert study.outlasts({0: 1.5 * sign, 1: 3.0 * sign}, [*shown, *others], better)
        assert not study.outlasts({0: 1.0 * sign, 1: 2.9 * sign}, [*shown, *others], better)
        assert study.outlasts({0: 9.0 * sign, 1: 2.9 * sign}, [*shown, *others], better), "its best so far counts"


@pytest.mark.parametrize("kernel", [FORKED, STANDARD])
def test_a_step_that_is_not_worth_its_end_is_ended_in_the_middle_of_a_cell(tmp_path: Path, kernel: str) -> None:
    cells = [
        "from runner.scraps import report",
        "report('other', -5, 0); report('auc', 0.5, 0); report('auc', -3, 0)",
        "report('auc', -1, 7)\nimport time; time.sleep(300)",
        "open('reached', 'w')",
    ]
    (tmp_path / "modules").mkdir()
    (tmp_path / "notebook.ipynb").write_text(json.dumps(notebook(*cells)))
    (tmp_path / "job.json").write_bytes(encode(StepJob(run="r", step="fit", notebook="n.ipynb", kernel=kernel)))
    told: list[Progress] = []
    inner = LocalExecutor(kernel=kernel)
    kept: list[Any] = []
    executor = PrunedExecutor(
        inner, "fit", lambda: "auc", lambda reported: max(reported.values()) == [*reported.values()][-1], kept.append
    )
    stop = threading.Event()
    try:
        began = time.monotonic()
        result = executor.run(tmp_path, cwd=tmp_path, stop=stop, on_progress=told.append)
        assert time.monotonic() - began < 200
    finally:
        executor.close()
    assert kept == [{"other": {0: -5.0}, "auc": {0: 0.5, 7: -1.0}}], "of each step once"
    assert result.error is not None
    assert (result.status, result.error.kind, result.error.cell, stop.is_set()) == ("pruned", "pruned", 3, False)
    assert result.error.evalue == "auc -1 at step 7 is worse than half of the trials before"
    assert (result.kernel, read(StepResult, tmp_path / RESULT)) == (kernel, result)
    assert not (tmp_path / "reached").exists()
    assert "auc -1 at step 7" in [progress.first_line for progress in told]


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
[[gate]]
metric = "judge.score"
min = 0.0
"""
# a trial's curve is worse from its first step on where its end is; two of three kinds fail
FIT = """
assert kind != 'broken'
score = 1.0 - abs(depth - 5) / 10 - 2 * abs(eta - 0.1)
from runner.scraps import report
for step in range(3):
    report('valid', score * (step + 1) / 3, step)
"""
SEARCH = ("sweep", "fit", "--trials", "12", "--seed", "1", "-p", "fit.depth=1:9", "-p", "fit.eta=0.01:0.9:log",
          "-p", "fit.kind=plain,broken,fine", "-p", "fit.rows=2", "--json")  # fmt: skip


LAST = ("from runner.scraps import metric", "open(model, 'w').write(f'{depth} {eta}')\nmetric('valid', score, better='higher')\nmetric('rows', rows)")  # fmt: skip


def fit_parameters() -> dict[str, Any]:
    """The parameters of `fit`."""
    return parameters(
        "table: str = ''\nmodel: str = ''\nrows: int = 1\nkind: str = ''\n"
        "depth: int = 1  # 1 to 20\neta: float = 0.5  # above 0 to 1"
    )


def tiny(folder: Path) -> Project:
    folder.mkdir(exist_ok=True)
    project = Project(folder)
    project.write("make.ipynb", parameters("table: str = ''"), "open(table, 'w').write('xxx')")
    project.write("fit.ipynb", fit_parameters(), FIT, *LAST)
    project.write("judge.ipynb", parameters("model: str = ''"), recorded("score", "0.5"))
    project.toml(TOML)
    return project


@dataclass(frozen=True)
class Searched:
    project: Project
    done: Done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search that nothing disturbed."""
    project = tiny(tmp_path_factory.mktemp("whole"))
    return Searched(project, project.runner(*SEARCH, env=PAGES))


def trials(made: Any) -> list[Any]:
    """In their order: values, state, value."""
    ordered = sorted(made["tried"], key=lambda trial: trial["number"])
    return [(t["values"], t["state"], (t["metrics"].get("fit.valid") or {}).get("value")) for t in ordered]


def executed(project: Project) -> dict[str, int]:
    """How many executions of each step ended, however."""
    manifests = [json.loads((run / "run.json").read_text()) for run in project.runs]
    ran = [
        step["name"] for manifest in manifests for step in manifest["steps"] if step["result"] and not step["from_run"]
    ]
    return {name: ran.count(name) for name in sorted(set(ran))}


def reports(project: Project) -> dict[str, str]:
    """What each trial's notebook reported, as it is kept; a trial that was drawn by a longer search apart."""
    (folder,) = (project.folder / "runs/sweeps").iterdir()
    return {path.name: path.read_text() for path in folder.glob("reported/*.json") if path.stem != "13"}


def test_trials_are_drawn_pruned_and_ranked_and_the_best_alone_is_evaluated(whole: Searched) -> None:
    project, done = whole.project, whole.done
    assert done.code == 0, done.err
    made = done.json
    assert made["search"] == {"method": "tpe", "trials": 12, "seed": 1}
    states = [state for _, state, _ in trials(made)]
    assert (len(states), set(states)) == (12, {"complete", "pruned", "failed"})
    assert states.index("pruned") >= 5, "nothing is pruned before five have a value"
    values = [trial["metrics"]["fit.valid"]["value"] for trial in made["tried"] if trial["state"] == "complete"]
    assert values == sorted(values, reverse=True)
    assert [trial["state"] for trial in made["tried"]][: len(values)] == ["complete"] * len(values)
    for trial in made["tried"]:
        assert (trial["values"]["fit.kind"] == "broken") == (trial["state"] == "failed"), trial
        said = {"complete": "None", "pruned": "is worse than half of the trials", "failed": "AssertionError"}
        assert said[trial["state"]] in str(trial["why"])
    assert executed(project) == {"make": 1, "fit": 12, "judge": 1}
    assert made["winner"]["verdict"] == "pass"
    assert "pruned" in done.err
    assert f"-p fit.rows=2 -p fit.depth={made['tried'][0]['values']['fit.depth']}" in done.err


def test_a_pruned_trial_is_shown_as_such_and_no_failure(whole: Searched) -> None:
    pruned = next(trial for trial in whole.done.json["tried"] if trial["state"] == "pruned")
    shown = whole.project.runner("show", pruned["run"])
    assert (shown.code, "is worse than half of the trials before" in shown.out + shown.err) == (0, True)
    assert "✗" not in shown.out + shown.err
    found = whole.project.runner("show", pruned["run"], "--json").json
    assert (found["status"], {step["name"]: step["status"] for step in found["steps"]}["fit"]) == (
        "succeeded",
        "pruned",
    )
    assert whole.project.runner("verify", "--all").code == 0


def test_the_page_and_the_record_have_every_trial_with_its_state(whole: Searched) -> None:
    made = whole.done.json
    page_file = Path(made["report"])
    page = page_file.read_text()
    assert "12 of 12 trials" in page
    assert page.count("<td>pruned</td>") == sum(trial["state"] == "pruned" for trial in made["tried"])
    assert 'alt="fit.valid of ' in page
    record = json.loads(page_file.with_name("sweep.json").read_text())
    assert [(t["values"], t["state"], t["value"]) for t in record["tried"]] == trials(made)
    for trial in record["tried"]:
        reported = json.loads((page_file.parent / f"reported/{trial['number']}.json").read_text())["values"]
        assert bool(reported.get("valid")) is (trial["state"] != "failed")
    assert record["winner"] == made["winner"]["run"]


@pytest.mark.soak
def test_the_same_command_finds_everything_done_and_more_trials_go_on_from_there(
    whole: Searched, tmp_path: Path
) -> None:
    before = executed(whole.project)
    again = whole.project.runner(*SEARCH)
    assert (again.code, trials(again.json)) == (0, trials(whole.done.json)), again.err
    assert executed(whole.project) == before
    more = whole.project.runner(*SEARCH[:3], "13", *SEARCH[4:])
    assert trials(more.json)[:12] == trials(whole.done.json)
    assert executed(whole.project)["fit"] == 13
    # other code, other trials: what an earlier notebook came to says nothing of this one
    project = tiny(tmp_path / "other")
    shutil.copytree(whole.project.folder / "runs", project.folder / "runs")
    project.write("make.ipynb", parameters("table: str = ''"), "open(table, 'w').write('yyyy')")
    (project.folder / "shift.txt").write_text("0")
    project.write("fit.ipynb", fit_parameters(), "kind, score = 'fine', depth - float(open('shift.txt').read())", *LAST)
    other = project.runner(*SEARCH[:3], "1", *SEARCH[4:])
    assert len(other.json["tried"]) == 1
    assert other.json["report"] != more.json["report"]
    # nor what it came to with another file, which is no input
    (project.folder / "shift.txt").write_text("1")
    shifted = project.runner(*SEARCH[:3], "1", *SEARCH[4:])
    assert trials(shifted.json)[0][2] == trials(other.json)[0][2] - 1


@pytest.mark.soak
@pytest.mark.parametrize(
    "places",
    [
        ["trial about to run:1", "step about to run:fit", "result written:fit", "trial ended:9", "trial recorded:12"],
        ["trial recorded:5", "run begun", "step sealed:fit", "trial ended:7", "before the end"],
    ],
)  # fmt: skip
def test_killed_anywhere_the_same_command_comes_to_the_same_trials(
    whole: Searched, tmp_path: Path, places: list[str]
) -> None:
    project = tiny(tmp_path / "killed")
    for place in places:
        assert project.runner(*SEARCH, env={"RUNNER_FAILPOINT": place}).code == -9, place
    done = project.runner(*SEARCH)
    assert done.code == 0, done.err
    assert trials(done.json) == trials(whole.done.json)
    assert reports(project) == reports(whole.project)
    assert executed(project)["judge"] == 1


@pytest.mark.soak
def test_killed_at_random_moments_it_still_comes_to_the_same_trials(whole: Searched, tmp_path: Path) -> None:
    project, draw = tiny(tmp_path / "killed"), random.Random(5)
    for _ in range(8):
        process = project.start(*SEARCH)
        time.sleep(draw.uniform(0.5, 6))
        process.kill()
        process.communicate()
    done = project.runner(*SEARCH)
    assert done.code == 0, done.err
    assert (trials(done.json), reports(project)) == (trials(whole.done.json), reports(whole.project))


@pytest.mark.soak
def test_two_at_once_end_with_as_many_trials_and_no_two_are_equal(tmp_path: Path) -> None:
    project = tiny(tmp_path / "two")
    done = project.runner(*SEARCH, "-j", "2", "--search", "random", "--no-prune")
    assert done.code == 0, done.err
    tried = trials(done.json)
    assert len({tuple(values.values()) for values, _, _ in tried}) == 12
    assert {state for _, state, _ in tried} == {"complete", "failed"}
    assert executed(project)["make"] == 1


def test_what_cannot_be_searched_is_said_before_anything_runs(tmp_path: Path) -> None:
    project = tiny(tmp_path / "said")
    eta = ("-p", "fit.eta=0.1:1")
    for arguments, said in (
        (("--trials", "3", "-p", "fit.eta=0.1:2"), "outside its range"),
        (("--trials", "3", "-p", "fit.depth=1:30"), "outside its range"),
        (("--trials", "3", "-p", "fit.dept=1:3"), "dept"),
        (("--trials", "3", *eta, "--metric", "judge.score"), "on validation rows"),
        (("--trials", "3", "-p", "fit.depth=3"), "nothing to search"),
        (eta, "--trials 50"),
        (("--seed", "0", "-p", "fit.depth=3,5"), "--trials 50"),
        (("--trials", "3", "--search", "magic", *eta), "magic"),
    ):
        done = project.runner("sweep", "fit", *arguments)
        assert (done.code, said in done.err) == (2, True), done.err
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "optuna.py").write_text("raise ImportError('hidden')")
    done = project.runner("sweep", "fit", "--trials", "3", *eta, env={"PYTHONPATH": str(tmp_path / "hidden")})
    assert (done.code, "pip install optuna" in done.err) == (2, True), done.err
    assert not project.runs


@pytest.mark.soak
def test_what_cannot_be_ranked_ends_the_search_with_its_first_trial(tmp_path: Path) -> None:
    project = tiny(tmp_path / "ranked")
    command = ("sweep", "fit", "--trials", "9", "-p", "fit.depth=1:9")
    done = project.runner(*command, "--metric", "fit.vald")
    assert (done.code, "did you mean `fit.valid`" in done.err) == (2, True), done.err
    project.write("fit.ipynb", fit_parameters(), "open(model, 'w').write('m')")
    done = project.runner(*command)
    assert (done.code, "fit records none" in done.err) == (2, True), done.err
    assert executed(project) == {"fit": 2, "make": 1}
    project.toml(TOML.replace('notebook = "fit.ipynb"', 'notebook = "fit.ipynb"\nmap = { kind = ["a", "b"] }'))
    done = project.runner(*command)
    assert (done.code, "for each of its keys" in done.err) == (2, True), done.err


@pytest.mark.soak
def test_a_second_process_waits_for_no_search_that_is_going_on(tmp_path: Path) -> None:
    project = tiny(tmp_path / "busy")
    project.write(
        "fit.ipynb",
        parameters("table: str = ''\nmodel: str = ''\neta: float = 0.5"),
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)",
        "open(model, 'w').write('m')",
        recorded("valid", "eta"),
    )
    command = ("sweep", "fit", "--trials", "2", "-p", "fit.eta=0.1:1", "--metric", "fit.valid")
    first = project.start(*command)
    until = time.monotonic() + 120
    while not any((project.folder / "runs").glob("sweeps/*/sweep.json")):
        assert time.monotonic() < until
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = project.runner(*command)
    (project.folder / "go").touch()
    assert (second.code, "works on this search" in second.err) == (8, True), second.err
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err


@pytest.mark.soak
def test_in_sagemaker_trials_are_jobs_and_none_is_pruned(tmp_path: Path) -> None:
    with running() as cloud:
        far = RemoteProject(tmp_path, cloud)
        far.write(
            "fit.ipynb",
            parameters("depth: int = 1"),
            "from runner.scraps import metric, report\nfor step in range(3): report('valid', -step - depth, step)",
            "metric('valid', depth, better='higher')",
        )
        far.toml('name = "far"\n[steps.fit]\nnotebook = "fit.ipynb"\n')
        command = ("sweep", "fit", "--trials", "7", "-p", "fit.depth=1:9", "--on", "sagemaker", "--json")
        done = far.runner(*command)
        assert done.code == 0, done.err
        assert {trial["state"] for trial in done.json["tried"]} == {"complete"}
        assert len(jobs(cloud)) == 7, "the winner is taken from its trial"
        again = far.runner(*command)
        assert again.json["tried"] == done.json["tried"]
        assert len(jobs(cloud)) == 7
