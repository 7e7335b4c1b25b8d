"""The SQLite file of a local registry: made whole or not at all, opened, checked, locked. Knows nothing of its rows.

Rollback journal, not WAL, which is unsafe on network homes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runner.content import fsync_folder
from runner.errors import NewerStore, RegistryUnusable

SCHEMA_VERSION = 1
APPLICATION_ID = 0x52554E52  # "RUNR", in the file's header
BUSY_S = 30.0
REBUILD = "runner models --rebuild"
LEFT = f" was left as it is; restore a copy of it, or make it anew: `{REBUILD}`."
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


class RegistryFile:
    """Connections to the file at `path`, safe for many processes at once. Reading a missing one finds nothing."""

    def __init__(self, path: Path, *, busy_s: float = BUSY_S) -> None:
        self.path = path
        self.busy_s = busy_s

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
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
    def writing(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            self.create()
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def create(self) -> None:
        """Put an empty registry there, whole or not at all: a file without tables is always a damaged one."""
        beside = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.touch()  # with the folder's group and the umask's rights; SQLite would let nobody else write to it
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
                f"{self.path} stayed locked for {self.busy_s:g} s by another process. Nothing was written to it; "
                "try again."
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return RegistryUnusable(
                f"{self.path} cannot be used: {error}. Nothing was written to it; free space or make it writable."
            )
        return RegistryUnusable(f"{self.path} cannot be read as a registry: {error}. The file{LEFT}")

    def _check_header(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        if version > SCHEMA_VERSION and owner == APPLICATION_ID:
            raise NewerStore(
                f"{self.path} has format {version}; this version reads up to {SCHEMA_VERSION}. Nothing was changed."
            )
        if owner != APPLICATION_ID or version != SCHEMA_VERSION:
            raise RegistryUnusable(f"{self.path} is not a registry, or was truncated. It{LEFT}")
        # the quick check would not see an index that has lost a row
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise RegistryUnusable(f"{self.path} is corrupt. It{LEFT}")
