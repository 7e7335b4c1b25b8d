"""The local registry: versions and events in a SQLite file.

The file has facts that never change (`versions`) and events that are only added (`events`); a version's state is what
its events add up to, so it stands in one place. The event of a registration has the hash of the version's facts, and
the file counts the events it was given; each access compares it with the last copy of each name's events, so that an
event that is removed, the last one too, or a registry that is replaced by an older or an empty one, is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import Refused, RegistryUnusable, Tampered, UsageError, counted
from runner.model import copies
from runner.model.events import FIRST, STATES, chained, state, verify_chain
from runner.model.registry_file import BUSY_S, REBUILD, RegistryFile
from runner.model.versions import Decision, Event, ModelVersion, NewVersion
from runner.records import typed, utc_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
COPIES = "registry-events"
History = tuple[Mapping[int, NewVersion | ModelVersion], Sequence[Event]]  # of one name: versions by number, events


class LocalRegistry:
    """Implements `runner.model.versions.Registry` in one SQLite file, safe for many processes at once."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S, keeps: bool = True) -> None:
        self.path = path
        self.keeps = keeps  # copies of its events in files beside it
        self._file = RegistryFile(path, busy_s=busy_s)

    def register(self, new: NewVersion) -> ModelVersion:
        if not NAME.match(new.name):
            raise UsageError(f"{new.name!r} is not a model name: letters, digits and `-`, at most 63.")
        with self._writing() as connection:
            known = _versions(connection, new.name)
            existing = next((version for version in known if version.run == new.run), None)
            if existing is not None:
                if existing.sha256 != new.sha256:
                    raise Refused(
                        f"Run {new.run} registered {new.name}/{existing.version} with other bytes before "
                        f"({existing.sha256[:12]}, now {new.sha256[:12]}). A run registers one model."
                    )
                return existing
            version, now = (known[-1].version if known else 0) + 1, utc_text()
            facts = _facts(new)
            connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (new.name, version, new.run, now, facts))
            data = {"run": new.run, "sha256": new.sha256, "facts_sha256": _sha256(facts)}
            _add(connection, new.name, version, "registered", who=new.created_by, why="", at=now, data=data)
            made = _get(connection, new.name, version)
        self._copy(new.name)
        return made

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
                raise UsageError(_unknown(connection, name, None))
            return [found for one in names if name in (None, one) for found in _versions(connection, one)]

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        with self._writing() as connection:
            current = _get(connection, name, version)
            allowed = current.status == "pending" or (current.status == "approved" and decision == "rejected")
            if not allowed:
                _, last = state(_events(connection, name), version)
                raise Refused(
                    f"{name}/{version} is already {current.status}, by {current.decided_by} at {last.at if last else '–'} "
                    f"({current.reason}). It stays so; see `runner history {name}`."
                )
            _add(connection, name, version, decision, who=who, why=why, at=utc_text(), data=data or {})
            made = _get(connection, name, version)
        self._copy(name)
        return made

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        assert kind not in STATES, kind
        with self._writing() as connection:
            _get(connection, name, version)
            _add(connection, name, version, kind, who=who, why=why, at=utc_text(), data=data or {})
            made = _events(connection, name)[-1]
        self._copy(name)
        return made

    def events(self, name: str) -> Sequence[Event]:
        with self._reading() as connection:
            found = _events(connection, name)
            if verify_chain(found) is None:  # otherwise the caller can say which event it is
                _all_there(connection)
            if not found:
                raise UsageError(_unknown(connection, name, None))
            return found

    def adopt(self, versions: Mapping[int, NewVersion | ModelVersion], events: Sequence[Event]) -> None:
        """Take in one name's whole history from elsewhere, as it is; what is here already must be its beginning.

        `events` has at least one. Raises Tampered where the chain or a row is not what was registered, Refused where
        this registry has another history of that name. Nothing is changed then.
        """
        broken = verify_chain(events)
        if broken is not None:
            raise Tampered(f"The history of {events[0].name} was altered: {broken}")
        name = events[0].name
        with self._writing() as connection:
            here = _events(connection, name)
            if any(ours != theirs for ours, theirs in zip(here, events, strict=False)):
                raise Refused(f"{self.path} has another history of {name}; the two cannot be one.")
            for event in events[len(here) :]:
                if event.kind == "registered":
                    if event.name != name or event.version not in versions:
                        raise Tampered(
                            f"The history of {name} speaks of {event.name}/{event.version}, which is not there."
                        )
                    found = versions[event.version]
                    connection.execute(
                        "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                        (name, event.version, found.run, event.at, _facts(found)),
                    )
                _insert(connection, event)
            _versions(connection, name)  # each row against the event of its registration
        self._copy(name)

    def rebuild(self) -> Sequence[ModelVersion]:
        """Make a damaged or lost registry anew from the copies of its events, or write the copies that a sound one
        lacks. A damaged file is kept.

        Raises Refused where both are whole, or tell two histories; Tampered where a copy was altered or is gone.
        """
        kept, ours = list(copies.kept(self._copies)), self._by_itself()
        if ours is None and not kept:
            raise Refused(
                f"{self.path} is damaged, and {self._copies} has nothing to make it anew from. Restore a copy."
            )
        whole: dict[str, History] = dict(ours or {})
        for versions, events in kept:
            name = events[0].name
            known, there = whole.get(name, ({}, []))
            whole[name] = ({**versions, **known}, copies.merged(there, events))
        lacking = ours is None or any(
            len(events) > len(ours.get(name, ({}, []))[1]) for name, (_, events) in whole.items()
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
            versions = alone.list()
            names = sorted({version.name for version in versions})
            return {
                name: ({found.version: found for found in versions if found.name == name}, alone.events(name))
                for name in names
            }
        except (RegistryUnusable, Tampered):
            return None

    def _replace(self, histories: Mapping[str, History]) -> None:
        """A registry of these histories instead of the one that is there, which is put aside."""
        made = LocalRegistry(self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}"), keeps=False)
        try:
            for versions, events in histories.values():
                made.adopt(versions, events)
            if self.path.exists():
                self.path.rename(self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(4)}"))
            made.path.rename(self.path)
        finally:
            made.path.unlink(missing_ok=True)

    def differences(self, name: str | None = None) -> Iterator[str]:
        """A sentence about each event, of one name or all, that the copies lack or tell otherwise."""
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
            if (
                typed(Event, row[0]).hash != head.hash
            ):  # an event that does not fit its own hash is for the chain to name
                raise copies.another(name, head.seq, self._copies)

    def approved(self, name: str) -> ModelVersion | None:
        with self._reading() as connection:
            found = [version for version in _versions(connection, name) if version.status == "approved"]
            return found[-1] if found else None


def _get(connection: sqlite3.Connection, name: str, version: int) -> ModelVersion:
    for found in _versions(connection, name):
        if found.version == version:
            return found
    raise UsageError(_unknown(connection, name, version))


def _versions(connection: sqlite3.Connection, name: str) -> list[ModelVersion]:
    """All versions of the name in order. Raises Tampered unless each row is what the event of its registration says."""
    events = _events(connection, name)
    broken = verify_chain(events)
    if broken is not None:
        raise Tampered(f"The history of {name} was altered: {broken}")
    _all_there(connection)
    rows = connection.execute(
        "SELECT version, run, created, facts FROM versions WHERE name = ? ORDER BY version", (name,)
    ).fetchall()
    registered = [event for event in events if event.kind == "registered"]
    if [row[0] for row in rows] != [event.version for event in registered]:
        raise Tampered(f"The versions of {name} are not those of its history: one was added, removed or renumbered.")
    return [_version(row, event, events) for row, event in zip(rows, registered, strict=True)]


def _version(row: tuple[int, str, str, str], registered: Event, events: Sequence[Event]) -> ModelVersion:
    version, run, created, text = row
    said = (registered.data.get("run"), registered.at, registered.data.get("facts_sha256"))
    if (run, created, _sha256(text)) != said:
        raise Tampered(f"The row of {registered.name}/{version} is not what was registered: it was altered.")
    facts, (status, decision) = typed(NewVersion, text), state(events, version)
    return ModelVersion(
        **{field: getattr(facts, field) for field in NewVersion.__struct_fields__},
        version=version,
        status=status,
        created=created,
        decided_by=decision.who if decision else None,
        decided=decision.at if decision else None,
        reason=decision.why if decision else None,
    )


def _all_there(connection: sqlite3.Connection) -> None:
    """Raises Tampered where events are gone; the chain alone cannot miss its last ones."""
    (written,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'events'").fetchone()
    (there,) = connection.execute("SELECT count(*) FROM events").fetchone()
    if there != (written or 0):
        raise Tampered(f"The registry was given {counted(written or 0, 'event')} and holds {there}: it was altered.")


def _events(connection: sqlite3.Connection, name: str) -> list[Event]:
    rows = connection.execute("SELECT event FROM events WHERE name = ? ORDER BY seq", (name,)).fetchall()
    events = [typed(Event, row[0]) for row in rows]
    if any(event.name != name for event in events):
        raise Tampered(f"The history of {name} has events of another name: one was moved.")
    return events


def _add(
    connection: sqlite3.Connection,
    name: str,
    version: int,
    kind: str,
    *,
    who: str,
    why: str,
    at: str,
    data: dict[str, Any],
) -> None:
    row = connection.execute("SELECT event FROM events WHERE name = ? ORDER BY seq DESC LIMIT 1", (name,)).fetchone()
    last = typed(Event, row[0]) if row else None
    seq, previous = (last.seq + 1, last.hash) if last else (1, FIRST)
    event = chained(
        seq=seq, name=name, version=version, kind=kind, who=who, at=at, why=why, data=data, previous=previous
    )
    _insert(connection, event)


def _insert(connection: sqlite3.Connection, event: Event) -> None:
    text = msgspec.json.encode(event, order="sorted").decode()
    connection.execute("INSERT INTO events (name, seq, event) VALUES (?, ?, ?)", (event.name, event.seq, text))


def _facts(version: NewVersion | ModelVersion) -> str:
    """What never changes of a version, as JSON; equal facts give equal text."""
    return copies.facts_json(version).decode()


def _unknown(connection: sqlite3.Connection, name: str, version: int | None) -> str:
    rows: Sequence[tuple[str, int]] = connection.execute(
        "SELECT name, max(version) FROM versions GROUP BY name"
    ).fetchall()
    known = {row[0]: row[1] for row in rows}
    if name in known:
        return f"There is no {name}/{version}; its versions are 1 to {known[name]}."
    there = ", ".join(sorted(known)) or "none yet; `runner check` says whether a run registers one"
    return f"There is no registered model {name!r}. Registered: {there}."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
