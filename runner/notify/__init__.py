"""Telling people what has happened: which event it is, the text, and sending it by apprise.

Called where something has become true already, so it raises nothing and changes no exit code. The addresses stand in
the environment alone; a process of its own (`runner.notify.__main__`) reads them there, and gives up after `LIMIT_S`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

from runner.errors import RunnerError, UsageError
from runner.escape import message
from runner.manifest import ModelVersionRef, RunManifest
from runner.notebook.redaction import Redactor
from runner.pipeline.file import CAPTURED
from runner.records import Metric, NotifyEvent, NotifySpec, Pipeline

if TYPE_CHECKING:
    from runner.model.served import Deployment
    from runner.model.versions import ModelVersion, Registry

LIMIT_S = 4.0  # for all services together; one attempt
START_S = 8.0  # of the process, at most; it takes one
MOST_METRICS, MOST_RULES, LONGEST_VALUE, LONGEST = 12, 6, 300, 1800  # a service of chats takes 2,000 characters
NO_ADDRESS, UNKNOWN = "no address", "an address that apprise does not know"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Notice:
    """What is told: the event, a title, and lines of text, as they are; `tell` makes them safe to send.

    `page` are the folders of the page about it, below [notify] pages.
    """

    event: NotifyEvent
    title: str
    lines: tuple[str, ...]
    page: tuple[str, ...]
    secrets: tuple[str, ...] = ()  # values that must not be in it


def of_run(manifest: RunManifest, report: Path | None, *, registry: Registry, error: str = "") -> Notice | None:
    """What an ended run tells; None where there is nothing: it passed without a new version, or somebody stopped it.

    `error` is what ended it from outside of its steps; it is `failed` then.
    """
    from runner.report.page import headline  # only where somebody is told

    event = "failed" if error else event_of(manifest)
    version, name = manifest.model_version, manifest.pipeline.name
    if event is None or (event == "pending" and version is not None and not _is_of(manifest.run, version, registry)):
        return None
    page: tuple[str, ...] = ("run", manifest.run)
    title = f"{name}: {'drift. ' * (event == 'drift')}{error or headline(manifest)}"
    if event == "pending" and version is not None:
        title, page = f"{name}: {version.label} waits for a decision", ("model", version.name, str(version.version))
    where = [f"report: {report.absolute()} on {platform.node()}"] if report is not None else []
    lines = [
        *([] if error else [headline(manifest)]),
        *_rules(manifest),
        *_metrics(manifest.metrics),
        f"run {manifest.run} by {manifest.started_by}" + (f": {manifest.note}" if manifest.note else ""),
        *where,
        _next_command(manifest, event),
    ]
    return Notice(event, title, tuple(lines), page, tuple(_secrets(manifest)))


def event_of(manifest: RunManifest) -> NotifyEvent | None:
    """`failed` where a step failed or the gate did not pass, which is `drift` where the run watched a target; `pending`
    where its version waits for a decision."""
    if manifest.status == "interrupted":
        return None
    if manifest.status == "failed":
        return "failed"
    if manifest.verdict is not None and manifest.verdict.outcome != "pass":
        return "drift" if watches(manifest.pipeline) else "failed"
    version = manifest.model_version
    return "pending" if version is not None and version.status == "pending" else None


def _is_of(run: str, version: ModelVersionRef, registry: Registry) -> bool:
    """Whether the run itself registered the version, which of an earlier run was told of then."""
    try:
        return registry.get(version.name, version.version).run == run
    except RunnerError:
        return True


def watches(pipeline: Pipeline) -> bool:
    """Whether the pipeline looks at what was deployed: one of its inputs is what a target captured."""
    inputs = (spec for step in pipeline.steps.values() for spec in step.inputs.values())
    return any(spec.from_.startswith(CAPTURED) for spec in inputs)


def of_decision(pipeline: Pipeline, version: ModelVersion, decision: str, *, who: str, why: str) -> Notice:
    """`decision` is what was decided: "approved", "approved for production", "rejected"."""
    return Notice(
        "decided",
        f"{pipeline.name}: {version.label} is {decision}",
        (
            f"{version.label} is {decision}, by {who}: {why}",
            *_metrics(version.metrics),
            f"run {version.run} by {version.created_by}",
        ),
        ("model", version.name, str(version.version)),
    )


def of_deployment(pipeline: Pipeline, deployed: Deployment) -> Notice:
    replaced = f", instead of {deployed.replaced}" if deployed.replaced not in ("", deployed.label) else ""
    if deployed.kind == "removed":
        sentence = f"{deployed.label} is not served at {deployed.target} any more"
    else:
        sentence = f"{deployed.target} serves {deployed.label}{replaced}"
    lines = (
        f"{deployed.kind} by {deployed.who}" + (f": {deployed.why}" if deployed.why else ""),
        *([f"at {deployed.place}"] if deployed.place and deployed.kind != "removed" else []),
    )
    return Notice("deployed", f"{pipeline.name}: {sentence}", lines, ("targets",))


def tell(spec: NotifySpec, notice: Notice | None, say: Say) -> None:
    """Send the notice where [notify] asks for it, with one attempt and for `LIMIT_S` at most.

    Raises nothing: `say` gets one sentence where somebody could not be told, which names no address.
    """
    if notice is None or spec.to is None or notice.event not in (spec.on or get_args(NotifyEvent)):
        return
    try:
        problem = _send(spec, notice, spec.to.removeprefix("env:"), os.environ)
    except Exception as error:  # what was told of is true whatever happens here
        problem = type(error).__name__
    if problem:
        say(f"Nobody may have been told that this is {notice.event}: {problem}")


def services(spec: NotifySpec) -> list[str]:
    """The name of the service of each address that [notify] to leads to; sends nothing.

    Raises UsageError where nobody could be told from here, with a sentence that names no address.
    """
    variable = (spec.to or "").removeprefix("env:")
    if problem := _missing(variable, os.environ):
        raise UsageError(problem)
    try:
        names = _services(_ask({"variable": variable}, os.environ))
    except subprocess.TimeoutExpired:
        raise UsageError("The process that reads the addresses took too long.") from None
    if problem := next((name for name in names if name in (UNKNOWN, NO_ADDRESS)), "" if names else NO_ADDRESS):
        raise UsageError(f"{variable} has {problem}.")
    return names


def _send(spec: NotifySpec, notice: Notice, variable: str, environment: Mapping[str, str]) -> str:
    """Why not everybody was told; "" where all were."""
    if problem := _missing(variable, environment):
        return problem
    addresses = environment[variable]
    redactor = Redactor([*notice.secrets, addresses.strip(), *addresses.split()])
    link = "/".join([(spec.pages or "").rstrip("/"), *(quote(part, safe="") for part in notice.page), ""])
    lines = [*(_inert(line, redactor) for line in notice.lines if line), *([link] if spec.pages else [])]
    order = {
        "variable": variable,
        "title": _inert(notice.title, redactor),
        "body": "\n".join(lines)[:LONGEST],
    }
    try:
        return _problem(_ask(order, environment))
    except subprocess.TimeoutExpired:
        return "the process that sends it took too long."


def _missing(variable: str, environment: Mapping[str, str]) -> str:
    """What is missing here before anything can be sent; "" for nothing."""
    from importlib.util import find_spec

    if not environment.get(variable, "").strip():
        return f"[notify] to names {variable}, which is not set."
    return "" if find_spec("apprise") else "[notify] needs the extra `notify`: pip install apprise."


def _ask(order: dict[str, str], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records that the sending process writes. Raises subprocess.TimeoutExpired."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-m", "runner.notify"],
        input=json.dumps(order).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a library's own words may quote an address
        env=dict(environment),
        timeout=START_S + LIMIT_S,
        check=False,
        start_new_session=True,  # Ctrl-C must not end it half-way
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _services(records: Iterable[dict[str, Any]]) -> list[str]:
    return [str(name) for record in records for name in record.get("services", [])]


def _problem(records: Sequence[dict[str, Any]]) -> str:
    """What the sending process wrote, as a sentence about those that were not reached."""
    names = _services(records)
    sent = {int(record["sent"]) for record in records if "sent" in record}
    missing = [name for number, name in enumerate(names) if number not in sent]
    if not names:
        return "the process that sends it has failed."
    return f"{', '.join(missing)} not reached by one attempt of {LIMIT_S:g} s." if missing else ""


def _inert(text: str, redactor: Redactor) -> str:
    clean, _ = redactor.text(text)
    line = message(clean)
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 1]}…"


def _rules(manifest: RunManifest) -> Iterator[str]:
    """The sentence of each rule that does not hold."""
    rules = manifest.verdict.rules if manifest.verdict is not None else []
    broken = [rule.sentence for rule in rules if rule.outcome not in ("pass", "not judged")]
    yield from broken[:MOST_RULES]
    if len(broken) > MOST_RULES:
        yield f"and {len(broken) - MOST_RULES} more rules"


def _metrics(metrics: Mapping[str, Metric]) -> Iterator[str]:
    from runner.report.files import number

    for name, metric in sorted(metrics.items())[:MOST_METRICS]:
        interval = ""
        if metric.low is not None and metric.high is not None:
            interval = f" ({number(metric.low)} to {number(metric.high)})"
        yield f"{name} = {number(metric.value)}{interval}"
    if len(metrics) > MOST_METRICS:
        yield f"and {len(metrics) - MOST_METRICS} more metrics"


def _next_command(manifest: RunManifest, event: NotifyEvent) -> str:
    version = manifest.model_version
    if event == "pending" and version is not None:
        return f'look: runner show {version.label}; then: runner approve {version.label} --reason "…", or runner reject'
    return f"look: runner show {manifest.run}"


def _secrets(manifest: RunManifest) -> Iterable[str]:
    """The values of the run's secret parameters, as far as they are known here."""
    for state in manifest.steps:
        for variable in state.job.secrets.values() if state.job is not None else ():
            yield os.environ.get(variable, "")
