"""The pages of models and targets: versions with what decides on them, and what serves where."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner import decisions, escape
from runner.audit import compare
from runner.errors import Refused, RunnerError
from runner.manifest import RunManifest
from runner.model.deployment import deployable
from runner.model.events import claim, second_approval, verify_chain
from runner.model.served import before, recorded, serves
from runner.model.versions import Event, ModelVersion
from runner.records import Metric
from runner.report import clean, markup, page
from runner.run.monitored import last_look
from runner.ui.view import View

BY_WORDS = {
    "account": "by the account of a command",
    "address": "by the account of these pages' server",
    "jupyter": "by the account of Jupyter",
    "password": "by a password",
}


@dataclass(frozen=True)
class MetricRow:
    """A metric of a version beside the champion's; `word` says what can be said of the difference, `tone` how."""

    name: str
    in_gate: bool
    champion: Metric | None
    version: Metric | None
    difference: float | None
    word: str
    tone: str


def models(view: View) -> str:
    """All versions, by model, the newest first."""
    registry = view.project.registry
    versions = registry.list()
    judged = dict.fromkeys(rule.metric for rule in view.project.spec.gate)
    groups = []
    for name in dict.fromkeys(version.name for version in versions):
        own = [version for version in versions if version.name == name]
        at = serves(registry.events(name))
        champion = max((version.version for version in own if version.status == "approved"), default=0)
        groups.append(
            {
                "name": name,
                "versions": own[::-1],
                "champion": champion,
                "pending": sum(version.status == "pending" for version in own),
                "metrics": [metric for metric in judged if any(metric in version.metrics for version in own)],
                "served": {number: [t for t, served in at.items() if served == number] for number in at.values()},
            }
        )
    return view.render("models.html.j2", groups=groups, claim=claim)


def version(view: View, name: str, number: int) -> str:
    """One version: its card, what speaks for and against it, where it comes from, what happened, and the decision."""
    project, registry = view.project, view.project.registry
    chosen = registry.get(name, number)
    events = registry.events(name)
    broken = verify_chain(events)
    manifest = _manifest(view, chosen.run)
    champion = _champion(view, chosen, manifest)
    champion_manifest = _manifest(view, champion.run) if champion is not None else None
    asked = view.form_token is not None and view.person is not None
    return view.render(
        "version.html.j2",
        version=chosen,
        claim=claim(chosen),
        manifest=manifest,
        headline=page.headline(manifest) if manifest is not None else "",
        rules=manifest.verdict.rules if manifest is not None and manifest.verdict is not None else [],
        marks=page.MARKS,
        card=_card(chosen.card),
        champion=champion,
        rows=metric_rows(chosen, champion, manifest, champion_manifest),
        events=[event for event in events if event.version == number],
        event_words=event_words,
        known_by=known_by,
        broken=broken,
        served=[target for target, served in serves(events).items() if served == number],
        forbidden_because=_forbidden(view, chosen) if asked else {},
        second=[
            (target, second_approval(events, number, target))
            for target, spec in project.spec.targets.items()
            if spec.second_approval
        ],
    )


def card(view: View, name: str, number: int) -> str:
    """The version's model card alone."""
    chosen = view.project.registry.get(name, number)
    return view.render("card.html.j2", version=chosen, card=_card(chosen.card or "This version has no card."))


def _manifest(view: View, run: str) -> RunManifest | None:
    with contextlib.suppress(RunnerError):
        (manifest,) = view.project.as_of_now([view.project.store.manifest(run)])
        return manifest
    return None


def _champion(view: View, chosen: ModelVersion, manifest: RunManifest | None) -> ModelVersion | None:
    """What the version is compared with: the approved one now, or for that itself the one when its run started."""
    now = view.project.registry.approved(chosen.name)
    if now is not None and now.version != chosen.version:
        return now
    pinned = manifest.champion if manifest is not None else None
    if pinned is None or (pinned.name, pinned.version) == (chosen.name, chosen.version):
        return None
    with contextlib.suppress(RunnerError):
        return view.project.registry.get(pinned.name, pinned.version)
    return None


def metric_rows(
    chosen: ModelVersion, champion: ModelVersion | None, manifest: RunManifest | None, other: RunManifest | None
) -> list[MetricRow]:
    """The version's metrics, judged ones first, beside the champion's where both can be compared."""
    judged = [rule.metric for rule in manifest.pipeline.gate] if manifest is not None else []
    rows = []
    for name in sorted(chosen.metrics, key=lambda name: (name not in judged, name)):
        now = chosen.metrics[name]
        then = champion.metrics.get(name) if champion is not None else None
        word, tone, difference = "", "", None
        if then is not None:
            why = compare.not_comparable(name, other, manifest) if manifest is not None and other is not None else ""
            difference = now.value - then.value
            word, tone = difference_words(then, now, why)
        rows.append(MetricRow(name, name in judged, then, now, difference, word, tone))
    return rows


