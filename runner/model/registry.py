"""Where versions are kept: the protocol, and the local one in a SQLite file.

The file has facts that never change (`versions`) and events that are only added (`events`); a version's state is what
its events add up to, so it stands in one place. Rollback journal, not WAL, which is unsafe on network homes.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from runner.errors import NewerStore, Refused, RegistryUnusable, Tampered, UsageError
from runner.model.events import FIRST, chained, state, verify_chain
from runner.model.versions import Decision, Event, ModelVersion, NewVersion

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
SCHEMA_VERSION = 1
APPLICATION_ID = 0x52554E52  # "RUNR", in the file's header
BUSY_S = 30.0
SCHEMA = """
CREATE TABLE versions (
    name TEXT NOT NULL, version INTEGER NOT NULL CHECK (version > 0), run TEXT NOT NULL, created TEXT NOT NULL,
    facts TEXT NOT NULL, PRIMARY KEY (name, version), UNIQUE (name, run)
) STRICT;
CREATE TABLE events (
    name TEXT NOT NULL, seq INTEGER NOT NULL CHECK (seq > 0), event TEXT NOT NULL, PRIMARY KEY (name, seq)
) STRICT;
CREATE TRIGGER versions_stay BEFORE UPDATE ON versions BEGIN SELECT RAISE(ABORT, 'versions never change'); END;
CREATE TRIGGER versions_remain BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions are kept'); END;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events never change'); END;
CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
"""


class Registry(Protocol):
    """Versions of models, numbered per name without gaps. All raise RegistryUnusable where the store cannot be used."""

    def register(self, new: NewVersion) -> ModelVersion:
        """The new version, pending; the existing one where this run registered before. Refused if its bytes differ."""

    def get(self, name: str, version: int) -> ModelVersion:
        """Raises UsageError naming what there is."""

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        """By name and number."""

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        """pending → approved | rejected; approved → rejected. Anything else is Refused, naming who decided and when."""

    def events(self, name: str) -> Sequence[Event]:
        """All events of the name, oldest first."""

    def approved(self, name: str) -> ModelVersion | None:
        """The highest approved version."""


class LocalRegistry:
    """Implements `Registry` in one SQLite file, safe for many processes at once."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        self.path = path
        self.busy_s = busy_s

    def register(self, new: NewVersion) -> ModelVersion:
        if not NAME.match(new.name):
            raise UsageError(f"{new.name!r} is no model name: letters, digits and `-`, at most 63.")
        with self._writing() as connection:
            row = connection.execute(
                "SELECT version FROM versions WHERE name = ? AND run = ?", (new.name, new.run)
            ).fetchone()
            if row is not None:
                existing = _get(connection, new.name, row[0])
                if existing.sha256 != new.sha256:
                    raise Refused(
                        f"Run {new.run} registered {new.name}/{row[0]} with other bytes before "
                        f"({existing.sha256[:12]}, now {new.sha256[:12]}). A run registers one model."
                    )
                return existing
            (last,) = connection.execute("SELECT max(version) FROM versions WHERE name = ?", (new.name,)).fetchone()
            version, now = (last or 0) + 1, _now()
            facts = msgspec.json.encode(new, order="sorted").decode()
            connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (new.name, version, new.run, now, facts))
            _add(
                connection, new.name, version, "registered", who=new.created_by, why="", at=now,
                data={"run": new.run, "sha256": new.sha256},
            )  # fmt: skip
            return _get(connection, new.name, version)

    def get(self, name: str, version: int) -> ModelVersion:
        with self._reading() as connection:
            return _get(connection, name, version)

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        with self._reading() as connection:
            found = connection.execute("SELECT name, version FROM versions ORDER BY name, version").fetchall()
            if name is not None and name not in {row[0] for row in found}:
                raise UsageError(_unknown(connection, name, None))
            return [_get(connection, row[0], row[1]) for row in found if name in (None, row[0])]

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        with self._writing() as connection:
            current = _get(connection, name, version)
            allowed = current.status == "pending" or (current.status == "approved" and decision == "rejected")
            if not allowed:
                when = next(e.at for e in reversed(_events(connection, name)) if e.version == version)
                raise Refused(
                    f"{name}/{version} is already {current.status}, by {current.decided_by} at {when} "
                    f"({current.reason}). It stays so; see `runner history {name}`."
                )
            _add(connection, name, version, decision, who=who, why=why, at=_now(), data=data or {})
            return _get(connection, name, version)

    def events(self, name: str) -> Sequence[Event]:
        with self._reading() as connection:
            found = _events(connection, name)
            if not found:
                raise UsageError(_unknown(connection, name, None))
            return found

    def approved(self, name: str) -> ModelVersion | None:
        with self._reading() as connection:
            rows = connection.execute("SELECT version FROM versions WHERE name = ? ORDER BY version DESC", (name,))
            for (version,) in rows.fetchall():
                found = _get(connection, name, version)
                if found.status == "approved":
                    return found
        return None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                connection.executescript(SCHEMA)
                yield connection
            return
        with self._open(create=False) as connection:
            connection.execute("BEGIN")
            yield connection
            connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self, *, create: bool) -> Iterator[sqlite3.Connection]:
        mode = "rwc" if create else "rw"
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=self.busy_s, isolation_level=None
            )
        except sqlite3.Error as error:
            raise RegistryUnusable(f"{self.path} cannot be opened: {error}.") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            self._check_header(connection)
            yield connection
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise RegistryUnusable(
                    f"{self.path} stayed locked for {self.busy_s:g} s by another process. Nothing was changed; try again."
                ) from error
            raise self._unusable(error) from error
        except (sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._unusable(error) from error
        finally:
            connection.close()

    def _unusable(self, error: Exception) -> RegistryUnusable:
        return RegistryUnusable(
            f"{self.path} cannot be read as a registry: {error}. The file was left as it is; restore a copy of it."
        )

    def _check_header(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version > SCHEMA_VERSION and owner == APPLICATION_ID:
            raise NewerStore(
                f"{self.path} has format {version}; this version reads up to {SCHEMA_VERSION}. Nothing was changed."
            )
        if tables and (owner != APPLICATION_ID or version != SCHEMA_VERSION):
            raise RegistryUnusable(f"{self.path} is a database of something else. It was left as it is.")
        if tables and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise RegistryUnusable(f"{self.path} is corrupt. It was left as it is; restore a copy of it.")


def _get(connection: sqlite3.Connection, name: str, version: int) -> ModelVersion:
    row = connection.execute(
        "SELECT facts, created FROM versions WHERE name = ? AND version = ?", (name, version)
    ).fetchone()
    if row is None:
        raise UsageError(_unknown(connection, name, version))
    facts = msgspec.json.decode(row[0], type=NewVersion)
    events = _events(connection, name)
    registered = next((event for event in events if event.version == version and event.kind == "registered"), None)
    if registered is None or registered.data != {"run": facts.run, "sha256": facts.sha256}:
        raise Tampered(f"The row of {name}/{version} does not match the event of its registration.")
    broken = verify_chain(events)
    if broken is not None:
        raise Tampered(f"The history of {name} was altered: {broken}")
    status, decision = state(events, version)
    return ModelVersion(
        **{field: getattr(facts, field) for field in NewVersion.__struct_fields__},
        version=version,
        status=status,
        created=row[1],
        decided_by=decision.who if decision else None,
        reason=decision.why if decision else None,
    )


def _events(connection: sqlite3.Connection, name: str) -> list[Event]:
    rows = connection.execute("SELECT event FROM events WHERE name = ? ORDER BY seq", (name,)).fetchall()
    return [msgspec.json.decode(row[0], type=Event) for row in rows]


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
    last = msgspec.json.decode(row[0], type=Event) if row else None
    seq, previous = (last.seq + 1, last.hash) if last else (1, FIRST)
    event = chained(
        seq=seq, name=name, version=version, kind=kind, who=who, at=at, why=why, data=data, previous=previous
    )
    text = msgspec.json.encode(event, order="sorted").decode()
    connection.execute("INSERT INTO events VALUES (?, ?, ?)", (name, seq, text))


def _unknown(connection: sqlite3.Connection, name: str, version: int | None) -> str:
    rows: Sequence[tuple[str, int]] = connection.execute(
        "SELECT name, max(version) FROM versions GROUP BY name"
    ).fetchall()
    known = {row[0]: row[1] for row in rows}
    if name in known:
        return f"There is no {name}/{version}; its versions are 1 to {known[name]}."
    there = ", ".join(sorted(known)) or "none yet; `runner run` registers the model of a run that passes"
    return f"There is no registered model {name!r}. Registered: {there}."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
