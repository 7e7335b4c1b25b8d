"""A run in one file, with all bytes it depends on: made by `pack`, imported by `unpack` on another machine.

    pack.json            which run, every other member with its hash; for a version its registry's rows and events
    run/…                the records of the run's folder, see `runner.run.layout`
    objects/<sha256>     every input, output and executed notebook

Equal runs give equal files. An archive is untrusted: where anything in it is wrong, nothing is kept, and the run's
folder appears in one rename. A name in it becomes a path only after it was compared with the manifest, whose names stay
below their folder; objects are named by their content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import secrets
import shutil
import tarfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from runner.audit.tarball import FREE_BYTES, RATIO, Member, Tarball
from runner.audit.verify import Verifier
from runner.content import atomic_write, file_fact, fsync_folder
from runner.errors import Refused, Tampered, UsageError
from runner.failpoint import reach
from runner.manifest import Imported, RunManifest
from runner.model.versions import Event, ModelVersion, NewVersion
from runner.paths import FileName, RelativePath
from runner.records import FORMAT, Artifact, FileFact, Record, decode, encode
from runner.run import layout
from runner.run.folder import PIPELINE
from runner.run.inputs import copy, origin, recorded_input
from runner.run.registration import claimed
from runner.run.store import MANIFEST, Store, facts_of

PACK, RUN, OBJECTS = "pack.json", "run/", "objects/"
NOTHING = "Nothing of it was kept."
PARSED_RATIO, PARSED_FREE_BYTES = 4, 20_000_000  # as RATIO, for records, which take many times their size in memory
# of an import; see runner.failpoint
FAILPOINTS = ("archive checked", "objects taken in", "run taken in", "version taken in")


class Pack(Record, frozen=True, kw_only=True):
    """pack.json. `versions` and `events` are those of the packed version's name, for an audit elsewhere."""

    format: int = FORMAT
    run: FileName
    files: dict[RelativePath, FileFact] = {}  # every other member
    versions: list[ModelVersion] = []
    events: list[Event] = []


@dataclass(frozen=True)
class ImportedRun:
    """A run as it is in the store now; `version` is to be registered, None where the archive has none."""

    manifest: RunManifest
    version: NewVersion | None


