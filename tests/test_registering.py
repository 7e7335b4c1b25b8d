"""From a run that passed to a version that a person decides on, through the command."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.commands import Done
from support.projects import Project, parameters, recorded
from support.some import some
from support.tiny_training import TRAIN

import runner.model
from runner.content import artifact
from runner.errors import Refused, UsageError
from runner.model import approval
from runner.model.registry import LocalRegistry
from runner.model.registry_rules import Decider
from runner.model.request import REQUEST, STEP_FOLDER
from runner.model.versions import ModelVersion
from runner.records import ApprovalSpec
from runner.run.store import Store

TOML = """
name = "tiny"
[steps.train]
notebook = "train.ipynb"
outputs = { model = "model/", aside = "aside/" }
[steps.register]
notebook = "register.ipynb"
inputs = { model = "train.model", aside = "train.aside", verdict = "gate.verdict" }
[[gate]]
metric = "train.score"
min = 0.5
[model]
name = "tiny"
from = "train.model"
[profiles.quick]
skip = ["register"]
"""
FIELDS = ["name", "version", "status", "run", "sha256", "metrics", "created", "decided_by", "reason"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose only run registered tiny/1; each test changes a copy of it, so that it is made once."""
    project = Project(tmp_path_factory.mktemp("registering") / "project")
    project.folder.mkdir()
    project.write("train.ipynb", parameters('model: str = "work/m"\naside: str = "work/a"'), *TRAIN)
    registering(project, "model")
    project.toml(TOML)
    done = project.runner("run", "--json")
    assert done.code == 0, done.err
    assert done.json["model_version"] == {"name": "tiny", "version": 1, "status": "pending"}
    return project


