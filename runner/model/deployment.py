"""Versions at targets: what has to hold before one is served, the events that say what was served when.

A target is reached through a `Deployer`, which knows by itself what it serves. The event of a change is written after
the change; where a process died in between, the next command that changes the target writes it, by the change's id.
Knows neither processes nor endpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from runner.content import folder_artifact, hold
from runner.errors import Refused, RunnerError, Tampered, UsageError
from runner.failpoint import reach
from runner.model.approval import check_files, may_decide, read_files, reasoned, same_person, starters
from runner.model.events import state
from runner.model.versions import Event, ModelVersion, Registry
from runner.paths import FileName
from runner.records import FORMAT, ApprovalSpec, FileFact, Record, Target

Change = Literal["deployed", "rolled back", "removed"]
CHANGES: tuple[Change, ...] = ("deployed", "rolled back", "removed")
SERVES = ("deployed", "rolled back")
LOCK = "lock"  # in a target's folder
# where a deployment can be made to die; see runner.failpoint
FAILPOINTS = ("deployment checked", "target ready", "target switched", "deployment recorded")


class Deployment(Record, frozen=True, kw_only=True):
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

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"


class Health(Record, frozen=True, kw_only=True):
    """How a target is at this moment."""

    status: Literal["serving", "changing", "unhealthy", "down"]
    said: str = ""
    process: int | None = None


class Deployer(Protocol):
    """One target. All raise RunnerError; a change that raises leaves what was served before as it was."""

    def changing(self, who: str) -> AbstractContextManager[None]:
        """Nobody else changes the target inside. Raises Refused where somebody does."""

    def finish(self) -> None:
        """Complete or take back what somebody died in. Inside `changing`; raises Refused where somebody is at work."""

    def last(self) -> Deployment | None:
        """The last change that was completed, None where nothing was ever served; asks the target."""

    def deploy(self, change: Deployment, version: ModelVersion) -> Deployment:
        """Bring the version up beside the one that serves, send it its sample record, then switch; with time and place."""

    def remove(self, change: Deployment) -> Deployment:
        """End what is served."""

    def restart(self) -> Deployment:
        """Serve again what was served when the target went down. Raises UsageError where that is not ours to do."""

    def health(self) -> Health:
        """Asks the model that is served for a sign of life."""

    def plan(self, version: ModelVersion) -> Sequence[str]:
        """What `deploy` would do, in sentences; changes nothing."""


def deploy(
    registry: Registry,
    deployer: Deployer,
    name: str,
    version: int,
    *,
    target: str,
    targets: Mapping[str, Target],
    who: str,
    why: str = "",
) -> Deployment:
    """Serve an approved version at the target.

    Raises Refused where it may not be served there, Tampered where its bytes are not those of its run, RunnerError
    where it does not answer as recorded: what was served before goes on then.
    """
    with deployer.changing(who):
        settle(registry, deployer)
        found = deployable(registry, name, version, target=target, targets=targets)
        reach("deployment checked")
        return _serve(registry, deployer, "deployed", found, target=target, who=who, why=why)


def rollback(registry: Registry, deployer: Deployer, *, target: str, who: str, why: str = "") -> Deployment:
    """Serve what was served at the target before. Raises Refused where there is nothing to go back to."""
    with deployer.changing(who):
        settle(registry, deployer)
        found = before(registry, target)
        reach("deployment checked")
        return _serve(registry, deployer, "rolled back", found, target=target, who=who, why=why)


def remove(registry: Registry, deployer: Deployer, *, target: str, who: str, why: str = "") -> Deployment:
    """Serve nothing at the target any more. Raises Refused where nothing is."""
    with deployer.changing(who):
        last = settle(registry, deployer)
        if last is None or last.kind == "removed":
            raise Refused(f"Nothing is served at {target}.")
        made = deployer.remove(_change("removed", target, last.name, last.version, last.sha256, who=who, why=why))
        reach("target switched")
        written(registry, made)
    return made


def restart(registry: Registry, deployer: Deployer, *, target: str, who: str) -> Deployment:
    """Serve again what was served when the target went down; no deployment of its own."""
    with deployer.changing(who):
        last = settle(registry, deployer)
        if last is None or last.kind == "removed":
            raise Refused(f"Nothing was served at {target}.")
        approved(registry.get(last.name, last.version))
        return deployer.restart()


def settle(registry: Registry, deployer: Deployer) -> Deployment | None:
    """The target's last change, whose event is written now if whoever made it died before. Call inside `changing`."""
    deployer.finish()
    last = deployer.last()
    if last is not None:
        written(registry, last)
    return last


