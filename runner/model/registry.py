"""The local registry: versions and events in a SQLite file.

The file has facts that never change (`versions`) and events that are only added (`events`); a version's state is what
its events add up to, so it stands in one place. The event of a registration has the hash of the version's facts, and
the file counts the events it was given; each access compares it with the last copy of each name's events, so that an
event that is removed, the last one too, or a registry that is replaced by an older or an empty one, is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import Refused, RegistryUnusable, Tampered, UsageError, counted
from runner.model import copies, registry_rules
from runner.model.events import verify_chain
from runner.model.registry_file import BUSY_S, REBUILD, RegistryFile
from runner.model.registry_rules import Draft
from runner.model.versions import Decision, Event, ModelVersion, NewVersion
from runner.records import typed, utc_text

COPIES = "registry-events"
ADD_VERSION = "INSERT INTO versions VALUES (?, ?, ?, ?, ?)"
History = tuple[Mapping[int, NewVersion | ModelVersion], Sequence[Event]]  # of one name: versions by number, events


class LocalRegistry:
    """Implements `runner.model.versions.Registry` in one SQLite file, safe for many processes at once."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S, keeps: bool = True) -> None:
        self.path = path
        self.keeps = keeps  # copies of its events in files beside it
        self._file = RegistryFile(path, busy_s=busy_s)

    def register(self, new: NewVersion) -> ModelVersion:
        registry_rules.check_name(new.name)
        with self._writing() as connection:
            versions = _versions(connection, new.name)
            number = registry_rules.registered_before(new, _events(connection, new.name))
            if number is not None:
                return _get(connection, new.name, number)
            number, now, facts = len(versions) + 1, utc_text(), copies.facts_json(new)
            connection.execute(ADD_VERSION, (new.name, number, new.run, now, facts.decode()))
            data = {"run": new.run, "sha256": new.sha256, "facts_sha256": hashlib.sha256(facts).hexdigest()}
            _add(connection, Draft(new.name, number, "registered", who=new.created_by, why="", data=data, at=now))
            version = _get(connection, new.name, number)
        self._copy(new.name)
        return version

    def get(self, name: str, version: int) -> ModelVersion:
        with self._reading() as connection:
            return _get(connection, name, version)

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT name FROM versions UNION SELECT name FROM events ORDER BY name"
            ).fetchall()
            names = [row[0] for row in rows]
            if name is not None and name not in names:
                raise _not_registered(connection, name, None)
            return [version for one in names if name in (None, one) for version in _versions(connection, one)]

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        with self._writing() as connection:
            _get(connection, name, version)
            registry_rules.check_decision(decision, version, _events(connection, name))
            _add(connection, Draft(name, version, decision, who=who, why=why, data=data or {}))
            decided = _get(connection, name, version)
        self._copy(name)
        return decided

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        registry_rules.check_record(kind)
        with self._writing() as connection:
            _get(connection, name, version)
            event = _add(connection, Draft(name, version, kind, who=who, why=why, data=data or {}))
        self._copy(name)
        return event

    def events(self, name: str) -> Sequence[Event]:
        with self._reading() as connection:
            events = _events(connection, name)
            if verify_chain(events) is None:  # otherwise the caller can say which event it is
                _check_count(connection)
            if not events:
                raise _not_registered(connection, name, None)
            return events

    def adopt(self, versions: Mapping[int, NewVersion | ModelVersion], events: Sequence[Event]) -> None:
        """Take in one name's whole history from elsewhere, as it is; this registry's events of it must be its first.

        `events` has at least one. Raises Tampered where the chain or a row is not what was registered, Refused where
        this registry has another history of that name. Nothing is changed then.
        """
        name = events[0].name
        registry_rules.check_chain(name, events)
        with self._writing() as connection:
            own_events = _events(connection, name)
            if any(own != other for own, other in zip(own_events, events, strict=False)):
                raise Refused(f"{self.path} has another history of {name}; the two cannot be one.")
            for event in events[len(own_events) :]:
                if event.kind == "registered":
                    if event.name != name or event.version not in versions:
                        raise Tampered(
                            f"The history of {name} speaks of {event.name}/{event.version}, which is not there."
                        )
                    version = versions[event.version]
                    facts = copies.facts_json(version).decode()
                    connection.execute(ADD_VERSION, (name, event.version, version.run, event.at, facts))
                _insert(connection, event)
            _versions(connection, name)  # each row against the event of its registration
        self._copy(name)

    def rebuild(self) -> Sequence[ModelVersion]:
        """Rebuild a damaged or lost registry from the copies of its events, or write the copies that a sound one
        lacks. A damaged file is kept.

        Raises Refused where both are whole, or are two histories; Tampered where a copy was altered or is gone.
        """
        copied, stored = list(copies.kept(self._copies)), self._by_itself()
        if stored is None and not copied:
            raise Refused(
                f"{self.path} is damaged, and {self._copies} has nothing to make it anew from. Restore a copy."
            )
        whole: dict[str, History] = dict(stored or {})
        for versions, events in copied:
            name = events[0].name
            stored_versions, stored_events = whole.get(name, ({}, []))
            whole[name] = ({**versions, **stored_versions}, copies.merged(stored_events, events))
        lacking = stored is None or any(
            len(events) > len(stored.get(name, ({}, []))[1]) for name, (_, events) in whole.items()
        )
        if lacking:
            self._replace(whole)
        written = sum(copies.keep(self._copies, events, versions, all_=True) for versions, events in whole.values())
        if not lacking and not written:
            raise Refused(f"{self.path} is sound, or there is nothing in {self._copies} to rebuild it from.")
        return self.list()

    def _by_itself(self) -> dict[str, tuple[dict[int, ModelVersion], Sequence[Event]]] | None:
        """Each name's versions and events, whatever the copies say; None where it is damaged."""
        alone = LocalRegistry(self.path, keeps=False)
        try:
            histories: dict[str, tuple[dict[int, ModelVersion], Sequence[Event]]] = {}
            for version in alone.list():
                if version.name not in histories:
                    histories[version.name] = ({}, alone.events(version.name))
                histories[version.name][0][version.version] = version
            return histories
        except (RegistryUnusable, Tampered):
            return None

    def _replace(self, histories: Mapping[str, History]) -> None:
        """A registry of these histories instead of the one that is there, which is put aside."""
        fresh = LocalRegistry(self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}"), keeps=False)
        try:
            for versions, events in histories.values():
                fresh.adopt(versions, events)
            if self.path.exists():
                self.path.rename(self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(4)}"))
            fresh.path.rename(self.path)
        finally:
            fresh.path.unlink(missing_ok=True)

    def differences(self, name: str | None = None) -> Iterator[str]:
        """A sentence about each event, of one name or all, that the copies lack or have differently."""
        for one, (_, events) in (self._by_itself() or {}).items():
            if name in (None, one):
                yield from copies.differences(self._copies, one, events)

    @property
    def _copies(self) -> Path:
        return self.path.parent / COPIES

    def _copy(self, name: str) -> None:
        """After the change, never before: what is copied has happened."""
        if self.keeps:
            with self._file.reading() as connection:
                versions = {version.version: version for version in _versions(connection, name)}
                copies.keep(self._copies, _events(connection, name), versions)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        heads = self._heads()  # before the file is looked at, to which another process may add one meanwhile
        with self._file.reading() as connection:
            self._compare(connection, heads)
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        heads = self._heads()
        with self._file.writing() as connection:
            self._compare(connection, heads)
            yield connection

    def _heads(self) -> Mapping[str, Event]:
        """The last event of each name in the copies. Raises RegistryUnusable where they are all that is left."""
        heads = copies.heads(self._copies) if self.keeps else {}
        if self.path.exists() or not self.keeps:
            return heads
        if heads:
            raise RegistryUnusable(
                f"{self.path} is gone, and {self._copies} has copies of the events of {', '.join(heads)}. Put it back, "
                f"or make it anew: `{REBUILD}`."
            )
        for aside in sorted(self.path.parent.glob(f"{COPIES}?*")):
            raise RegistryUnusable(
                f"{self.path} is gone, and the copies of its events were moved to {aside}. Put one of them back: "
                f"`mv {aside} {self._copies} && {REBUILD}`."
            )
        return heads

    def _compare(self, connection: sqlite3.Connection, heads: Mapping[str, Event]) -> None:
        """Raises Tampered unless each of the events is in the file; those before it follow from its hash."""
        for name, head in heads.items():
            row = connection.execute("SELECT event FROM events WHERE name = ? AND seq = ?", (name, head.seq)).fetchone()
            if row is None:
                raise Tampered(
                    f"{self.path} lacks event {head.seq} of {name} ({head.kind}, by {head.who} at {head.at}), of which "
                    f"{self._copies} has a copy: it was altered, or is an older one. Make it anew: `{REBUILD}`."
                )
            if typed(Event, row[0]).hash != head.hash:  # verify_chain names one that does not fit its own hash
                raise copies.another(name, head.seq, self._copies)

    def approved(self, name: str) -> ModelVersion | None:
        with self._reading() as connection:
            return registry_rules.highest_approved(_versions(connection, name))


