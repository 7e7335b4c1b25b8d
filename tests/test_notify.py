"""Being told: what is sent when, to a real web server and a real mail server, and what becomes of what cannot be sent."""

from __future__ import annotations

import email
import email.policy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import judged
from support.inboxes import Inbox, mail_inbox, web_inbox
from support.projects import Project, parameters, recorded

from runner import decisions, notify
from runner.errors import PipelineError, UsageError
from runner.escape import message
from runner.gate import judge
from runner.manifest import RunManifest
from runner.model.registry import LocalRegistry
from runner.model.served import Deployment
from runner.pipeline.file import load
from runner.project import Project as Opened
from runner.records import InputSpec, Metric, NotifySpec, StepError, StepSpec
from runner.run.store import Store

HUSH, AWS_KEY = "hush-hush-4711", "AKIA" + "QWERTYUIOPASDFGH"
SPEC = NotifySpec(to="env:TELL")
TOLD = """
name = "told"
[steps.fit]
notebook = "fit.ipynb"
[[gate]]
metric = "fit.score"
min = 0.5
[notify]
to = "env:TELL"
"""
HOSTILE = "<!channel> @everyone [approve](https://evil.example/a) <img src=x>\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def inbox() -> Iterator[Inbox]:
    with web_inbox() as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """tiny/1 to tiny/3, pending, and somebody who is told."""
    return judged.made(tmp_path_factory.mktemp("notify") / "project", more='[notify]\nto = "env:TELL"')


def told(inbox: Inbox) -> tuple[str, str]:
    """The title and the text of the one message since the last call."""
    (sent,) = inbox.take()
    return sent["title"], sent["message"]


def test_a_run_that_does_not_pass_tells_which_rule_by_how_much_and_whose_run_it_is(
    tmp_path: Path, inbox: Inbox
) -> None:
    project = Project(tmp_path)
    project.toml(TOLD)
    project.write("fit.ipynb", parameters("score: float = 0.9"), recorded("score", "score"))
    env = {"TELL": inbox.address}
    assert project.runner("run", env=env).code == 0
    assert inbox.take() == []  # it passed, and there is nothing to decide
    for _ in range(2):  # unchanged it is told again: it is no better
        done = project.runner("run", "-p", "fit.score=0.25", env=env)
        assert (done.code, "note:" in done.err) == (4, False), done.err
        title, text = told(inbox)
        assert title == "told: Not passed: fit.score 0.25 is below 0.5."
        manifest = project.manifest
        for part in ("fit.score = 0.25", f"run {manifest['run']} by {manifest['started_by']}", "runner show"):
            assert part in text
    written = [path.read_bytes() for path in project.folder.rglob("*") if path.is_file()]
    assert not [content for content in written if HUSH.encode() in content]


def test_what_ends_a_run_from_outside_is_told_and_the_error_stays_the_same(tmp_path: Path, inbox: Inbox) -> None:
    project = Project(tmp_path)
    project.toml(TOLD.replace("[notify]", '[model]\nname = "m"\nfrom = "fit.model"\n[notify]').replace(
        'notebook = "fit.ipynb"', 'notebook = "fit.ipynb"\noutputs = { model = "model/" }'
    ))  # fmt: skip
    cells = (
        "import pathlib\npathlib.Path(model).mkdir(exist_ok=True)\n(pathlib.Path(model) / 'a').write_text('no model')"
    )
    project.write("fit.ipynb", parameters("model: str = ''"), cells, recorded("score", "0.9"))
    done = project.runner("run", env={"TELL": inbox.address})
    assert (done.code, "Nobody could approve it" in done.err) == (8, True), done.err
    assert "Nobody could approve it" in told(inbox)[0]


