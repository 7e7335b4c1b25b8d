"""Versions at targets: what has to hold before one is served, the events that say what was served when.

A target is reached through a `Deployer`, which knows by itself what it serves. The event of a change is written after
the change; where a process died in between, the next command that changes the target writes it, by the change's id.
Knows neither processes nor endpoints.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from runner.content import hold
from runner.errors import Refused, UsageError
from runner.failpoint import reach
from runner.model.approval import may_decide, reasoned, same_person, starters
from runner.model.compatibility import Callers, Comparison, compare
from runner.model.events import state
from runner.model.served import SERVES, Change, Deployment, before, is_written, written
from runner.model.signature import Signature
from runner.model.versions import Event, ModelVersion, Registry
from runner.records import AnyTarget, ApprovalSpec, Record, Target

LOCK = "lock"  # in a target's folder
# where a deployment can be made to die; see runner.failpoint
FAILPOINTS = ("deployment checked", "target ready", "target switched", "deployment recorded")


class Health(Record, frozen=True, kw_only=True):
    """How a target is at this moment."""

    status: Literal["serving", "changing", "unhealthy", "down"]
    said: str = ""
    process: int | None = None


class Deployer(Protocol):
    """One target. All raise RunnerError; a change that raises leaves what was served before as it was."""

    @property
    def spec(self) -> AnyTarget: ...

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

    def restart(self, last: Deployment, version: ModelVersion) -> Deployment:
        """Serve again what was served when the target went down. Raises UsageError where that is not ours to do."""

    def health(self) -> Health:
        """Asks the model that is served for a sign of life."""

    def signature(self, version: ModelVersion) -> Signature:
        """What the version's callers send. Raises RunnerError where it cannot be read."""

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
    allow_schema_change: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Serve an approved version at the target; `say` is told what callers may notice.

    Raises Refused where it may not be served there, or refuses what the served one answers, Tampered where its bytes
    are not those of its run, RunnerError where it does not answer as recorded: what was served before goes on then.
    """
    with deployer.changing(who):
        settle(registry, deployer)
        found = deployable(registry, name, version, target=target, targets=targets)
        lost = comparison(registry, deployer, found).permitted(allow=allow_schema_change, say=say)
        reach("deployment checked")
        return _serve(registry, deployer, "deployed", found, target=target, who=who, why=why, lost=lost)


def rollback(
    registry: Registry,
    deployer: Deployer,
    *,
    target: str,
    who: str,
    why: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Serve what was served at the target before; `say` is told what callers may notice, and nothing of it is refused.

    Raises Refused where there is nothing to go back to.
    """
    with deployer.changing(who):
        settle(registry, deployer)
        found = before(registry, target)
        lost = comparison(registry, deployer, found).permitted(allow=True, say=say)
        reach("deployment checked")
        return _serve(registry, deployer, "rolled back", found, target=target, who=who, why=why, lost=lost)


def comparison(registry: Registry, deployer: Deployer, found: ModelVersion) -> Comparison:
    """The version beside the one that serves at the target now."""
    last = deployer.last()
    if last is None or last.kind == "removed":
        return compare(found, [], deployer.signature)
    served = registry.get(last.name, last.version)
    return compare(found, [Callers(served, f"serves at {last.target}", deployer.spec.unknown)], deployer.signature)


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
        found = registry.get(last.name, last.version)
        approved(found)
        return deployer.restart(last, found)


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
    if last is not None and not is_written(registry, last.name, last.id):
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "ab+", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise Refused(f"{folder} cannot be written: {error.strerror}. Nothing was changed at {target}.") from error
    with lock:
        try:
            hold(lock, fcntl.LOCK_EX)
        except BlockingIOError:
            lock.seek(0)
            name = lock.read().decode(errors="replace") or "another process"
            raise Refused(f"{target} is being changed just now, by {name}.") from None
        with contextlib.suppress(OSError):  # a full disk has no room for who it is
            lock.truncate(0)
            lock.write(f"{who} (process {os.getpid()})".encode())
        yield
        lock.truncate(0)


def approved(version: ModelVersion) -> None:
    """Raises Refused unless it is."""
    if version.status != "approved":
        raise Refused(
            f"{version.label} is {version.status}; only an approved version is served. "
            f"See `runner models {version.name}`."
        )


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
    schema_change: Callable[[ModelVersion], dict[str, list[str]]] = lambda _: {},
) -> Event:
    """The second approval, of an approved version for one target. Raises Refused where the same person gave the first;
    `schema_change` is as in `runner.model.approval.approve`."""
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
    lost = schema_change(found)
    data = {
        "target": target,
        **({"identity": identity} if identity else {}),
        **({"schema_change": lost} if lost else {}),
    }
    return registry.record(name, version, f"approved for {target}", who=who, why=why, data=data)


def second_approval(events: Sequence[Event], version: int, target: str) -> Event | None:
    """Given since the version was last approved."""
    own = [event for event in events if event.version == version]
    _, first = state(own, version)
    later = [event for event in own if first is None or event.seq > first.seq]
    return next((event for event in later if event.kind == f"approved for {target}"), None)


def _serve(
    registry: Registry,
    deployer: Deployer,
    kind: Change,
    found: ModelVersion,
    *,
    target: str,
    who: str,
    why: str,
    lost: dict[str, list[str]],
) -> Deployment:
    last = deployer.last()
    replaced = last.label if last is not None and last.kind != "removed" else ""
    change = _change(kind, target, found.name, found.version, found.sha256, who=who, why=why, replaced=replaced)
    change = msgspec.structs.replace(change, schema_change=lost)
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


def _served(events: Iterable[Event], version: int, target: str) -> bool:
    return any(e.version == version and e.kind in SERVES and e.data.get("target") == target for e in events)