def difference_words(then: Metric, now: Metric, not_comparable: str) -> tuple[str, str]:
    """What can be said of a difference; nothing is better or worse whose intervals overlap."""
    if not_comparable:
        return f"not comparable: {not_comparable}", "unsure"
    direction = compare.direction(then, now)
    if direction not in ("better", "worse"):
        return ("same" if direction == "same" else ""), ""
    if compare.overlap(then, now):
        return "intervals overlap", ""
    return direction, "good" if direction == "better" else "bad"


def _card(text: str) -> str:
    """The model card as HTML that may stand in a page; "" where there is none."""
    try:
        return markup.markdown(escape.visible(text)) if text.strip() else ""
    except clean.TooMuch:
        return f'<pre class="result">{escape.html(text[: clean.MOST_CHARACTERS])}</pre>'


def _forbidden(view: View, chosen: ModelVersion) -> dict[str, str]:
    """Why this person may not do it, by what it is: "approve", "reject", or the target of a second approval."""
    assert view.person is not None
    project = view.project
    reasons = {
        "approve": decisions.why_not(project, chosen, view.person) if chosen.status == "pending" else "",
        "reject": decisions.why_not_reject(project, chosen, view.person),
    }
    for target, spec in project.spec.targets.items():
        if spec.second_approval and chosen.status == "approved":
            reasons[f"for {target}"] = decisions.why_not(project, chosen, view.person, target=target)
    return reasons


def event_words(event: Event) -> str:
    target = event.data.get("target")
    text = event.kind if target is None or target in event.kind else f"{event.kind} ({target})"
    return f"{text}, schema change" if event.data.get("schema_change") else text


def known_by(event: Event) -> str:
    """How the person was known, in words; "" for events from before that was noted."""
    how = str(event.data.get("known_by", ""))
    return BY_WORDS.get(how, f"by the proxy's {how}" if how.startswith("header ") else how)


def targets(view: View) -> str:
    """What serves where, and what can be done about it."""
    rows = [_target(view, name) for name in view.project.spec.targets]
    return view.render("targets.html.j2", rows=rows, marks=page.MARKS)


def _target(view: View, name: str) -> dict[str, Any]:
    spec = view.project.spec.targets[name]
    row: dict[str, Any] = {
        "name": name,
        "kind": spec.kind,
        "requires": spec.requires,
        "second": spec.second_approval,
        "captures": spec.capture is not None,
        "look": last_look(view.project.store, name),
    }
    try:
        state = _as_recorded(view, name) if view.static else decisions.target_state(view.project, name)
    except (RunnerError, OSError) as error:
        return {**row, "problem": str(error), "deployment": None, "health": None, "back": None, "choices": []}
    back = None
    with contextlib.suppress(RunnerError):
        back = before(view.project.registry, name)
    choices = _choices(view, name, state.deployment.label if state.deployment else "") if view.form_token else []
    return {
        **row,
        "problem": "",
        "deployment": state.deployment,
        "health": state.health,
        "back": back,
        "choices": choices,
    }


def _as_recorded(view: View, target: str) -> decisions.TargetState:
    """By the history alone: whether it answers now, a page that is kept cannot say."""
    deployed = recorded(view.project.registry, target)
    deployed = None if deployed is not None and deployed.kind == "removed" else deployed
    return decisions.TargetState(target, view.project.spec.targets[target].kind, deployed, None)


def _choices(view: View, target: str, now: str) -> Sequence[tuple[ModelVersion, str]]:
    """The approved versions with why each may not be deployed there, the newest first; not the one that serves."""
    registry, deployer = view.project.registry, view.project.deployer(target)
    choices = []
    for candidate in registry.list()[::-1]:
        if candidate.status == "approved" and candidate.label != now:
            try:
                deployable(registry, deployer, candidate.name, candidate.version)
                choices.append((candidate, ""))
            except RunnerError as error:
                choices.append((candidate, str(error)))
    return choices[:20]


def confirmation(view: View, target: str, action: str, label: str) -> str:
    """The page that names version and target before anything is done. Raises Refused where it cannot be done."""
    project = view.project
    deployer, registry = project.deployer(target), project.registry
    steps: Sequence[str] = ()
    now = decisions.target_state(project, target).deployment
    if action == "deploy":
        name, _, number = label.rpartition("/")
        candidate = deployable(registry, deployer, name, int(number) if number.isdecimal() else 0)
        steps = deployer.plan(candidate)
    elif action == "rollback":
        label = before(registry, target).label
    elif now is None:
        raise Refused(f"Nothing is served at {target}.")
    else:
        label = now.label
    return view.render("confirm.html.j2", target=target, action=action, label=label, now=now, steps=steps)