@pytest.fixture
def project(origin: Project, tmp_path: Path) -> Project:
    shutil.copytree(origin.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def registering(project: Project, folder: str) -> None:
    project.write(
        "register.ipynb",
        parameters('model: str = ""\naside: str = ""\nverdict: str = ""'),
        f"import runner.model\nrunner.model.register({folder}, card='# Card', description='Tiny model')",
    )


def versions(project: Project) -> list[tuple[str, int, str]]:
    done = project.runner("models", "--json")
    assert done.code == 0, done.err
    return [(version["name"], version["version"], version["status"]) for version in done.json]


def approve(project: Project, version: str = "tiny/1", reason: str = "reviewed") -> Done:
    return project.runner("approve", version, "--reason", reason, "--json")


def without_registry(project: Project) -> Project:
    """As before anything was registered."""
    (project.folder / "runs" / "registry.db").unlink()
    shutil.rmtree(project.folder / "runs" / "registry-events")
    return project


def refused(done: Done, said: str) -> None:
    """Exit code 8 and a sentence, nothing else."""
    assert (done.code, done.out) == (8, ""), done.err
    assert re.search(said, done.err), done.err
    assert "Traceback" not in done.err


def test_a_run_that_passes_registers_one_pending_version_that_leads_back_to_it(origin: Project) -> None:
    (version,) = origin.runner("models", "--json").json
    assert list(version) == [*FIELDS, "commit", "sources"]
    run = origin.runs[-1]
    model = run / "steps" / "train" / "out" / "model"
    created = datetime.fromisoformat(version["created"])
    assert created.tzinfo == UTC
    assert abs((datetime.now(UTC) - created).total_seconds()) < 3600
    assert {field: version[field] for field in FIELDS if field != "created"} == {
        "name": "tiny",
        "version": 1,
        "status": "pending",
        "run": run.name,
        "sha256": artifact(model, name="model").sha256,
        "metrics": {"train.score": {"value": 0.9, "low": 0.8, "high": 1.0}},
        "decided_by": None,
        "reason": None,
    }
    assert runner.model.load(model, sha256=version["sha256"]).signature.target == "old"
    assert "tiny/1  pending" in origin.runner("models", "tiny").out
    assert "runner approve tiny/1" not in origin.runner("models").out


def test_running_again_registers_nothing_new(project: Project) -> None:
    first = project.runs[-1].name
    for arguments in ((), ("--tag", "another")):
        done = project.runner("run", "--json", *arguments)
        assert [step["status"] for step in done.json["steps"]] == ["cached", "cached"]
        assert done.json["model_version"] == {"name": "tiny", "version": 1, "status": "pending"}
    assert len(project.runs) == 3
    (version,) = project.runner("models", "--json").json
    assert version["run"] == first


def test_a_decision_is_told_wherever_the_run_is_looked_at_beside_what_it_was_when_the_run_ended(
    project: Project,
) -> None:
    run = project.runs[-1].name
    written = (project.runs[-1] / "run.json").read_bytes()
    assert "model tiny/1 pending\n" in project.runner("show", run).out
    decided = approve(project)
    by = decided.json["decided_by"]
    now = rf"pending when it ended; now approved by {by} on 20\d\d-\d\d-\d\d \d\d:\d\d UTC"
    page = (project.folder / project.runner("report", run).out.strip()).read_text()
    shown, markdown = project.runner("show", run).out, project.runner("show", run, "--md").out
    for said in (f"model tiny/1 {now}", f"is registered, {now}", rf"Model `tiny/1` {now}"):
        assert any(re.search(said, place) for place in (shown, page, markdown)), said
    for place in (shown, page, markdown):
        assert re.search(now, place)
        assert "runner approve" not in place
    told = project.runner("show", run, "--json").json["model_version"]
    told_decided = told.pop("decided")
    state = {"name": "tiny", "version": 1, "status": "approved", "status_at_end": "pending", "decided_by": by}
    assert (told, told_decided[:2]) == (state, "20")
    assert project.runner("runs", "--json").json[0]["model_version"] == {**state, "decided": told_decided}
    resumed = project.runner("resume", run)
    assert (resumed.code, "now approved by" in resumed.out, "runner approve" in resumed.err) == (0, True, False)

    assert project.runner("run", "--tag", "again", "--json").json["model_version"]["status"] == "approved"
    compared = project.runner("compare", run, "latest")
    assert "the same in all" not in compared.out  # where no parameter is
    assert "tiny/1 approved  tiny/1 approved" in compared.out
    page = (project.folder / compared.out.split("page ")[-1].strip()).read_text()
    assert re.search(f"tiny/1 {now}", page)
    assert "tiny/1` approved" in project.runner("compare", run, "latest", "--md").out
    sides = project.runner("compare", run, "latest", "--json").json["runs"]
    ends = [(side["model_version"]["status"], side["model_version"]["status_at_end"]) for side in sides]
    assert ends == [("approved", "pending"), ("approved", "approved")]

    assert project.runner("reject", "tiny/1", "--reason", "wrong month").code == 0
    assert "approved when it ended; now rejected by" in project.runner("show", "latest").out
    assert (project.folder / "runs" / run / "run.json").read_bytes() == written
    (project.folder / "runs" / "registry.db").write_bytes(b"rubbish")
    damaged = project.runner("show", run)
    assert (damaged.code, "pending when it ended; what it is now cannot be read: " in damaged.out) == (0, True)
    without_registry(project)
    assert "pending when it ended; the registry here does not have it" in project.runner("show", run).out
    assert project.runner("show", run, "--json").json["model_version"]["status"] == "unknown"


def test_a_version_is_approved_once_and_may_be_revoked_once(project: Project) -> None:
    assert project.runner("approve", "tiny/1").code == 2
    assert approve(project, reason="  ").code == 2
    assert versions(project) == [("tiny", 1, "pending")]
    done = approve(project, reason="metrics reviewed, Größe passt")
    assert done.code == 0, done.err
    assert (done.json["status"], done.json["reason"]) == ("approved", "metrics reviewed, Größe passt")
    who = done.json["decided_by"]
    refused(approve(project), rf"tiny/1 is already approved, by {who} at 20.*Größe passt")
    done = project.runner("reject", "tiny/1", "--reason", "wrong month", "--json")
    assert (done.code, done.json["status"], done.json["reason"]) == (0, "rejected", "wrong month")
    refused(project.runner("reject", "tiny/1", "--reason", "again"), "already rejected")
    assert versions(project) == [("tiny", 1, "rejected")]

    events = project.runner("history", "tiny", "--json").json
    assert [(event["kind"], event["version"], event["why"]) for event in events] == [
        ("registered", 1, ""),
        ("approved", 1, "metrics reviewed, Größe passt"),
        ("rejected", 1, "wrong month"),
    ]
    assert {event["who"] for event in events} == {who, project.manifest["started_by"]}
    assert all(datetime.fromisoformat(event["at"]).tzinfo == UTC for event in events)
    lines = project.runner("history", "tiny").out.splitlines()
    assert lines[0].split()[:2] == ["when", "(UTC)"]
    for line, event in zip(lines[1:], events, strict=True):
        assert line.startswith(event["at"][:19].replace("T", " "))
        assert all(part in line for part in ("tiny/1", event["kind"], event["who"], event["why"]))


def test_a_pending_version_can_be_rejected(project: Project) -> None:
    done = project.runner("reject", "tiny/1", "--reason", "not now")
    assert (done.code, done.out.splitlines()[0]) == (0, "model tiny/1 rejected")
    refused(approve(project), "already rejected")


def test_what_is_no_version_is_said(origin: Project) -> None:
    for version, said in (("tiny/2", "versions are 1 to 1"), ("other/1", "Registered: tiny"), ("tiny", "NAME/VERSION")):
        done = approve(origin, version)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    assert origin.runner("history", "other").code == 2


def altered(model: Path) -> None:
    path = model / "model.ubj"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (altered, r"altered since its run \(model\.ubj\)"),
        (lambda model: (model / "more.txt").write_text("x"), r"altered since its run \(more\.txt\)"),
        (lambda model: (model / "signature.json").unlink(), r"altered since its run \(signature\.json\)"),
        (shutil.rmtree, "cannot be read"),
    ],
)
def test_an_altered_model_is_not_approved(project: Project, change: Callable[[Path], object], said: str) -> None:
    change(project.runs[-1] / "steps" / "train" / "out" / "model")
    refused(approve(project), said)
    assert versions(project) == [("tiny", 1, "pending")]