def test_decisions_are_told_with_who_and_why_and_on_chooses(place: Project, inbox: Inbox, monkeypatch: Any) -> None:
    monkeypatch.setenv("TELL", inbox.address)
    project, notes = Opened(place.folder / "pipeline.toml"), list[str]()
    decisions.approve(project, "tiny", 1, why=f"ticket 41 {HOSTILE} {AWS_KEY}", say=notes.append)
    title, text = told(inbox)
    assert title == "tiny: tiny/1 is approved"
    assert "ticket 41 ‹!channel> ＠everyone [approve] (https: //evil.example/a) ‹img src=x>" in text
    assert (AWS_KEY in text, "[redacted]" in text, "\x1b" in text) == (False, True, False)
    assert "train.auc = 0.91 (0.85 to 0.97)" in text
    project.spec = msgspec.structs.replace(project.spec, notify=NotifySpec(to="env:TELL", on=["deployed"]))
    decisions.reject(project, "tiny", 2, why="not yet", say=notes.append)
    assert (inbox.take(), notes) == ([], [])


def test_a_deployment_is_told_with_what_it_replaced_and_links_to_the_pages(
    inbox: Inbox, place: Project, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TELL", inbox.address)
    deployed = Deployment(
        id="1", target="production", kind="deployed", name="tiny", version=2, sha256="", who="ana", place="http://127.0.0.1:1",
        replaced="tiny/1",
    )  # fmt: skip
    spec = NotifySpec(to="env:TELL", pages="https://runs.example.org/churn/")
    notify.tell(spec, notify.of_deployment(load(place.folder / "pipeline.toml"), deployed), pytest.fail)
    title, text = told(inbox)
    assert title == "tiny: production serves tiny/2, instead of tiny/1"
    assert text.splitlines()[-1] == "https://runs.example.org/churn/targets/"


def test_a_pending_version_is_mailed_once_by_the_run_that_registered_it(place: Project, monkeypatch: Any) -> None:
    store, registry = Store(place.folder / "runs"), LocalRegistry(place.folder / "runs" / "registry.db")
    manifest = store.manifest(judged.RUN.format(3))
    with mail_inbox() as mail:
        monkeypatch.setenv("TELL", mail.address)
        notify.tell(SPEC, notify.of_run(manifest, None, registry=registry), pytest.fail)
        (raw,) = mail.take()
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["subject"] == "tiny: tiny/3 waits for a decision"
    body = parsed.get_body(("plain",))
    assert body is not None
    assert "Passed: the rule holds" in body.get_content()
    assert "runner approve tiny/3 --reason" in body.get_content()
    again = msgspec.structs.replace(manifest, run=judged.RUN.format(9))  # has the version of the run before
    assert notify.of_run(again, None, registry=registry) is None


def test_no_secret_of_a_run_is_sent_whatever_stands_in_its_error(
    place: Project, inbox: Inbox, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TELL", inbox.address)
    error = StepError(kind="exception", ename="ValueError", evalue=f"{inbox.address} {AWS_KEY} {HOSTILE}", traceback=[])
    manifest = judged.manifest_of(place, "20261122-120000-7f3a", {"train.auc": Metric(value=0.5)}, error=error)
    registry = LocalRegistry(place.folder / "runs" / "registry.db")
    notify.tell(SPEC, notify.of_run(manifest, None, registry=registry), pytest.fail)
    title, text = told(inbox)
    assert title.startswith("tiny: Failed: train stopped. ValueError: [redacted] [redacted] ‹!channel> ＠everyone")
    for secret in (HUSH, "T0K3N", AWS_KEY, "\x1b", "://evil"):
        assert secret not in title + text


@pytest.mark.soak
def test_who_cannot_be_told_is_one_note_that_names_no_address(place: Project, monkeypatch: Any) -> None:
    registry = LocalRegistry(place.folder / "runs" / "registry.db")
    manifest = Store(place.folder / "runs").manifest(judged.RUN.format(3))
    notice = notify.of_run(manifest, None, registry=registry)

    def noted(addresses: str | None) -> str:
        notes = list[str]()
        monkeypatch.delenv("TELL", raising=False)
        if addresses is not None:
            monkeypatch.setenv("TELL", addresses)
        notify.tell(SPEC, notice, notes.append)
        (note,) = notes
        return note

    assert noted(None).endswith("[notify] to names TELL, which is not set.")
    with web_inbox() as slow:  # its own: what comes late is not the next test's
        slow.open.clear()
        before = time.monotonic()
        note = noted(f"json://a:{HUSH}@127.0.0.1:1 nothing://{HUSH} {slow.address}")  # unreachable, unknown, too slow
        assert time.monotonic() - before < notify.START_S + notify.LIMIT_S
    assert note.endswith("JSON, an address that apprise does not know, JSON not reached by one attempt of 4 s.")
    assert HUSH not in note


def test_a_command_ends_as_it_would_where_nobody_can_be_told(place: Project) -> None:
    env = {"TELL": f"json://a:{HUSH}@127.0.0.1:1"}
    done = place.runner("reject", "tiny/3", "--reason", "too early", env=env)
    assert (done.code, done.out.splitlines()[0]) == (0, "model tiny/3 rejected")
    assert done.err.splitlines() == [
        "note: Nobody may have been told that this is decided: JSON not reached by one attempt of 4 s."
    ]


@pytest.mark.soak
def test_the_doctor_says_whether_people_can_be_told_sends_nothing_and_shows_no_address(
    place: Project, monkeypatch: Any
) -> None:
    def said(addresses: str | None) -> str:
        monkeypatch.delenv("TELL", raising=False)
        if addresses is not None:
            monkeypatch.setenv("TELL", addresses)
        try:
            return ", ".join(notify.services(SPEC))
        except UsageError as error:
            return str(error)

    assert said(None) == said(" ") == "[notify] to names TELL, which is not set."
    assert said(",") == "TELL has no address."
    assert (
        said(HUSH) == said(f"json://127.0.0.1:1 nothing://{HUSH}") == "TELL has an address that apprise does not know."
    )
    with web_inbox() as own:
        done = place.runner("doctor", "--json", env={"TELL": f"{own.address} mailto://a:{HUSH}@example.org"})
    (check,) = [check for check in done.json["checks"] if check["name"] == "notify"]
    assert (check["status"], check["message"]) == ("ok", "TELL leads to JSON, E-Mail; nothing was sent")
    assert (HUSH in done.out + done.err, own.take()) == (False, [])
    monkeypatch.delenv("TELL")
    unset = place.runner("doctor").out.splitlines()[-1]
    assert unset.startswith("✗ notify       [notify] to names TELL, which is not set: `export TELL=")


@pytest.mark.parametrize(
    "written",
    [
        f'notify = "slack://{HUSH}"',
        f'[notify]\nto = "slack://{HUSH}"',
        f'[notify]\npages = "https://a:{HUSH}@b.example/"',
    ],
)
def test_an_address_in_the_file_is_refused_and_not_repeated(tmp_path: Path, written: str) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(f'name = "told"\nsteps.a.notebook = "a.ipynb"\n{written}\n', encoding="utf-8")
    with pytest.raises(PipelineError, match="notify") as refused:
        load(path)
    assert HUSH not in str(refused.value)


def test_it_is_drift_where_the_pipeline_looks_at_what_a_target_captured(place: Project) -> None:
    manifest = Store(place.folder / "runs").manifest(judged.RUN.format(1))
    metrics = {"train.auc": Metric(value=0.7)}
    bad = msgspec.structs.replace(manifest, metrics=metrics, verdict=judge(metrics, manifest.pipeline.gate))
    assert notify.event_of(bad) == "failed"
    assert notify.event_of(watching(bad)) == "drift"
    assert notify.event_of(watching(manifest)) == "pending"
    assert notify.event_of(msgspec.structs.replace(bad, status="interrupted")) is None


def watching(manifest: RunManifest) -> RunManifest:
    steps = {"look": StepSpec(notebook="a.ipynb", inputs={"requests": InputSpec(from_="captured:production")})}
    return msgspec.structs.replace(manifest, pipeline=msgspec.structs.replace(manifest.pipeline, steps=steps))


@pytest.mark.parametrize("text", ["train.auc >= 0.8", "a < b", "ana@desk: it's fine, 50 % [1]", "~/x #3"])
def test_a_message_leaves_ordinary_text_as_it_is(text: str) -> None:
    assert message(text) == text
