"""A run in one file, with all bytes it stands on: made by `pack`, taken in by `unpack` on another machine.

    pack.json            which run, every other member with its hash; for a version its registry's rows and events
    run/…                the records of the run's folder, see `runner.run.layout`
    objects/<sha256>     every input, output and executed notebook

Equal runs give equal files. What is taken in is untrusted: where anything in it, or in its manifest, is not as it has
to be, nothing is kept; the run's folder appears in one rename. No name in the archive is a path before it was compared
with the manifest, whose names cannot lead out of their folder; objects are named by what they hold.
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
from typing import IO, Any

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
from runner.run.inputs import copy, origin, recorded
from runner.run.registration import claimed
from runner.run.store import MANIFEST, Store, facts_of

PACK, RUN, OBJECTS = "pack.json", "run/", "objects/"
NOTHING = "Nothing of it was kept."
PARSED_RATIO, PARSED_FREE_BYTES = 4, 20_000_000  # as RATIO: for what is parsed, which takes many times that in memory
# where an import can be made to die; see runner.failpoint
FAILPOINTS = ("archive checked", "objects taken in", "run taken in", "version taken in")


class Pack(Record, frozen=True, kw_only=True):
    """pack.json. `versions` and `events` are those of the packed version's name, for an audit elsewhere."""

    format: int = FORMAT
    run: FileName
    files: dict[RelativePath, FileFact] = {}  # every other member
    versions: list[ModelVersion] = []
    events: list[Event] = []


@dataclass(frozen=True)
class Taken:
    """A run as it is in the store now; `version` is to be registered, None where none came with the run."""

    manifest: RunManifest
    version: NewVersion | None


def pack(manifest: RunManifest, store: Store, target: Path, evidence: Pack) -> int:
    """Write the run to `target` and give its size in bytes. Raises Refused where it goes on, or an input is gone.

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


def unpack(file: Path, store: Store, by: Imported) -> Taken:
    """Take the run in `file` into the store, as taken in by `by`. One that is there already stays as it is.

    Raises UsageError where the file cannot be read, Refused where it is not a pack of a run, another run of that id is
    there or the disk is full, Tampered where anything in it is not what it says. Nothing of it is kept then. Hold
    `store.shared()` around it.
    """
    scratch = Store(store.root / f".import-{secrets.token_hex(4)}")
    try:
        with file.open("rb") as opened:
            incoming = _Incoming(opened, str(file))
            mine = msgspec.structs.replace(incoming.manifest, imported=by, model_version=None)
            version = claimed(mine, incoming.pack.events) if incoming.pack.events else None
            if (there := _there(mine, store)) is not None:
                return Taken(there, version)
            incoming.objects(scratch.objects)
        folder = _laid_out(incoming, scratch)
        finding = next(iter(Verifier(scratch).run(incoming.manifest)), None)
        if finding is not None:
            raise Tampered(f"{file} is not sound, so nothing of it was kept: {finding}")
        atomic_write(folder / MANIFEST, encode(mine))
        reach("archive checked")
        _seal(mine, scratch, store)
        reach("objects taken in")
        return Taken(_appear(mine, folder, store), version)
    except (RecursionError, MemoryError) as error:
        raise Tampered(f"{file} has a record that is nested too deep, or takes too much memory. {NOTHING}") from error
    except OSError as error:
        if error.filename == str(file):
            raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
        what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        raise Refused(f"{file} cannot be taken in: {what}. {NOTHING}") from error
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)


class _Incoming:
    """An archive as far as it was read: all of its records at first, checked against each other, in memory."""

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
        """Raises Tampered where the members are not exactly those of the run that the manifest tells of."""
        layout.check(self.manifest)
        if self.manifest.run != self.pack.run:
            raise Tampered(
                f"{self._where}: {PACK} says run {self.pack.run}, its manifest {self.manifest.run}. {NOTHING}"
            )
        records = layout.records(self.manifest)
        needed = {fact.sha256: fact for fact in _facts(self.manifest)}
        wanted = {RUN + path for path in records} | {OBJECTS + sha256 for sha256 in needed}
        for name in sorted(wanted ^ self.pack.files.keys()):
            said = "is missing" if name in wanted else "belongs to nothing that its manifest tells of"
            raise Tampered(f"{self._where}: {name!r} {said}. {NOTHING}")
        facts = {RUN + path: sha256 for path, sha256 in records.items() if sha256 is not None}
        for name, fact in self.pack.files.items():
            if fact.sha256 != facts.get(name, fact.sha256) or fact != needed.get(name.removeprefix(OBJECTS), fact):
                raise Tampered(f"{self._where}: {name} is not what its manifest says. {NOTHING}")
        try:  # may become a project's
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
    """The run's records by member, as they lie in its folder."""
    found = {}
    for relative in layout.records(manifest):
        path = store.folder(manifest.run) / relative
        if not path.is_file():
            raise Refused(f"{path} is missing, so the run cannot be packed whole. See `runner verify {manifest.run}`.")
        found[RUN + relative] = (file_fact(path), path)
    return found