def test_a_run_that_fails_its_gate_registers_nothing(project: Project) -> None:
    project.toml(TOML.replace("min = 0.5", "min = 0.95"))
    done = project.runner("run", "--json")
    assert (done.code, done.json["verdict"], done.json["model_version"]) == (4, "fail", None)
    assert [step["status"] for step in done.json["steps"]] == ["cached", "skipped"]
    refused(project.runner("register", "latest"), "its verdict fail")
    assert versions(project) == [("tiny", 1, "pending")]


@pytest.mark.parametrize(("arguments", "times"), [(("--no-register",), 2), (("--profile", "quick"), 1)])
def test_a_run_that_was_not_to_register_can_register_later_and_once(
    project: Project, arguments: tuple[str, ...], times: int
) -> None:
    done = without_registry(project).runner("run", "--json", *arguments)
    assert (done.code, done.json["verdict"], done.json["model_version"]) == (0, "pass", None)
    assert not (project.folder / "runs" / "registry.db").exists()
    for _ in range(times):
        done = project.runner("register", "latest", "--json")
        assert done.code == 0, done.err
        assert (done.json["version"], done.json["run"]) == (1, project.runs[-1].name)
    assert versions(project) == [("tiny", 1, "pending")]
    assert project.manifest["model_version"] == {"name": "tiny", "version": 1, "status": "pending"}


@pytest.mark.soak
def test_another_folder_than_the_pipeline_names_is_refused(project: Project) -> None:
    registering(project, "aside")
    done = without_registry(project).runner("run")
    assert done.code == 8
    assert "not the one that [model] from = 'train.model' names" in done.err
    assert project.step("register")["status"] == "failed"
    assert project.manifest["status"] == "failed"
    assert not (project.folder / "runs" / "registry.db").exists()


UNFIT = {  # what the folder has beside, or instead of, what runner.model.save writes
    "joblib": ("import joblib\njoblib.dump({'a': 1}, model + '/model.joblib')", "model.joblib is a pickle"),
    "none": ("import os\nos.remove(model + '/model.ubj')", "has no model.ubj or model.json or model.onnx or model.txt"),
    "no signature": ("import os\nos.remove(model + '/signature.json')", "has no signature.json"),
}


@pytest.mark.soak
@pytest.mark.parametrize("what", some(UNFIT, ["no signature"]))
def test_a_model_that_nobody_could_approve_is_refused_when_it_is_registered(project: Project, what: str) -> None:
    change, said = UNFIT[what]
    project.write("train.ipynb", parameters('model: str = "work/m"\naside: str = "work/a"'), *TRAIN, change)
    before = versions(project)
    done = project.runner("run")
    assert done.code == 8
    assert said in done.err
    assert "runner.model.save" in done.err
    assert "remove [model] from pipeline.toml" in done.err
    assert versions(project) == before