def catch_up(registry: Registry, deployer: Deployer, who: str) -> None:
    """As `settle`, where nobody changes the target just now."""
    last = deployer.last()
    if last is not None and not _is_written(registry, last.name, last.id):
        with contextlib.suppress(Refused), deployer.changing(who):
            settle(registry, deployer)


def deployable(
    registry: Registry, name: str, version: int, *, target: str, targets: Mapping[str, Target]
) -> ModelVersion:
    """The version, if it may be served at the target. Raises Refused with what is missing and how to get it."""
    found, spec = registry.get(name, version), targets[target]
    label = f"{name}/{version}"
    approved(found)
    events = registry.events(name)
    if spec.requires is not None and not _served(events, version, spec.requires):
        raise Refused(
            f"{label} never served at {spec.requires}, which {target} requires. "
            f"First: runner deploy {label} --to {spec.requires}"
        )
    if spec.second_approval and second_approval(events, version, target) is None:
        _, decision = state(events, version)
        raise Refused(
            f"{label} needs a second approval for {target}, by somebody else than {decision.who if decision else '–'}: "
            f'runner approve {label} --to {target} --reason "…"'
        )
    return found


@contextlib.contextmanager
def locked(folder: Path, target: str, who: str) -> Iterator[None]:
    """Nobody else on this machine changes the target inside; the kernel frees it for one who died. Raises Refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as lock:
        try:
            hold(lock, fcntl.LOCK_EX)
        except BlockingIOError:
            lock.seek(0)
            raise Refused(f"{target} is being changed just now, by {lock.read() or 'another process'}.") from None
        lock.truncate(0)
        lock.write(f"{who} (process {os.getpid()})")
        lock.flush()
        yield
        lock.truncate(0)


def approved(version: ModelVersion) -> None:
    """Raises Refused unless it is."""
    if version.status != "approved":
        raise Refused(
            f"{version.name}/{version.version} is {version.status}; only an approved version is served. "
            f"See `runner models {version.name}`."
        )


def check_bytes(version: ModelVersion, folder: Path) -> dict[str, bytes]:
    """The folder's files, if they are the registered ones. Raises Tampered, or Refused for a pickle."""
    label = f"{version.name}/{version.version}"
    try:
        files = read_files(folder)
    except (RunnerError, OSError) as error:
        raise Tampered(f"The model folder of {label} cannot be read: {error}") from error
    facts = {
        name: FileFact(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for name, data in files.items()
    }
    if folder_artifact("", facts).sha256 != version.sha256:
        raise Tampered(f"{label} was altered: its bytes do not have the registered hash {version.sha256[:12]}.")
    check_files(files, folder)
    return files


def approve_for(
    registry: Registry,
    name: str,
    version: int,
    *,
    target: str,
    targets: Mapping[str, Target],
    who: str,
    why: str,
    rules: ApprovalSpec,
    identity: str = "",
) -> Event:
    """The second approval, of an approved version for one target. Raises Refused where the same person gave the first."""
    reasoned(why)
    label = f"{name}/{version}"
    if not targets[target].second_approval:
        raise UsageError(f"{target} needs no second approval; `runner approve {label}` without --to is enough.")
    may_decide(rules, label, who, identity)
    found = registry.get(name, version)
    approved(found)
    events = registry.events(name)
    if rules.not_starter and any(same_person(*one, who, identity) for one in starters(found)):
        raise Refused(f"{who} started the run of {label} and may not approve it ([approval] not_starter).")
    _, first = state(events, version)
    giver = first.who.removeprefix("external (").removesuffix(")") if first is not None else "external"
    if giver == "external":
        raise Refused(f"It is not known who approved {label} in SageMaker. Reject it there, and approve it here.")
    if first is not None and same_person(giver, str(first.data.get("identity", "")), who, identity):
        raise Refused(f"{first.who} approved {label}; for {target} somebody else has to as well.")
    given = second_approval(events, version, target)
    if given is not None:
        raise Refused(f"{label} is approved for {target} already, by {given.who} at {given.at} ({given.why}).")
    data = {"target": target, **({"identity": identity} if identity else {})}
    return registry.record(name, version, f"approved for {target}", who=who, why=why, data=data)


def second_approval(events: Sequence[Event], version: int, target: str) -> Event | None:
    """Given since the version was last approved."""
    own = [event for event in events if event.version == version]
    _, first = state(own, version)
    later = [event for event in own if first is None or event.seq > first.seq]
    return next((event for event in later if event.kind == f"approved for {target}"), None)


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
    events, found = registry.events(name), {}
    for target in sorted({event.data["target"] for event in events if event.kind in SERVES}):
        last = [event for event in events if event.kind in CHANGES and event.data["target"] == target][-1]
        if last.kind in SERVES and last.version == version:
            try:
                before(registry, target)
                found[target] = f"runner rollback {target}"
            except Refused:  # there is nothing to go back to
                found[target] = f"runner undeploy {target}"
    return found


def at_target(registry: Registry, target: str, kinds: Sequence[str] = CHANGES) -> list[Event]:
    """What happened at the target, of all names, oldest first."""
    names = sorted({version.name for version in registry.list()})
    found = [event for name in names for event in registry.events(name)]
    return sorted(
        (event for event in found if event.kind in kinds and event.data.get("target") == target),
        key=lambda event: (since(event), event.kind != "removed", event.seq),
    )


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


def sample_body(signature: Mapping[str, Any]) -> bytes:
    """The request whose answer the model folder has on record, as JSON."""
    return json.dumps([signature["sample_request"]]).encode()


def check_answer(signature: Mapping[str, Any], answer: bytes, where: str) -> None:
    """Raises Refused where the answer to `sample_body`, as text/csv, is not the recorded prediction."""
    expected = signature["sample_prediction"]
    wanted = expected if isinstance(expected, list) else [expected]
    try:
        found = [float(field) for field in answer.decode().strip().split(",")]
    except ValueError:
        found = []
    if len(found) != len(wanted) or not all(
        math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6) for one, other in zip(found, wanted, strict=True)
    ):
        raise Refused(f"{where} answers {answer[:80]!r} to its sample record; {expected} is recorded.")


