"""Runs that several people and CI share: each machine has its own folder; this sends its runs and receives others.

    <address>/manifests/<run>.json     run.json, written last
    <address>/records/<run>.tar.gz     the run's folder without what is an object
    <address>/objects/<sha256>         outputs, executed notebooks, kept sources, unless S3 has them already
    <address>/owners/<run>.json        who works on the run; gone once it has ended

Of a run of another machine the manifest is copied at once; its records and bytes are when it is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from runner.audit.archive import NOTHING
from runner.audit.tarball import Tarball
from runner.aws.bucket import Bucket
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.content import atomic_write, file_fact
from runner.errors import NewerStore, Refused, Tampered
from runner.escape import terminal
from runner.manifest import RunManifest
from runner.records import FORMAT, Artifact, Record, decode, encode, read
from runner.run import layout
from runner.run.cache import Cache
from runner.run.folder import KEYS, STEPS
from runner.run.ids import RUN_ID
from runner.run.store import MANIFEST, OWNED, Store, facts_of
from runner.step.execute import EXECUTED

COPIED = "shared.json"  # file of the store: the ETag of each manifest that was copied
CHECKOUT = "checkout"  # file of the store: a random name, as two checkouts may be on one host, or on hosts of one name
LARGEST_RECORDS_BYTES = 500_000_000  # unpacked; notebooks and their modules, no data

log = logging.getLogger(__name__)


class Owner(Record, frozen=True, kw_only=True):
    """Who works on a run."""

    format: int = FORMAT
    host: str
    pid: int
    who: str
    checkout: str = ""

    def is_same(self, other: Owner) -> bool:
        """Whether both are of one checkout, whose own locks tell its processes apart."""
        return (self.host, self.checkout) == (other.host, other.checkout)


class CopiedManifests(Record, frozen=True, kw_only=True):
    """The ETag of each run's manifest that was copied."""

    format: int = FORMAT
    manifests: dict[str, str] = {}