def _objects(manifest: RunManifest, store: Store, scratch: Path) -> dict[str, tuple[FileFact, Path]]:
    """(what is in it, a file with those bytes) by member; inputs that only lie outside are copied, and checked."""
    outside: dict[str, Path] = {}
    for state in manifest.steps:
        for name in state.job.inputs if state.job is not None else ():
            artifact, where = layout.given(manifest, state, name), f"Input {name} of step {state.name}"
            if artifact is None or origin(given := recorded(manifest, state.name, name), where, store) is None:
                continue
            copy(given, place := scratch / state.name / name, where, store)
            for relative, fact in facts_of(artifact).items():
                outside[fact.sha256] = place / relative if relative else place
    found = {}
    for fact in _facts(manifest):
        path = outside.get(fact.sha256) or store.object(fact)
        if OBJECTS + fact.sha256 not in found and file_fact(path) != fact:
            raise Tampered(f"{path} was altered, so the run cannot be packed. See `runner verify {manifest.run}`.")
        found[OBJECTS + fact.sha256] = (fact, path)
    return found


def _facts(manifest: RunManifest) -> Iterator[FileFact]:
    """Of every object that the run stands on."""
    for artifact in (*layout.placed(manifest), *layout.kept(manifest)):
        yield from facts_of(artifact).values()


def _laid_out(incoming: _Incoming, scratch: Store) -> Path:
    """The run's folder in the scratch store, as it was where it comes from."""
    folder = scratch.folder(incoming.manifest.run)
    for path, content in incoming.records.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / path, content)
    for artifact in layout.placed(incoming.manifest):
        scratch.link(artifact, folder / artifact.path.rstrip("/"))
    return folder


def _seal(manifest: RunManifest, scratch: Store, store: Store) -> None:
    """Make the scratch store's objects the store's, to which the files of the run's folder are links."""
    for artifact in layout.placed(manifest):
        store.seal(scratch.folder(manifest.run), artifact)
    for artifact in layout.kept(manifest):
        for fact in facts_of(artifact).values():
            store.seal(scratch.objects, Artifact(path=fact.sha256, sha256=fact.sha256, size_bytes=fact.size_bytes))


def _appear(manifest: RunManifest, folder: Path, store: Store) -> RunManifest:
    """Put the folder where the store's runs are, whole; the run as it is there now."""
    try:
        folder.rename(store.folder(manifest.run))
    except OSError as error:
        there = _there(manifest, store)  # unless another process took the same run in meanwhile
        if there is None:
            raise Refused(
                f"{store.folder(manifest.run)} is in the way, and is not a run: {error.strerror}. {NOTHING}"
            ) from error
        return there
    fsync_folder(store.root)
    reach("run taken in")
    return manifest


def _there(manifest: RunManifest, store: Store) -> RunManifest | None:
    """The run as the store has it already. Raises Refused where that is another of the same id."""
    if not (store.folder(manifest.run) / MANIFEST).exists():
        return None
    there = store.manifest_as_written(manifest.run)
    if msgspec.structs.replace(there, imported=manifest.imported, model_version=None) != manifest:
        raise Refused(f"Another run {manifest.run} is in {store.root} already; this one is not taken in.")
    return there


def _order(names: Iterable[str]) -> list[str]:
    """As the members follow each other: records first, so that they are checked before any object comes."""
    return sorted(names, key=lambda name: (name.startswith(OBJECTS), name))


def _plain(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner and time, so that equal content gives an equal file."""
    made: Any = tarfile.TarInfo(name)
    made.size, made.mode = size, 0o644
    return made  # type: ignore[no-any-return]
