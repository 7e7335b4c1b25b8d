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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from runner.content import hold
from runner.errors import Refused
from runner.failpoint import reach
from runner.model.compatibility import Callers, SchemaComparison, compare
from runner.model.events import second_approval, state
from runner.model.registry_rules import Person, check_approved
from runner.model.served import SERVES, Deployment, before, is_written, write_events
from runner.model.signature import Signature
from runner.model.versions import Change, Event, ModelVersion, Registry
from runner.records import AnyTarget, Record

LOCK = "lock"  # in a target's folder
# where a deployment can be made to die; see runner.failpoint
FAILPOINTS = ("deployment checked", "target ready", "target switched", "deployment recorded")


class Health(Record, frozen=True, kw_only=True):
    """How a target is at this moment."""

    status: Literal["serving", "changing", "unhealthy", "down"]
    detail: str = ""
    process: int | None = None


class Deployer(Protocol):
    """One target. All raise RunnerError; a change that raises leaves what was served before as it was."""

    name: str

    @property
    def spec(self) -> AnyTarget: ...

    def changing(self, who: str) -> AbstractContextManager[None]:
        """Nobody else changes the target inside. Raises Refused where somebody does."""

    def finish(self) -> None:
        """Complete or take back what somebody died in. Inside `changing`; raises Refused where somebody is at work."""

    def last(self) -> Deployment | None:
        """The last change that was completed, None where nothing was ever served; asks the target."""

    def deploy(self, change: Deployment, version: ModelVersion) -> Deployment:
        """Start the version beside the one that serves, send it its sample record, switch; gives time and place."""

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
    by: Person,
    why: str = "",
    allow_schema_change: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Serve an approved version at the target; `say` is told what callers may notice.

    Raises Refused where it may not be served there, or refuses what the served one answers, Tampered where its bytes
    are not those of its run, RunnerError where it does not answer as recorded: the version before keeps serving then.
    """
    with deployer.changing(by.who):
        settle(registry, deployer)
        new = deployable(registry, deployer, name, version)
        lost = comparison(registry, deployer, new).permitted(allow=allow_schema_change, say=say)
        return _serve(
            registry, deployer, _change(deployer, "deployed", new, by=by, why=why, schema_change=lost), new, by
        )


def rollback(
    registry: Registry,
    deployer: Deployer,
    *,
    by: Person,
    why: str = "",
    expected: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Serve what was served at the target before; `say` is told what callers may notice, and nothing is refused for it.

    Raises Refused where there is nothing to go back to, or another version than `expected` (NAME/VERSION; "" is any).
    """
    with deployer.changing(by.who):
        settle(registry, deployer)
        old = before(registry, deployer.name)
        _check_expected(f"{deployer.name} would go back to", old.label, expected)
        lost = comparison(registry, deployer, old).permitted(allow=True, say=say)
        change = _change(deployer, "rolled back", old, by=by, why=why, schema_change=lost)
        return _serve(registry, deployer, change, old, by)


def comparison(registry: Registry, deployer: Deployer, version: ModelVersion) -> SchemaComparison:
    """The version beside the one that serves at the target now."""
    last = _serving(deployer.last())
    if last is None:
        return compare(version, [], deployer.signature)
    served = registry.get(last.name, last.version)
    return compare(version, [Callers(served, f"serves at {last.target}", deployer.spec.unknown)], deployer.signature)


def remove(registry: Registry, deployer: Deployer, *, by: Person, why: str = "", expected: str = "") -> Deployment:
    """Serve nothing at the target any more. Raises Refused where nothing is, or another version than `expected`."""
    with deployer.changing(by.who):
        last = _serving(settle(registry, deployer))
        if last is None:
            raise Refused(f"Nothing is served at {deployer.name}.")
        _check_expected(f"{deployer.name} serves", last.label, expected)
        removal = deployer.remove(_change(deployer, "removed", last, by=by, why=why))
        reach("target switched")
        write_events(registry, removal, known_by=by.known_by)
    return removal


def restart(registry: Registry, deployer: Deployer, *, who: str) -> Deployment:
    """Serve again what was served when the target went down; no deployment of its own."""
    with deployer.changing(who):
        last = _serving(settle(registry, deployer))
        if last is None:
            raise Refused(f"Nothing was served at {deployer.name}.")
        version = registry.get(last.name, last.version)
        check_approved(version)
        return deployer.restart(last, version)


def settle(registry: Registry, deployer: Deployer) -> Deployment | None:
    """The target's last change, whose event is written now if whoever made it died before. Call inside `changing`."""
    deployer.finish()
    last = deployer.last()
    if last is not None:
        write_events(registry, last)
    return last


def catch_up(registry: Registry, deployer: Deployer, who: str) -> None:
    """As `settle`, where nobody changes the target just now."""
    last = deployer.last()
    if last is not None and not is_written(registry, last.name, last.id):
        with contextlib.suppress(Refused), deployer.changing(who):
            settle(registry, deployer)


def deployable(registry: Registry, deployer: Deployer, name: str, version: int) -> ModelVersion:
    """The version, if it may be served at the target. Raises Refused with what is missing and how to get it."""
    registered, target, requires = registry.get(name, version), deployer.name, deployer.spec.requires
    label = registered.label
    check_approved(registered)
    events = registry.events(name)
    if requires is not None and not _served(events, version, requires):
        raise Refused(
            f"{label} never served at {requires}, which {target} requires. First: runner deploy {label} --to {requires}"
        )
    if deployer.spec.second_approval and second_approval(events, version, target) is None:
        _, decision = state(events, version)
        raise Refused(
            f"{label} needs a second approval for {target}, by somebody else than {decision.who if decision else '–'}: "
            f'runner approve {label} --to {target} --reason "…"'
        )
    return registered


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


def _check_expected(sentence: str, label: str, expected: str) -> None:
    if expected and label != expected:
        raise Refused(f"{sentence} {label} now, not {expected}: somebody changed it meanwhile. Nothing was done.")


def _serving(last: Deployment | None) -> Deployment | None:
    return None if last is None or last.kind == "removed" else last


def _serve(registry: Registry, deployer: Deployer, change: Deployment, version: ModelVersion, by: Person) -> Deployment:
    reach("deployment checked")
    last = _serving(deployer.last())
    if last is not None:
        change = msgspec.structs.replace(change, replaced=last.label)
    completed = deployer.deploy(change, version)
    reach("target switched")
    write_events(registry, completed, known_by=by.known_by)
    reach("deployment recorded")
    return completed


def _change(
    deployer: Deployer,
    kind: Change,
    of: ModelVersion | Deployment,
    *,
    by: Person,
    why: str,
    schema_change: dict[str, list[str]] | None = None,
) -> Deployment:
    return Deployment(
        id=secrets.token_hex(8), target=deployer.name, kind=kind, name=of.name, version=of.version, sha256=of.sha256,
        who=by.who, why=why, schema_change=schema_change or {},
    )  # fmt: skip


def _served(events: Iterable[Event], version: int, target: str) -> bool:
    return any(e.version == version and e.kind in SERVES and e.data.get("target") == target for e in events)
