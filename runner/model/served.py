"""What was served at targets, as the history has it: the events of changes, and what they add up to.

Each change at a target has a number there, by which the events of several models are put in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from runner.errors import Refused, RemoteError, RunnerError
from runner.model.versions import Event, ModelVersion, Registry
from runner.paths import FileName
from runner.records import FORMAT, Record

Change = Literal["deployed", "rolled back", "removed"]
CHANGES: tuple[Change, ...] = ("deployed", "rolled back", "removed")
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
        found = registry.get(name, version)
        if (name, version) != now and found.status == "approved":
            return found
    raise Refused(
        f"Since {target} last served nothing, none that is approved still was served before {now[0]}/{now[1]}. "
        f"Choose one: runner deploy NAME/VERSION --to {target}"
    )


def still_served(registry: Registry, name: str, version: int) -> dict[str, str]:
    """Per target that serves the version, by the history: the command that ends that."""
    serving = serves(registry.events(name))
    return {target: way_out(registry, target) for target, served in sorted(serving.items()) if served == version}


def serves(events: Iterable[Event]) -> dict[str, int]:
    """Per target the version that is served there, by the events of its name."""
    found: dict[str, int] = {}
    for event in events:
        if event.kind in SERVES:
            found[event.data["target"]] = event.version
        elif event.kind == "removed":
            found.pop(event.data["target"], None)
    return found


def way_out(registry: Registry, target: str) -> str:
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
    found = []
    for name in sorted({version.name for version in registry.list()}):
        moment = ""
        for event in registry.events(name):
            moment = max(moment, since(event))  # a clock may be set back
            if event.kind in kinds and event.data.get("target") == target:
                # the number of the change at the target; before there were numbers, the time
                found.append((event.data.get("number", 0), moment, event.kind != "removed", event.seq, event))
    return [event for *_, event in sorted(found, key=lambda one: one[:-1])]


def served_at(events: Iterable[Event], target: str, moment: str) -> Event | None:
    """The event by which a version of this name was served at the target at that moment (UTC), None where none was."""
    found = None
    for event in events:
        if event.data.get("target") == target and event.kind in CHANGES and since(event) <= moment:
            found = event if event.kind in SERVES else None
    return found


def since(event: Event) -> str:
    """When the change was made, which its event was written after."""
    return str(event.data.get("since", event.at))


def written(registry: Registry, made: Deployment) -> None:
    """Write the events of the change that are not there: its own, and the end of what another model served there.

    Raises as the registry does, in words that say what was changed all the same.
    """
    if is_written(registry, made.name, made.id):
        return
    data: dict[str, Any] = {"target": made.target, "deployment": made.id, "since": made.at, "place": made.place}
    other, _, number = made.replaced.rpartition("/")
    try:
        next_ = 1 + max((event.data.get("number", 0) for event in at_target(registry, made.target)), default=0)
        if other and other != made.name and not is_written(registry, other, made.id):
            ended = {**data, "replaced_by": made.label, "number": next_}
            registry.record(other, int(number), "removed", who=made.who, why=f"replaced by {made.label}", data=ended)
            next_ += 1
        data |= {"number": next_} | {
            key: value for key in ("replaced", "schema_change") if (value := getattr(made, key))
        }
        registry.record(made.name, made.version, made.kind, who=made.who, why=made.why, data=data)
    except (RunnerError, OSError) as error:
        with contextlib.suppress(RunnerError):
            if is_written(registry, made.name, made.id):  # and only its copy is not, which the next change writes
                return
        said = f"{made.label} {'is not served' if made.kind == 'removed' else 'serves'} at {made.target}"
        raise (RemoteError if isinstance(error, RemoteError) else Refused)(
            f"{said}{'' if made.kind != 'removed' else ' any more'}, and the history does not say so yet: {error} "
            f"Once that is mended, `runner deployments {made.target}` writes it down."
        ) from error


def is_written(registry: Registry, name: str, change: str) -> bool:
    return any(e.data.get("deployment") == change and e.kind in CHANGES for e in registry.events(name))