def _get(connection: sqlite3.Connection, name: str, version: int) -> ModelVersion:
    for registered in _versions(connection, name):
        if registered.version == version:
            return registered
    raise _not_registered(connection, name, version)


def _versions(connection: sqlite3.Connection, name: str) -> list[ModelVersion]:
    """All versions of the name in order. Raises Tampered unless each row is what the event of its registration says."""
    events = _events(connection, name)
    registry_rules.check_chain(name, events)
    _check_count(connection)
    rows = connection.execute(
        "SELECT version, run, created, facts FROM versions WHERE name = ? ORDER BY version", (name,)
    ).fetchall()
    registrations = [event for event in events if event.kind == "registered"]
    if [row[0] for row in rows] != [event.version for event in registrations]:
        raise Tampered(f"The versions of {name} are not those of its history: one was added, removed or renumbered.")
    versions = []
    for (number, run, created, facts), event in zip(rows, registrations, strict=True):
        registered = (event.data.get("run"), event.at, event.data.get("facts_sha256"))
        if (run, created, hashlib.sha256(facts.encode()).hexdigest()) != registered:
            raise Tampered(f"The row of {name}/{number} is not what was registered: it was altered.")
        versions.append(registry_rules.model_version(typed(NewVersion, facts), event, events))
    return versions


