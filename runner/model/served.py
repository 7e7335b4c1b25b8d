"""What was served at targets, as the history has it: the events of changes, and what they add up to.

Each change at a target has a number there, by which the events of several models are put in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from runner.errors import Refused, RemoteError, RunnerError
from runner.model.versions import Change, Event, ModelVersion, Registry
from runner.paths import FileName
from runner.records import FORMAT, Record

CHANGES: tuple[Change, ...] = get_args(Change)
SERVES = ("deployed", "rolled back")


class Deployment(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What was last done at a target. After `removed` nothing is served there."""

    format: int = FORMAT
    id: str
    target: FileName
    kind: Change
    name: FileName
    version: int
    sha256: str
    who: str
    why: str = ""
    at: str = ""  # UTC: since when
    place: str = ""  # http://… or an endpoint's ARN
    replaced: str = ""  # NAME/VERSION that was served before
    schema_change: dict[str, list[str]] = {}  # by what was served, what it answers and this does not; allowed

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"


def before(registry: Registry, target: str) -> ModelVersion:
    """The version to roll back to: the one before the one that serves, and is approved still."""
    served: list[tuple[str, int]] = []
    for event in at_target(registry, target):
        match event.kind:
            case "deployed":
                served.append((event.name, event.version))
            case "rolled back":
                back = (event.name, event.version)
                while len(served) > 1 and served[-1] != back:
                    served.pop()
            case "removed" if "replaced_by" not in event.data:
                served.clear()
    if not served:
        raise Refused(f"Nothing is served at {target}: runner deploy NAME/VERSION --to {target}")
    now = served[-1]
    for name, version in reversed(served[:-1]):
        earlier = registry.get(name, version)
        if (name, version) != now and earlier.status == "approved":
            return earlier
    raise Refused(
        f"Since {target} last served nothing, none that is approved still was served before {now[0]}/{now[1]}. "
        f"Choose one: runner deploy NAME/VERSION --to {target}"
    )


def still_served(registry: Registry, name: str, version: int) -> dict[str, str]:
    """Per target that serves the version, by the history: the command that ends that."""
    serving = serves(registry.events(name))
    return {target: command_to_end(registry, target) for target, served in sorted(serving.items()) if served == version}


def serves(events: Iterable[Event]) -> dict[str, int]:
    """Per target the version that is served there, by the events of its name."""
    serving: dict[str, int] = {}
    for event in events:
        if event.kind in SERVES:
            serving[event.data["target"]] = event.version
        elif event.kind == "removed":
            serving.pop(event.data["target"], None)
    return serving


def command_to_end(registry: Registry, target: str) -> str:
    """The command by which the target ends to serve what it serves."""
    try:
        before(registry, target)
    except Refused:  # there is nothing to go back to
        return f"runner undeploy {target}"
    return f"runner rollback {target}"


def recorded(registry: Registry, target: str) -> Deployment | None:
    """The last change at the target by the history."""
    events = at_target(registry, target)
    return of_event(registry, events[-1]) if events else None


def of_event(registry: Registry, event: Event) -> Deployment:
    """The change that the event is of."""
    data = event.data
    return Deployment(
        id=str(data.get("deployment", "")), target=str(data["target"]), kind=data.get("kind", event.kind),
        name=event.name, version=event.version, sha256=registry.get(event.name, event.version).sha256, who=event.who,
        why=event.why, at=since(event), place=str(data.get("place", "")), replaced=str(data.get("replaced", "")),
        schema_change=data.get("schema_change", {}),
    )  # fmt: skip


def at_target(registry: Registry, target: str, kinds: Sequence[str] = CHANGES) -> list[Event]:
    """What happened at the target, of all names, oldest first."""
    ordered = []
    for name in sorted({version.name for version in registry.list()}):
        moment = ""
        for event in registry.events(name):
            moment = max(moment, since(event))  # a clock may be set back
            if event.kind in kinds and event.data.get("target") == target:
                # the number of the change at the target; before there were numbers, the time
                ordered.append((event.data.get("number", 0), moment, event.kind != "removed", event.seq, event))
    return [event for *_, event in sorted(ordered, key=lambda entry: entry[:-1])]


def served_at(events: Iterable[Event], target: str, moment: str) -> Event | None:
    """The event by which a version of this name was served at the target at that moment (UTC), None where none was."""
    serving = None
    for event in events:
        if event.data.get("target") == target and event.kind in CHANGES and since(event) <= moment:
            serving = event if event.kind in SERVES else None
    return serving


def since(event: Event) -> str:
    """When the change was made, which its event was written after."""
    return str(event.data.get("since", event.at))


def write_events(registry: Registry, change: Deployment, *, known_by: str = "") -> None:
    """Write the events of the change that are not there: its own, and the end of what another model served there.

    `known_by` says how its person was known. The change has no such field, as a target's process may be of an older
    release and would not read it; so an event that is written after its command died does not say it.

    Raises as the registry does, with a message that says what was changed nevertheless.
    """
    if is_written(registry, change.name, change.id):
        return
    data: dict[str, Any] = {
        "target": change.target, "deployment": change.id, "since": change.at, "place": change.place,
        **({"known_by": known_by} if known_by else {}),
    }  # fmt: skip
    other, _, other_version = change.replaced.rpartition("/")
    try:
        number = 1 + max((event.data.get("number", 0) for event in at_target(registry, change.target)), default=0)
        if other and other != change.name and not is_written(registry, other, change.id):
            why, end = f"replaced by {change.label}", {**data, "replaced_by": change.label, "number": number}
            registry.record(other, int(other_version), "removed", who=change.who, why=why, data=end)
            number += 1
        optional = {"replaced": change.replaced, "schema_change": change.schema_change}
        data |= {"number": number, **{key: value for key, value in optional.items() if value}}
        registry.record(change.name, change.version, change.kind, who=change.who, why=change.why, data=data)
    except (RunnerError, OSError) as error:
        with contextlib.suppress(RunnerError):
            if is_written(registry, change.name, change.id):  # and only its copy is not, which the next change writes
                return
        now = f"is not served at {change.target} any more" if change.kind == "removed" else f"serves at {change.target}"
        raise (RemoteError if isinstance(error, RemoteError) else Refused)(
            f"{change.label} {now}, and the history does not say so yet: {error} "
            f"Once that is mended, `runner deployments {change.target}` writes it down."
        ) from error


def is_written(registry: Registry, name: str, change: str) -> bool:
    return any(e.data.get("deployment") == change and e.kind in CHANGES for e in registry.events(name))