def test_a_model_without_a_name_is_refused(project: Project) -> None:
    project.toml(TOML.replace('[model]\nname = "tiny"\nfrom = "train.model"\n', ""))
    done = without_registry(project).runner("run")
    assert done.code == 8
    assert "no [model]" in done.err
    assert not (project.folder / "runs" / "registry.db").exists()


@pytest.mark.soak
def test_a_lost_registry_is_said_and_made_anew_before_anything_else_is_registered(project: Project) -> None:
    assert approve(project).code == 0
    (project.folder / "runs" / "registry.db").unlink()
    for arguments in (("run", "--force"), ("models",), ("approve", "tiny/1", "--reason", "x")):
        done = project.runner(*arguments)
        assert (done.code, "runner models --rebuild" in done.err) == (8, True), (arguments, done.err)
    verified = project.runner("verify", "--all")
    assert (verified.code, "runner models --rebuild" in verified.out) == (4, True), verified.out
    assert project.runner("models", "--rebuild").code == 0
    assert versions(project) == [("tiny", 1, "approved")]
    done = project.runner("run", "--json")
    assert done.json["model_version"] == {"name": "tiny", "version": 1, "status": "approved"}


def test_a_registry_that_was_never_there_is_filled_by_the_next_run(project: Project) -> None:
    done = without_registry(project).runner("run", "--json")
    assert [step["status"] for step in done.json["steps"]] == ["cached", "cached"]
    assert done.json["model_version"] == {"name": "tiny", "version": 1, "status": "pending"}
    (version,) = project.runner("models", "--json").json
    assert version["run"] == project.runs[-1].name
    assert approve(project).code == 0


def test_a_model_that_is_given_another_name_is_registered_under_it(project: Project) -> None:
    project.toml(TOML.replace('[model]\nname = "tiny"', '[model]\nname = "small"'))
    done = project.runner("run", "--json")
    assert done.json["model_version"] == {"name": "small", "version": 1, "status": "pending"}
    assert versions(project) == [("small", 1, "pending"), ("tiny", 1, "pending")]


def test_a_history_that_was_altered_is_refused_everywhere(project: Project) -> None:
    assert approve(project).code == 0
    connection = sqlite3.connect(project.folder / "runs" / "registry.db")
    connection.execute("DROP TRIGGER events_stay")
    connection.execute("UPDATE events SET event = replace(event, 'reviewed', 'demanded')")
    connection.commit()
    connection.close()
    done = project.runner("history", "tiny")
    assert done.code == 8
    assert "event 2 (approved tiny/1) was altered" in done.err
    assert "demanded" in done.out
    refused(project.runner("models"), "event 2 .* was altered")
    refused(project.runner("reject", "tiny/1", "--reason", "x"), "event 2 .* was altered")


def test_a_registry_that_cannot_be_read_is_refused_and_kept(project: Project) -> None:
    path = project.folder / "runs" / "registry.db"
    path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes()
    refused(project.runner("models"), "restore a copy")
    refused(approve(project), "restore a copy")
    done = project.runner("run", "--tag", "another")
    assert (done.code, "restore a copy" in done.err) == (8, True)
    assert path.read_bytes() == before


# Who may decide


def decided(project: Project, who: str, *, identity: str = "", reject: bool = False, **rules: Any) -> ModelVersion:
    """The decision on tiny/1, by the rules of [approval]."""
    registry = LocalRegistry(project.folder / "runs" / "registry.db")
    decider = Decider(who, identity, ApprovalSpec(**rules))
    if reject:
        return approval.reject(registry, "tiny", 1, decider, why="reviewed")
    runs = Store(project.folder / "runs")
    manifest = runs.manifest(registry.get("tiny", 1).run)
    folder = runs.folder(manifest.run) / registry.get("tiny", 1).artifact.path
    return approval.approve(registry, "tiny", 1, decider, why="reviewed", manifest=manifest, model_folder=folder)


def test_only_those_who_are_named_decide(project: Project) -> None:
    for reject in (False, True):
        with pytest.raises(Refused, match=r"eve@here may not decide on tiny/1: only ana, ben may \(\[approval\] by"):
            decided(project, "eve@here", by=["ana", "ben"], reject=reject)
        with pytest.raises(Refused, match=r"eve@here \(eve\) may not decide"):
            decided(project, "eve@here", by=["ana"], identity="arn:aws:iam::123456789012:user/eve", reject=reject)
    assert versions(project) == [("tiny", 1, "pending")]
    assert decided(project, "ana@here", by=["ana", "ben"]).decided_by == "ana@here"
    session = "arn:aws:sts::123456789012:assumed-role/Approvers/ben"
    assert decided(project, "root@job", by=["ana", "ben"], identity=session, reject=True).status == "rejected"
    events = LocalRegistry(project.folder / "runs" / "registry.db").events("tiny")
    assert [event.data.get("identity") for event in events] == [None, None, session]