def _serve(
    registry: Registry, deployer: Deployer, kind: Change, found: ModelVersion, *, target: str, who: str, why: str
) -> Deployment:
    last = deployer.last()
    replaced = last.label if last is not None and last.kind != "removed" else ""
    change = _change(kind, target, found.name, found.version, found.sha256, who=who, why=why, replaced=replaced)
    made = deployer.deploy(change, found)
    reach("target switched")
    written(registry, made)
    reach("deployment recorded")
    return made


def _change(
    kind: Change, target: str, name: str, version: int, sha256: str, *, who: str, why: str, replaced: str = ""
) -> Deployment:
    return Deployment(
        id=secrets.token_hex(8), target=target, kind=kind, name=name, version=version, sha256=sha256, who=who, why=why,
        replaced=replaced,
    )  # fmt: skip


def written(registry: Registry, made: Deployment) -> None:
    """Write the events of the change that are not there: its own, and the end of what another model served there."""
    data = {"target": made.target, "deployment": made.id, "since": made.at, "place": made.place}
    other, _, number = made.replaced.rpartition("/")
    if other and other != made.name and not _is_written(registry, other, made.id):
        why, more = f"replaced by {made.label}", {"replaced_by": made.label}
        registry.record(other, int(number), "removed", who=made.who, why=why, data={**data, **more})
    if not _is_written(registry, made.name, made.id):
        data |= {"replaced": made.replaced} if made.replaced else {}
        registry.record(made.name, made.version, made.kind, who=made.who, why=made.why, data=data)


def _is_written(registry: Registry, name: str, change: str) -> bool:
    return any(e.data.get("deployment") == change and e.kind in CHANGES for e in registry.events(name))


def _served(events: Iterable[Event], version: int, target: str) -> bool:
    return any(e.version == version and e.kind in SERVES and e.data.get("target") == target for e in events)
