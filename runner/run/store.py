"""The runs on disk: folders, manifests, locks, and the objects that outputs are sealed into.

    runs/<run>/run.json     the manifest
    runs/<run>/lock         held by flock while the run's owner lives
    runs/lock               shared by all that work in the store, exclusive while garbage is collected
    runs/removed/<run>.json who removed a run, and when
    runs/objects/<sha256>   read-only, by content
    runs/elsewhere/<sha256> the address of an object that was not fetched yet

Every file that counts is written to a temporary file, flushed to disk and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

import msgspec

from runner.content import artifact, atomic_write, file_fact, fsync_folder, hold, make_read_only
from runner.errors import Refused, Tampered, UsageError
from runner.failpoint import reach
from runner.manifest import RunManifest
from runner.records import Artifact, FileFact, encode, read
from runner.run import removal
from runner.run.ids import RUN_ID, make_folder

MANIFEST, LOCK, OBJECTS, QUARANTINE, ELSEWHERE = "run.json", "lock", "objects", "quarantine", "elsewhere"
WAIT_S = 10.0  # for garbage collection to end
OWNED = "owned-elsewhere"  # in a run's folder: who works on it in another checkout, as far as is known


class RemoteObjects(Protocol):
    """Where objects are stored that were not fetched yet. Both raise RemoteError."""

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        """Write the bytes at the address to the file; bytes other than those of `fact` are an error."""

    def digest(self, address: str) -> FileFact:
        """Hash and size of the bytes at the address, which are not kept."""


class Store:
    """The folder `runs/` beside a pipeline.toml."""

    def __init__(self, root: Path, remote: RemoteObjects | None = None) -> None:
        self.root = root
        self.objects = root / OBJECTS
        self.remote = remote

    def prepare(self) -> None:
        """Create the folders. Raises Refused where the store cannot be written to."""
        try:
            self.objects.mkdir(parents=True, exist_ok=True)
            probe = self.objects / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink(missing_ok=True)  # `gc` may have removed it as garbage
        except OSError as error:
            raise Refused(
                f"Cannot write to {self.root}: {error.strerror}. Make it writable, or free space, and run again."
            ) from error

    def abandon(self) -> None:
        """Remove the store if it is empty, after a failed import into a new project."""
        with contextlib.suppress(OSError):
            self.objects.rmdir()
            if [entry.name for entry in self.root.iterdir()] == [LOCK]:
                (self.root / LOCK).unlink()
            self.root.rmdir()

    def new(self) -> str:
        """A fresh run id with its folder."""
        return make_folder(self.root)

    def folder(self, run: str) -> Path:
        return self.root / run

    def runs(self) -> list[str]:
        """All run ids, the newest first."""
        if not self.root.is_dir():
            return []
        return sorted((entry.name for entry in os.scandir(self.root) if RUN_ID.match(entry.name)), reverse=True)

    def begun(self, run: str) -> bool:
        """Whether anything was done in it: it was not killed before its manifest was written."""
        folder = self.folder(run)
        return (folder / MANIFEST).exists() or any(folder.glob("steps/*/result.json"))

    def find(self, reference: str) -> str:
        """The run id for an id, a unique beginning or end of one, or `latest`. Raises UsageError."""
        runs = self.runs()
        if reference == "latest":
            latest = next((run for run in runs if (self.folder(run) / MANIFEST).exists()), None)
            if latest is not None:
                return latest
            raise UsageError(f"There are no runs in {self.root} yet. Start one with `runner run`.")
        matches = [run for run in runs if run.startswith(reference) or run.endswith(f"-{reference}")]
        if len(matches) == 1 or reference in matches:
            return reference if reference in matches else matches[0]
        if matches:
            raise UsageError(f"{reference!r} could be {', '.join(matches[:5])}. Write more of it.")
        removed = "".join(f" Run {record.run} was {record}." for record in removal.matching(self.root, reference))
        raise UsageError(f"There is no run {reference!r} in {self.root}.{removed} See `runner runs`.")

    def manifest_as_written(self, run: str) -> RunManifest:
        """The run's manifest as it is in the file; for the owner of its lock."""
        try:
            return read(RunManifest, self.folder(run) / MANIFEST)
        except FileNotFoundError:
            raise UsageError(self._absent(run)) from None

    def _absent(self, run: str) -> str:
        """Why there is no manifest of the run."""
        removed = removal.find(self.root, run)
        if removed is not None and not self.folder(run).exists():
            return f"Run {run} was {removed}."
        if self.begun(run):
            return f"Run {run} has no {MANIFEST}, though steps of it have ended: the file was removed."
        if self.folder(run).exists():
            return f"Run {run} has no {MANIFEST}: it was killed before it began."
        return f"Run {run} is not in {self.root}."

    def manifest(self, run: str) -> RunManifest:
        """The run's manifest; a run that says `running` while nobody holds its lock reads as interrupted."""
        manifest = self.manifest_as_written(run)
        if manifest.status == "running" and not self.locked(run):
            steps = [
                msgspec.structs.replace(step, status="interrupted") if step.status == "running" else step
                for step in manifest.steps
            ]
            return msgspec.structs.replace(manifest, status="interrupted", steps=steps)
        return manifest

    def write(self, manifest: RunManifest) -> None:
        atomic_write(self.folder(manifest.run) / MANIFEST, encode(manifest))

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Prevent garbage collection meanwhile. Raises Refused where one is running for longer than WAIT_S.

        Does nothing where the store cannot be written to, does not exist yet, or its file system has no locks: garbage
        cannot be collected there.
        """
        with contextlib.ExitStack() as held:
            if self.root.is_dir() and os.access(self.root, os.W_OK):
                held.enter_context(self._store_lock(fcntl.LOCK_SH))
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Prevent any other work in the store meanwhile. Raises Refused where somebody is working in it."""
        with self._store_lock(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _store_lock(self, kind: int) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + (WAIT_S if kind == fcntl.LOCK_SH else 0)
        with (self.root / LOCK).open("a") as file:
            while True:
                try:
                    hold(file, kind)
                    break
                except BlockingIOError:
                    if time.monotonic() < until:
                        time.sleep(0.02)
                        continue
                    user = "a run or another command is" if kind == fcntl.LOCK_EX else "`runner gc` is"
                    raise Refused(f"{self.root} is in use: {user} at work. Try again when it has ended.") from None
                except Refused:
                    if kind == fcntl.LOCK_SH:
                        break
                    raise
            yield

    @contextlib.contextmanager
    def lock(self, run: str) -> Iterator[None]:
        """Own the run. Raises Refused naming the process that does, UsageError where the run is gone."""
        if (self.folder(run) / OWNED).exists():
            owner = (self.folder(run) / OWNED).read_text(encoding="utf-8")
            raise Refused(
                f"Run {run} is being worked on by {owner}, in another checkout. "
                f"If that machine is gone: `runner resume {run} --take-over`."
            )
        with self.shared(), self._lock_file(run) as file:
            try:
                hold(file, fcntl.LOCK_EX)
            except BlockingIOError:
                file.seek(0)
                raise Refused(f"Run {run} is being worked on by {file.read().strip() or 'another process'}.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def _lock_file(self, run: str) -> IO[str]:
        try:
            return (self.folder(run) / LOCK).open("a+")
        except FileNotFoundError:
            raise UsageError(self._absent(run)) from None

    def owner(self, run: str) -> tuple[int, str]:
        """(process id, host) of who holds the run's lock. Raises Refused where the lock does not say it."""
        words = (self.folder(run) / LOCK).read_text(encoding="utf-8").split()  # process PID on HOST
        if len(words) != 4 or not words[1].isdecimal():
            raise Refused(f"Run {run} is being worked on by another process.")
        return int(words[1]), words[3]

    def locked(self, run: str) -> bool:
        if (self.folder(run) / OWNED).exists():
            return True
        try:
            with (self.folder(run) / LOCK).open() as file:
                hold(file, fcntl.LOCK_SH)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def seal(self, folder: Path, sealed: Artifact) -> None:
        """Make the artifact's files in `folder` read-only objects, linked from where they are.

        An existing object is read again; one whose bytes do not have its hash is moved to quarantine and replaced.
        """
        for path, fact in files_of(sealed):
            self._adopt(folder / path, fact)

    def link(self, content: Artifact, target: Path) -> None:
        """Put the artifact's content at `target`, as links to objects. Raises Tampered where one is gone or altered."""
        if content.files is not None:
            target.mkdir(parents=True, exist_ok=True)
        for relative, fact in facts_of(content).items():
            place = target / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            link_or_copy(self.object(fact), place)

    def object(self, fact: FileFact) -> Path:
        """The object's file, its size checked; fetched first where it is elsewhere."""
        path = self.objects / fact.sha256
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            address = self.address(fact)
            if address is None or self.remote is None:
                raise Tampered(f"Object {fact.sha256[:12]} is missing from {self.objects}.") from None
            self._fetch(address, fact, self.remote)
            return path
        if size != fact.size_bytes:
            raise Tampered(f"Object {path} has {size} bytes instead of {fact.size_bytes}.")
        return path

    def has(self, fact: FileFact) -> bool:
        """Whether the object's bytes are in this store."""
        return (self.objects / fact.sha256).exists()

    def address(self, fact: FileFact) -> str | None:
        """The recorded address of the object's bytes elsewhere."""
        try:
            return (self.root / ELSEWHERE / fact.sha256).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def note_address(self, fact: FileFact, address: str) -> None:
        """Record where the object's bytes are."""
        place = self.root / ELSEWHERE / fact.sha256
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, address.encode())

    def _fetch(self, address: str, fact: FileFact, remote: RemoteObjects) -> None:
        beside = self.objects / f".fetch-{secrets.token_hex(4)}"
        self.objects.mkdir(parents=True, exist_ok=True)
        try:
            remote.fetch(address, fact, beside)
            if file_fact(beside) != fact:
                raise Tampered(f"{address} has other bytes than were recorded ({fact.sha256[:12]}); none were kept.")
            self._adopt(beside, fact)
        finally:
            beside.unlink(missing_ok=True)

    def add(self, path: Path, fact: FileFact) -> None:
        """Keep a copy of a file outside the store as an object. Raises Tampered where it has changed."""
        if (self.objects / fact.sha256).exists() and file_fact(self.objects / fact.sha256) == fact:
            return
        beside = self.objects / f".add-{secrets.token_hex(4)}"
        try:
            shutil.copyfile(path, beside)
            if file_fact(beside) != fact:
                raise Tampered(f"{path} was changed while it was read. Run again.")
            self._adopt(beside, fact)
        finally:
            beside.unlink(missing_ok=True)

    def _adopt(self, path: Path, fact: FileFact) -> None:
        target = self.objects / fact.sha256
        if not make_read_only(path) and path.stat().st_uid != os.getuid():
            # another account's file, of a run that is resumed here: replace it with a copy of our own
            beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            shutil.copyfile(path, beside)
            make_read_only(beside)
            beside.replace(path)
        if target.exists():
            if path.samefile(target):
                return
            if file_fact(target) == fact:
                beside = path.with_name(f".{path.name}.link")
                beside.unlink(missing_ok=True)
                link_or_copy(target, beside)
                beside.replace(path)
                return
            quarantine = self.root / QUARANTINE
            quarantine.mkdir(exist_ok=True)
            target.replace(quarantine / f"{fact.sha256}-{secrets.token_hex(4)}")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        beside = self.objects / f".{fact.sha256}-{secrets.token_hex(4)}"
        link_or_copy(path, beside)
        reach("object half stored")
        beside.replace(target)
        fsync_folder(self.objects)


def facts_of(content: Artifact) -> dict[str, FileFact]:
    """The artifact's files by path relative to it; "" is the artifact itself."""
    if content.files is None:
        return {"": FileFact(sha256=content.sha256, size_bytes=content.size_bytes)}
    return content.files


def files_of(content: Artifact) -> list[tuple[str, FileFact]]:
    """(path relative to the step folder, fact) of each file of the artifact."""
    return [(str(PurePosixPath(content.path) / relative), fact) for relative, fact in facts_of(content).items()]


def check(folder: Path, sealed: Artifact, store: Store) -> None:
    """Read the artifact's files in `folder` again. Raises Tampered naming the first that differs.

    Files elsewhere are checked when they are fetched.
    """
    if not is_fetched(folder, sealed, store):
        return
    for path, fact in files_of(sealed):
        try:
            now = file_fact(folder / path)
        except FileNotFoundError:
            raise Tampered(f"{folder / path} is missing.") from None
        if now != fact:
            raise Tampered(f"{folder / path} was altered: its hash is {now.sha256[:12]}, recorded {fact.sha256[:12]}.")
    if sealed.files is not None and artifact(folder / sealed.path, name=sealed.path).sha256 != sealed.sha256:
        raise Tampered(f"{folder / sealed.path} has files that were not there when it was sealed.")


def is_fetched(folder: Path, sealed: Artifact, store: Store) -> bool:
    """False where a file of the artifact is not in the folder because its bytes are elsewhere."""
    return not any(not (folder / path).exists() and store.address(fact) is not None for path, fact in files_of(sealed))


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        make_read_only(target)