def pack(manifest: RunManifest, store: Store, target: Path, evidence: Pack) -> int:
    """Write the run to `target`; its size in bytes. Raises Refused where the run has not ended, or an input is gone.

    Hold `store.shared()` around it.
    """
    if store.locked(manifest.run):
        raise Refused(f"Run {manifest.run} is going on. Pack it when it has ended.")
    beside = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    scratch = store.root / f".pack-{secrets.token_hex(4)}"
    try:
        members = {**_records(manifest, store), **_objects(manifest, store, scratch)}
        files = {name: fact for name, (fact, _) in members.items()}
        with (
            beside.open("wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            first = encode(msgspec.structs.replace(evidence, files=files))
            archive.addfile(_plain(PACK, len(first)), io.BytesIO(first))
            for name in _order(files):
                fact, path = members[name]
                with path.open("rb") as content:
                    archive.addfile(_plain(name, fact.size_bytes), content)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return target.stat().st_size


def unpack(file: Path, store: Store, by: Imported) -> ImportedRun:
    """Import the run in `file`; one that the store already has stays as it is. Hold `store.shared()` around it.

    Raises UsageError where the file cannot be read, Refused where it is not a pack of a run, the store has another run
    of that id or the disk is full, Tampered where its content contradicts its records. Nothing of it is kept then.
    """
    scratch = Store(store.root / f".import-{secrets.token_hex(4)}")
    try:
        with file.open("rb") as opened:
            incoming = _Incoming(opened, str(file))
            mine = msgspec.structs.replace(incoming.manifest, imported=by, model_version=None)
            version = claimed(mine, incoming.pack.events) if incoming.pack.events else None
            existing = _existing(mine, store)
            if existing is not None:
                return ImportedRun(existing, version)
            incoming.objects(scratch.objects)
        folder = _write_folder(incoming, scratch)
        finding = next(iter(Verifier(scratch).run(incoming.manifest)), None)
        if finding is not None:
            raise Tampered(f"{file} is not sound, so nothing of it was kept: {finding}")
        atomic_write(folder / MANIFEST, encode(mine))
        reach("archive checked")
        _seal(mine, scratch, store)
        reach("objects taken in")
        return ImportedRun(_move(mine, folder, store), version)
    except (RecursionError, MemoryError) as error:
        raise Tampered(f"{file} has a record that is nested too deep, or takes too much memory. {NOTHING}") from error
    except OSError as error:
        if error.filename == str(file):
            raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
        why = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise Refused(f"{file} cannot be taken in: {why}. {NOTHING}") from error
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)


class _Incoming:
    """An archive that is being read: first all of its records, in memory, checked against each other."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self._where, size = where, os.fstat(file.fileno()).st_size
        self._parsed = PARSED_FREE_BYTES + PARSED_RATIO * size
        self._members = iter(tarball := Tarball(file, most_bytes=FREE_BYTES + RATIO * size, where=where))
        self.pack = decode(Pack, self._next(PACK, None).read(), where=f"{where}: {PACK}")
        if not self.pack.files:
            raise Refused(
                f"{where} has no list of what is in it: it was made by an earlier version. Pack the run again."
            )
        tarball.expect(sum(fact.size_bytes for fact in self.pack.files.values()))
        self.records = {
            name.removeprefix(RUN): self._whole(name)
            for name in _order(self.pack.files)
            if not name.startswith(OBJECTS)
        }
        self.manifest = decode(RunManifest, self.records.get(MANIFEST, b""), where=f"{where}: {RUN}{MANIFEST}")
        self._check()

    def objects(self, folder: Path) -> None:
        """Write every object into the folder, which is made."""
        folder.mkdir(parents=True)
        for name in _order(self.pack.files):
            if name.startswith(OBJECTS):
                fact, digest = self.pack.files[name], hashlib.sha256()
                with (folder / fact.sha256).open("xb") as target:
                    for chunk in self._next(name, fact).content:
                        digest.update(chunk)
                        target.write(chunk)
                self._same(name, digest.hexdigest())
        for member in self._members:
            raise Refused(f"{self._where} has {member.name!r}, which is not listed in {PACK}. {NOTHING}")

    def _next(self, name: str, fact: FileFact | None) -> Member:
        """The next member, which has to be this one."""
        member = next(self._members, None)
        if member is None:
            raise Refused(f"{self._where} is not a whole pack of a run: it has no {name}. {NOTHING}")
        if member.name != name:
            raise Refused(f"{self._where} has {member.name!r} where {name!r} has to be. {NOTHING}")
        if fact is None or not name.startswith(OBJECTS):
            self._parsed -= member.size_bytes
        if self._parsed < 0 or (fact is not None and fact.size_bytes != member.size_bytes):
            raise Refused(
                f"{self._where}: {name} has {member.size_bytes:,} bytes, too many or not as listed. {NOTHING}"
            )
        return member

    def _whole(self, name: str) -> bytes:
        content = self._next(name, self.pack.files[name]).read()
        self._same(name, hashlib.sha256(content).hexdigest())
        return content

    def _same(self, name: str, sha256: str) -> None:
        if sha256 != self.pack.files[name].sha256:
            raise Tampered(f"{self._where}: {name} has other bytes than {PACK} says. {NOTHING}")

    def _check(self) -> None:
        """Raises Tampered where the members are not exactly the files of the run by its manifest."""
        layout.check(self.manifest)
        if self.manifest.run != self.pack.run:
            raise Tampered(
                f"{self._where}: {PACK} says run {self.pack.run}, its manifest {self.manifest.run}. {NOTHING}"
            )
        records = layout.records(self.manifest)
        needed = {fact.sha256: fact for fact in _facts(self.manifest)}
        expected = {RUN + path for path in records} | {OBJECTS + sha256 for sha256 in needed}
        for name in sorted(expected ^ self.pack.files.keys()):
            problem = "is missing" if name in expected else "belongs to nothing that its manifest tells of"
            raise Tampered(f"{self._where}: {name!r} {problem}. {NOTHING}")
        facts = {RUN + path: sha256 for path, sha256 in records.items() if sha256 is not None}
        for name, fact in self.pack.files.items():
            if fact.sha256 != facts.get(name, fact.sha256) or fact != needed.get(name.removeprefix(OBJECTS), fact):
                raise Tampered(f"{self._where}: {name} is not what its manifest says. {NOTHING}")
        try:  # an import into an empty folder makes it the project's
            tomllib.loads(self.records[PIPELINE].decode("utf-8-sig"))
        except ValueError as error:
            raise Tampered(f"{self._where}: {RUN}{PIPELINE} cannot be read: {error}. {NOTHING}") from error
        for state in self.manifest.steps:
            notebook = state.result.executed if state.result is not None else None
            if notebook is not None and notebook.size_bytes > self._parsed:
                raise Refused(
                    f"{self._where}: the executed notebook of {state.name} is too large to be read. {NOTHING}"
                )


def _records(manifest: RunManifest, store: Store) -> dict[str, tuple[FileFact, Path]]:
    """The run's records in its folder, by member."""
    members = {}
    for relative in layout.records(manifest):
        path = store.folder(manifest.run) / relative
        if not path.is_file():
            raise Refused(f"{path} is missing, so the run cannot be packed whole. See `runner verify {manifest.run}`.")
        members[RUN + relative] = (file_fact(path), path)
    return members


def _objects(manifest: RunManifest, store: Store, scratch: Path) -> dict[str, tuple[FileFact, Path]]:
    """(fact, a file with those bytes) by member; inputs that are only outside the store are copied, and checked."""
    outside: dict[str, Path] = {}
    for state in manifest.steps:
        for name in state.job.inputs if state.job is not None else ():
            artifact, where = layout.input_artifact(manifest, state, name), f"Input {name} of step {state.name}"
            source, place = recorded_input(manifest, state.name, name), scratch / state.name / name
            if artifact is not None and origin(source, where, store) is not None:
                copy(source, place, where, store)
                outside |= {fact.sha256: place / relative for relative, fact in facts_of(artifact).items()}
    members = {}
    for fact in _facts(manifest):
        path = outside.get(fact.sha256) or store.object(fact)
        if OBJECTS + fact.sha256 not in members and file_fact(path) != fact:
            raise Tampered(f"{path} was altered, so the run cannot be packed. See `runner verify {manifest.run}`.")
        members[OBJECTS + fact.sha256] = (fact, path)
    return members


def _facts(manifest: RunManifest) -> Iterator[FileFact]:
    """Every object that the run depends on."""
    for artifact in (*layout.placed(manifest), *layout.kept(manifest)):
        yield from facts_of(artifact).values()


def _write_folder(incoming: _Incoming, scratch: Store) -> Path:
    """Write the run's folder in the scratch store."""
    folder = scratch.folder(incoming.manifest.run)
    for path, content in incoming.records.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / path, content)
    for artifact in layout.placed(incoming.manifest):
        scratch.link(artifact, folder / artifact.path.rstrip("/"))
    return folder


