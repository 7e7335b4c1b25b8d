"""The local registry: versions and events in a SQLite file.

The file has facts that never change (`versions`) and events that are only added (`events`); a version's state is what
its events add up to, so it stands in one place. The event of a registration has the hash of the version's facts, and
the file counts the events it was given, so that nothing can be altered or removed unnoticed, the last event included.
Rollback journal, not WAL, which is unsafe on network homes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.content import fsync_folder
from runner.errors import NewerStore, Refused, RegistryUnusable, Tampered, UsageError
from runner.model import copies
from runner.model.events import FIRST, STATES, chained, state, verify_chain
from runner.model.versions import Decision, Event, ModelVersion, NewVersion
from runner.records import typed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
SCHEMA_VERSION = 1
APPLICATION_ID = 0x52554E52  # "RUNR", in the file's header
BUSY_S = 30.0
COPIES = "registry-events"
SCHEMA = """
CREATE TABLE versions (
    name TEXT NOT NULL, version INTEGER NOT NULL CHECK (version > 0), run TEXT NOT NULL, created TEXT NOT NULL,
    facts TEXT NOT NULL, PRIMARY KEY (name, version), UNIQUE (name, run)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, seq INTEGER NOT NULL CHECK (seq > 0),
    event TEXT NOT NULL, UNIQUE (name, seq)
) STRICT;
CREATE TRIGGER versions_stay BEFORE UPDATE ON versions BEGIN SELECT RAISE(ABORT, 'versions never change'); END;
CREATE TRIGGER versions_remain BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions are kept'); END;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events never change'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
"""


class LocalRegistry:
    """Implements `runner.model.versions.Registry` in one SQLite file, safe for many processes at once."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S, keeps: bool = True) -> None:
        self.path = path
        self.busy_s = busy_s
        self.keeps = keeps  # copies of its events in files beside it

    def register(self, new: NewVersion) -> ModelVersion:
        if not NAME.match(new.name):
            raise UsageError(f"{new.name!r} is no model name: letters, digits and `-`, at most 63.")
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
            version, now = (known[-1].version if known else 0) + 1, _now()
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
            _add(connection, name, version, decision, who=who, why=why, at=_now(), data=data or {})
            made = _get(connection, name, version)
        self._copy(name)
        return made

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        assert kind not in STATES, kind
        with self._writing() as connection:
            _get(connection, name, version)
            _add(connection, name, version, kind, who=who, why=why, at=_now(), data=data or {})
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
        """Make a damaged or lost registry anew from the copies of its events; the damaged file is kept.

        Raises Refused where the registry is sound or there are no copies, Tampered where one was altered or is gone.
        """
        histories = list(copies.kept(self._copies))
        if self.path.exists() or not histories:
            with contextlib.suppress(RegistryUnusable, Tampered):
                self.list()
                raise Refused(f"{self.path} is sound, or there is nothing in {self._copies} to rebuild it from.")
        made = LocalRegistry(self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}"), keeps=False)
        try:
            for versions, events in histories:
                made.adopt(versions, events)
            if self.path.exists():
                self.path.rename(self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(4)}"))
            made.path.rename(self.path)
        finally:
            made.path.unlink(missing_ok=True)
        return self.list()

    @property
    def _copies(self) -> Path:
        return self.path.parent / COPIES

    def _copy(self, name: str) -> None:
        """After the change, never before: what is copied has happened."""
        if self.keeps:
            with self._reading() as connection:
                versions = {version.version: version for version in _versions(connection, name)}
                copies.keep(self._copies, _events(connection, name), versions)

    def approved(self, name: str) -> ModelVersion | None:
        with self._reading() as connection:
            found = [version for version in _versions(connection, name) if version.status == "approved"]
            return found[-1] if found else None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.executescript(SCHEMA)
                yield connection
            return
        with self._open() as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            self._create()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _create(self) -> None:
        """Put an empty registry there, whole or not at all: a file without tables is always a damaged one."""
        beside = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.keeps and self._copies.exists():  # of a registry that was removed; this one begins anew
                self._copies.rename(self._copies.with_name(f"{COPIES}.before-{secrets.token_hex(4)}"))
            with contextlib.closing(sqlite3.connect(beside)) as connection:
                connection.executescript(
                    f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; "
                    f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
                )
            try:
                os.link(beside, self.path)  # never over one that another process has made by now
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                beside.rename(self.path)
            beside.unlink(missing_ok=True)
            fsync_folder(self.path.parent)
        except (OSError, sqlite3.Error) as error:
            raise RegistryUnusable(f"{self.path} cannot be made: {error}.") from error
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=self.busy_s, isolation_level=None
            )
        except sqlite3.Error as error:
            raise RegistryUnusable(f"{self.path} cannot be opened: {error}.") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            self._check_header(connection)
            yield connection
        except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._unusable(error) from error
        finally:
            connection.close()

    def _unusable(self, error: Exception) -> RegistryUnusable:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it says where in SQLite
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return RegistryUnusable(
                f"{self.path} stayed locked for {self.busy_s:g} s by another process. Nothing was changed; try again."
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return RegistryUnusable(
                f"{self.path} cannot be used: {error}. Nothing was changed; free space or make it writable."
            )
        return RegistryUnusable(
            f"{self.path} cannot be read as a registry: {error}. The file was left as it is; restore a copy of it, or make it anew: `runner models --rebuild`."
        )

    def _check_header(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        if version > SCHEMA_VERSION and owner == APPLICATION_ID:
            raise NewerStore(
                f"{self.path} has format {version}; this version reads up to {SCHEMA_VERSION}. Nothing was changed."
            )
        if owner != APPLICATION_ID or version != SCHEMA_VERSION:
            raise RegistryUnusable(
                f"{self.path} is no registry, or was truncated. It was left as it is; restore a copy of it, or make it anew: `runner models --rebuild`."
            )
        # the quick check would not see an index that has lost a row
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise RegistryUnusable(
                f"{self.path} is corrupt. It was left as it is; restore a copy of it, or make it anew: `runner models --rebuild`."
            )


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
        reason=decision.why if decision else None,
    )


def _all_there(connection: sqlite3.Connection) -> None:
    """Raises Tampered where events are gone; the chain alone cannot miss its last ones."""
    (written,) = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'events'").fetchone()
    (there,) = connection.execute("SELECT count(*) FROM events").fetchone()
    if there != (written or 0):
        raise Tampered(f"The registry was given {written or 0} events and holds {there}: it was altered.")


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
    there = ", ".join(sorted(known)) or "none yet; `runner run` registers the model of a run that passes"
    return f"There is no registered model {name!r}. Registered: {there}."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