def _check_count(connection: sqlite3.Connection) -> None:
    """Raises Tampered where events are gone; the chain alone cannot miss its last ones."""
    (given,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'events'").fetchone()
    (held,) = connection.execute("SELECT count(*) FROM events").fetchone()
    if held != (given or 0):
        raise Tampered(f"The registry was given {counted(given or 0, 'event')} and holds {held}: it was altered.")


def _events(connection: sqlite3.Connection, name: str) -> list[Event]:
    rows = connection.execute("SELECT event FROM events WHERE name = ? ORDER BY seq", (name,)).fetchall()
    events = [typed(Event, row[0]) for row in rows]
    if any(event.name != name for event in events):
        raise Tampered(f"The history of {name} has events of another name: one was moved.")
    return events


def _add(connection: sqlite3.Connection, draft: Draft) -> Event:
    event = registry_rules.event_after(_events(connection, draft.name), draft)
    _insert(connection, event)
    return event


def _insert(connection: sqlite3.Connection, event: Event) -> None:
    text = msgspec.json.encode(event, order="sorted").decode()
    connection.execute("INSERT INTO events (name, seq, event) VALUES (?, ?, ?)", (event.name, event.seq, text))


def _not_registered(connection: sqlite3.Connection, name: str, version: int | None) -> UsageError:
    rows = connection.execute("SELECT name, max(version) FROM versions GROUP BY name").fetchall()
    return registry_rules.not_registered(name, version, dict(rows))