def _seal(manifest: RunManifest, scratch: Store, store: Store) -> None:
    """Move the scratch store's objects to the store; the files of the run's folder stay links to them."""
    for artifact in layout.placed(manifest):
        store.seal(scratch.folder(manifest.run), artifact)
    for artifact in layout.kept(manifest):
        for fact in facts_of(artifact).values():
            store.seal(scratch.objects, Artifact(path=fact.sha256, sha256=fact.sha256, size_bytes=fact.size_bytes))


def _move(manifest: RunManifest, folder: Path, store: Store) -> RunManifest:
    """Rename the folder into the store; the run as it is there now."""
    try:
        folder.rename(store.folder(manifest.run))
    except OSError as error:
        existing = _existing(manifest, store)  # another process may have imported the same run meanwhile
        if existing is None:
            raise Refused(
                f"{store.folder(manifest.run)} is in the way, and is not a run: {error.strerror}. {NOTHING}"
            ) from error
        return existing
    fsync_folder(store.root)
    reach("run taken in")
    return manifest


def _existing(manifest: RunManifest, store: Store) -> RunManifest | None:
    """The run in the store. Raises Refused where that is another run of the same id."""
    if not (store.folder(manifest.run) / MANIFEST).exists():
        return None
    existing = store.manifest_as_written(manifest.run)
    if msgspec.structs.replace(existing, imported=manifest.imported, model_version=None) != manifest:
        raise Refused(f"Another run {manifest.run} is in {store.root} already; this one is not taken in.")
    return existing


def _order(names: Iterable[str]) -> list[str]:
    """The members' order: records first, so that they are checked before any object is read."""
    return sorted(names, key=lambda name: (name.startswith(OBJECTS), name))


def _plain(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner and time, so that equal content gives an equal file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member