def test_whoever_started_the_run_may_be_kept_from_approving_it(project: Project) -> None:
    starter = project.manifest["started_by"]
    user = starter.partition("@")[0]
    for who, identity in (
        (starter, ""),
        (f"{user}@elsewhere", ""),
        ("root@job", f"arn:aws:iam::1:user/{user}x/{user}"),
    ):
        with pytest.raises(Refused, match="started the run of tiny/1 and may not approve it"):
            decided(project, who, identity=identity, not_starter=True)
    assert versions(project) == [("tiny", 1, "pending")]
    assert decided(project, "somebody@else", not_starter=True).status == "approved"
    assert decided(project, starter, not_starter=True, reject=True).status == "rejected"


# What the notebook calls


def test_by_hand_nothing_is_registered(origin: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STEP_FOLDER, raising=False)
    model = origin.runs[-1] / "steps" / "train" / "out" / "model"
    before = artifact(model.parent, name="out")
    assert "Nothing is registered" in runner.model.register(model)
    assert artifact(model.parent, name="out") == before


def test_a_step_asks_for_one_model(origin: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setenv(STEP_FOLDER, str(tmp_path))
    model = origin.runs[-1] / "steps" / "train" / "out" / "model"
    with pytest.raises(UsageError, match="nowhere"):
        runner.model.register(tmp_path / "nowhere")
    assert "will be registered, pending" in runner.model.register(model, card="# Card")
    asked = (tmp_path / "out" / REQUEST).read_bytes()
    with pytest.raises(UsageError, match="called before"):
        runner.model.register(model)
    assert (tmp_path / "out" / REQUEST).read_bytes() == asked


# A registering step as people write it, and a pipeline that has none


FIT = (
    parameters('model: str = ""\ndepth: int = 3'),
    "import json, pathlib\nplace = pathlib.Path(model)\nplace.mkdir(exist_ok=True)",
    "(place / 'model.json').write_text(json.dumps({'depth': depth}))\n(place / 'signature.json').write_text('{}')",
)
BY_HAND = """
name = "hand"
[steps.fit]
notebook = "fit.ipynb"
outputs = { model = "model/" }
[steps.enter]
notebook = "enter.ipynb"
inputs = { model = "fit.model" }
[steps.judge]
notebook = "judge.ipynb"
inputs = { model = "fit.model" }
[[gate]]
metric = "judge.depth"
min = 3.0
[model]
name = "hand"
from = "fit.model"
"""
# as a person, a module or nothing that can be read from the code calls it
CALLS = {
    "import runner.model": "import runner.model\nrunner.model.register(model)",
    "another name": "from runner import model as ours\nours.register(model)",
    "the function": "%matplotlib inline\nfrom runner.model import register as enter\nif model:\n    enter(model)",
    "a module": "import helper\nhelper.enter(model)",
    "unreadable": "import importlib\ngetattr(importlib.import_module('runner.model'), 'reg' + 'ister')(model)",
}


@pytest.mark.soak
@pytest.mark.parametrize("how", some(CALLS, ["the function"]))
def test_a_registering_step_that_does_not_take_the_verdict_waits_for_it_all_the_same(
    project_by_hand: Project, how: str
) -> None:
    project = project_by_hand
    (project.folder / "helper.py").write_text("import runner.model as rm\ndef enter(model):\n    rm.register(model)\n")
    project.write("enter.ipynb", parameters('model: str = ""'), CALLS[how])
    known = how != "unreadable"
    checked = project.runner("check").out
    assert "a run that passes its gate registers hand" in checked
    assert ("no step registers" in checked) == (not known)
    whole = how == "import runner.model"
    for depth, version in ((3, 1), (4, 2), (3, 1), (3, 1)) if whole else ((3, 1), (3, 1)):
        done = project.runner("run", "--json", "-p", f"depth={depth}")
        assert (done.code, done.json["model_version"]["version"]) == (0, version), done.err
    for _ in range(1 + whole):  # the gate is heard, with its rules, and nothing is registered
        done = project.runner("run", "--json", "-p", "depth=2")
        assert (done.code, done.json["verdict"], done.json["model_version"]) == (4, "fail", None), done.err
        assert "judge.depth is 2" in done.err
        statuses = {step["name"]: step["status"] for step in done.json["steps"]}
        assert statuses["enter"] == ("skipped" if known else "succeeded")
    assert [step["name"] for step in done.json["steps"]][-1] == ("enter" if known else "judge")


@pytest.fixture
def project_by_hand(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("fit.ipynb", *FIT)
    project.write(
        "judge.ipynb",
        parameters('model: str = ""'),
        "import json",
        recorded("depth", "json.load(open(model + '/model.json'))['depth']"),
    )
    project.write("enter.ipynb", parameters('model: str = ""'), CALLS["import runner.model"])
    project.toml(BY_HAND)
    return project


@pytest.mark.soak
def test_a_step_that_the_gate_judges_may_register_itself_and_is_judged_first(project_by_hand: Project) -> None:
    project = project_by_hand
    project.write("fit.ipynb", *FIT, recorded("depth", "depth"), "import runner.model\nrunner.model.register(model)")
    project.toml(
        BY_HAND.replace("judge.depth", "fit.depth").partition("[steps.enter]")[0]
        + """
[[gate]]
metric = "fit.depth"
min = 3.0
[model]
name = "hand"
from = "fit.model"
"""
    )
    for depth, code, version in ((3, 0, 1), (2, 4, None), (4, 0, 2), (2, 4, None), (3, 0, 1)):
        done = project.runner("run", "--json", "-p", f"depth={depth}")
        registered = done.json["model_version"] and done.json["model_version"]["version"]
        assert (done.code, registered) == (code, version), done.err


@pytest.mark.soak
def test_a_dry_run_a_profile_and_a_part_of_the_steps_know_that_a_step_registers(project_by_hand: Project) -> None:
    project = project_by_hand
    project.toml(BY_HAND + '[profiles.quick]\nskip = ["enter"]\n')
    assert "the profile skips enter" in project.runner("check", "--profile", "quick").out
    done = project.runner("run", "--profile", "quick", "--json")
    said = done.json["not_registered"]
    assert (done.code, "step enter did not run (the profile quick skips it)" in said) == (0, True), done.err
    assert f"runner register {done.json['run']}" in said
    assert said in done.err
    done = project.runner("run", "judge", "--no-register")
    assert (done.code, "as --no-register says. `runner register" in done.out) == (0, True), done.out
    planned = project.runner("run", "--dry-run", "--json", "-p", "depth=2").json
    assert [(step["name"], step["action"]) for step in planned] == [
        ("fit", "run"),
        ("judge", "maybe"),
        ("enter", "maybe"),
    ]
    done = project.runner("run", "enter", "--json")
    assert (done.code, done.json["model_version"]["version"]) == (0, 1), done.err
    assert project.runner("run", "-p", "depth=2").code == 4
    planned = project.runner("run", "--dry-run", "--json", "-p", "depth=2").json
    assert [step["action"] for step in planned] == ["cached", "cached", "skip"]


@pytest.mark.soak
def test_a_refused_registration_is_no_finding_of_verify_and_is_said_again_by_the_next_run(
    project_by_hand: Project,
) -> None:
    project = project_by_hand
    project.write("enter.ipynb", parameters('model: str = ""'), "import runner.model\nrunner.model.register('aside')")
    (project.folder / "aside").mkdir()
    (project.folder / "aside" / "model.json").write_text("{}")
    for _ in range(2):
        done = project.runner("run")
        assert (done.code, "is not the one that [model] from" in done.err) == (8, True), done.err
        verified = project.runner("verify", "--all")
        assert (verified.code, "sound" in verified.out) == (0, True), verified.out
    assert "altered" not in done.err


def test_a_model_that_nothing_judges_is_said_at_check_and_refused(project_by_hand: Project) -> None:
    project_by_hand.toml(BY_HAND.replace('[[gate]]\nmetric = "judge.depth"\nmin = 3.0\n', ""))
    assert "there is no [[gate]], and only a run that passes its gate" in project_by_hand.runner("check").out
    done = project_by_hand.runner("run")
    assert (done.code, "There is no [[gate]] in pipeline.toml" in done.err) == (8, True), done.err