class SharedRuns:
    """Implements `runner.run.ports.RunSharing`; asks nothing of S3 before one of its methods is called."""

    def __init__(self, address: str, store: Store, project: Path, session: Session) -> None:
        bucket, key = split(address)
        self.place = Bucket(session, bucket, f"{key.strip('/')}/" if key.strip("/") else "")
        self.store, self.project = store, project
        self._uploaded: set[str] = set()  # hashes of objects known to be in the bucket

    def claim(self, manifest: RunManifest, *, take_over: bool = False) -> None:
        """Own the run, also against other machines. Raises Refused naming who does."""
        key = f"owners/{manifest.run}.json"
        mine = self._me(manifest.started_by)
        if self.place.put(key, encode(mine), once=not take_over):
            return
        owner = self._owner(manifest.run) or mine
        if not owner.is_same(mine):
            raise Refused(
                f"Run {manifest.run} is being worked on by {owner.who} on {owner.host}, in another checkout. "
                f"If that machine is gone: `runner resume {manifest.run} --take-over`."
            )
        self.place.put(key, encode(mine))

    def push(self, manifest: RunManifest, *, ended: bool) -> None:
        """Send what is new of the run. Idempotent."""
        for artifact in [artifact for state in manifest.steps for artifact in _of_step(manifest, state.name)]:
            for fact in facts_of(artifact).values():
                if fact.sha256 not in self._uploaded and self.store.has(fact):
                    self.place.upload(f"objects/{fact.sha256}", self.store.object(fact))
                self._uploaded.add(fact.sha256)
        self.place.put(f"records/{manifest.run}.tar.gz", self._records(manifest))
        self.place.put(f"manifests/{manifest.run}.json", encode(manifest))
        if ended:
            self.place.delete(f"owners/{manifest.run}.json")

    def pull(self) -> list[str]:
        """Copy the manifests of runs that are new in the bucket, or have changed; their ids."""
        listed = self._runs_below("manifests/")
        owners = {run: owner for run in self._runs_below("owners/") if (owner := self._owner(run)) is not None}
        me = self._me("") if owners else None
        others = {run: owner for run, owner in owners.items() if me is not None and not owner.is_same(me)}
        file = self.store.root / COPIED
        copied = dict(read(CopiedManifests, file).manifests) if file.exists() else {}
        mine = owners.keys() - others.keys()  # of these the local manifest is the true one
        new = [run for run, etag in sorted(listed.items()) if copied.get(run) != etag and run not in mine]
        with self.store.shared():
            for run in new:
                try:
                    self._take_in(run)
                except (Tampered, NewerStore) as error:  # the others are there all the same
                    log.warning("run %s is shared and cannot be taken in: %s", run, terminal(str(error)))
                else:
                    copied[run] = listed[run]
            for run in copied:
                self._mark(run, others.get(run))
        if new:
            self.store.root.mkdir(exist_ok=True)
            atomic_write(file, encode(CopiedManifests(manifests=copied)))
        return new

    def _runs_below(self, folder: str) -> dict[str, str]:
        """The ETag of each run's file in a folder of the bucket."""
        runs = {key.removeprefix(folder).removesuffix(".json"): etag for key, etag in self.place.etags(folder)}
        return {run: etag for run, etag in runs.items() if RUN_ID.match(run)}

    def complete(self, run: str) -> None:
        """Copy the records and executed notebooks of a run of which the manifest was copied."""
        folder = self.store.folder(run)
        if not (folder / OWNED).exists() and (folder / STEPS).is_dir():
            return
        content = self.place.get(f"records/{run}.tar.gz")
        if content is None:
            return
        scratch = self.store.root / f".import-{secrets.token_hex(4)}"
        with self.store.shared():
            manifest = self.store.manifest_as_written(run)
            try:
                (scratch / STEPS).mkdir(parents=True)
                self._unpack(content, manifest, scratch)
                for state in manifest.steps:
                    if state.result is not None and state.result.executed is not None:
                        self.store.link(state.result.executed, scratch / STEPS / state.name / EXECUTED)
                self._put_in_place(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _unpack(self, content: bytes, manifest: RunManifest, target: Path) -> None:
        """Write the run's records into the folder: those that its manifest tells of, and no others."""
        where = self.place.address(f"records/{manifest.run}.tar.gz")
        known = layout.records(manifest)
        for member in Tarball(io.BytesIO(content), most_bytes=LARGEST_RECORDS_BYTES, where=where):
            if member.name not in known or (target / member.name).exists():
                continue  # of another state of the run, or of a release that shared its pages too
            (target / member.name).parent.mkdir(parents=True, exist_ok=True)
            with (target / member.name).open("wb") as file:
                file.writelines(member.content)
            if known[member.name] not in (None, file_fact(target / member.name).sha256):
                raise Tampered(f"{where}: {member.name} is not what the manifest says. {NOTHING}")

    def _put_in_place(self, scratch: Path, folder: Path) -> None:
        """Its steps at once, so that a run is complete or not; file by file where there are earlier ones."""
        for path in scratch.iterdir():
            if path.name not in (STEPS, MANIFEST):
                path.replace(folder / path.name)
        if not (folder / STEPS).exists():
            (scratch / STEPS).rename(folder / STEPS)
            return
        for path in sorted(path for path in (scratch / STEPS).rglob("*") if path.is_file()):
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)

    def _take_in(self, run: str) -> None:
        """Copy the manifest, and note where its bytes are and what may be reused, unless it is being run here."""
        content = self.place.get(f"manifests/{run}.json")
        folder = self.store.folder(run)
        if content is None or (not (folder / OWNED).exists() and self.store.locked(run)):
            return
        manifest = decode(RunManifest, content, where=self.place.address(f"manifests/{run}.json"))
        layout.check(manifest)
        if manifest.run != run or ((folder / MANIFEST).exists() and (folder / MANIFEST).read_bytes() == content):
            return
        for state in manifest.steps:
            remote = state.result.remote if state.result is not None else None
            for artifact in _of_step(manifest, state.name):
                for relative, fact in facts_of(artifact).items():
                    if self.store.has(fact) or self.store.address(fact) is not None:
                        continue
                    address = self.place.address(f"objects/{fact.sha256}")
                    if remote is not None and remote.at and artifact.path.partition("/")[0] not in ("in", KEYS):
                        path = f"{artifact.path.rstrip('/')}/{relative}" if relative else artifact.path
                        address = remote.at + path
                    self.store.note_address(fact, address)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / MANIFEST, content)
        cache = Cache(self.store, self.project)
        for state in manifest.steps if manifest.imported is None else ():
            if state.status == "succeeded" and state.key is not None and state.result is not None:
                cache.remember(run, state)

    def _mark(self, run: str, other: Owner | None) -> None:
        """Note in the run's folder that another machine works on it, or that none does."""
        mark = self.store.folder(run) / OWNED
        if other is None:
            mark.unlink(missing_ok=True)
        elif mark.parent.is_dir() and not self.store.locked(run):
            atomic_write(mark, f"{other.who} on {other.host}".encode())

    def _owner(self, run: str) -> Owner | None:
        key = f"owners/{run}.json"
        content = self.place.get(key)
        return decode(Owner, content, where=self.place.address(key)) if content is not None else None

    def _me(self, who: str) -> Owner:
        file = self.store.root / CHECKOUT
        if not file.exists():
            self.store.root.mkdir(exist_ok=True)
            beside = file.with_name(f".{CHECKOUT}-{secrets.token_hex(4)}")
            beside.write_text(secrets.token_hex(8), encoding="ascii")
            with contextlib.suppress(OSError):  # another process was first, or the file system has no links
                os.link(beside, file)
            if file.exists():
                beside.unlink()
            else:
                beside.replace(file)
        return Owner(host=socket.gethostname(), pid=os.getpid(), who=who, checkout=file.read_text(encoding="ascii"))

    def _records(self, manifest: RunManifest) -> bytes:
        folder, whole = self.store.folder(manifest.run), io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w:gz", format=tarfile.PAX_FORMAT, compresslevel=6) as archive:
            for relative in sorted(layout.records(manifest)):
                with contextlib.suppress(FileNotFoundError):  # running steps write at the same time
                    content = (folder / relative).read_bytes()
                    member = tarfile.TarInfo(relative)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return whole.getvalue()


def _of_step(manifest: RunManifest, name: str) -> Iterator[Artifact]:
    """What a step's folder has as objects: outputs, executed notebook, and inputs whose bytes were kept."""
    result = manifest.step(name).result
    if result is not None:
        yield from result.artifacts()
    for key, fact in manifest.sources.items():
        step, _, input_name = key.partition(".")
        if step == name and fact.kept is not None:
            yield msgspec.structs.replace(fact.kept, path=f"in/{input_name}")
