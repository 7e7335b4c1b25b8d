"""Where a step's inputs come from: local paths, remote addresses, approved versions; each identified before use.

A remote source is downloaded once per version of it and kept as an object. What a store calls its version (ETag,
VersionId) is recorded beside the hash of the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import msgspec

from runner.content import artifact, atomic_write, file_fact, folder_artifact, stamp
from runner.errors import RemoteError, Tampered
from runner.records import Artifact, FileFact, InputFact, InputSpec, Record, encode, read
from runner.run.store import Store, facts_of, inside

FETCHED = "fetched"  # folder of the store: which version of an address is which object


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address: its path below it ("" for the address itself), size and version."""

    path: str
    size_bytes: int | None
    version: str


class Remote(Protocol):
    """A remote store. Both raise RemoteError naming the address and what to do."""

    def listing(self, address: str) -> list[RemoteFile]:
        """The one file at `address`, or all below it where it ends in `/`; sorted by path, never empty."""

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        """Write the file's bytes to `target`; a file cut short is an error."""


class _Fetched(Record, frozen=True, kw_only=True):
    format: int = 1
    address: str
    version: str
    fact: FileFact


def local(spec: InputSpec, root: Path, store: Store) -> InputFact:
    """A file or folder outside the store; with `keep` its bytes become objects too. Absent and optional: absent."""
    path = (root / Path(spec.from_).expanduser()).resolve()
    if spec.optional and not path.exists():
        return absent(spec.from_)
    before = stamp(path)
    found = artifact(path, name=path.name)
    if not spec.keep:
        return InputFact(source=str(path), artifact=found, stamp=before)
    for relative, fact in facts_of(found).items():
        store.add(path / relative if relative else path, fact)
    return InputFact(source=str(path), artifact=found)


def absent(source: str) -> InputFact:
    return InputFact(source=source, present=False)


def remote(spec: InputSpec, store: Store, remote_for: Callable[[str], Remote]) -> InputFact:
    """An address: identified by a listing for `as = "uri"`, otherwise downloaded where this version is not here yet."""
    address = spec.from_
    service = remote_for(address)
    try:
        files = service.listing(address)
    except RemoteError:
        if spec.optional:
            return absent(address)
        raise
    for file in files:
        if file.path:
            inside(file.path)
    version = files[0].version if len(files) == 1 and not files[0].path else _digest(files)
    if spec.as_ == "uri":
        size = sum(file.size_bytes or 0 for file in files)
        found = Artifact(path=address, sha256=_digest(files), size_bytes=size)
        return InputFact(source=address, as_="uri", artifact=found, version=version, value=address)
    facts = {file.path: _fetch(address, file, store, service) for file in files}
    if list(facts) == [""]:
        found = Artifact(path=address, sha256=facts[""].sha256, size_bytes=facts[""].size_bytes)
    else:
        found = folder_artifact(address, facts)
    return InputFact(source=address, artifact=found, version=version)


def place(fact: InputFact, name: str, folder: Path, store: Store) -> InputFact:
    """Put the input where its step finds it, `in/<name>`: a link to the source, or links to objects."""
    if not fact.present or fact.as_ == "uri":
        return fact
    assert fact.artifact is not None
    target = folder / "in" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if fact.stamp:
        target.unlink(missing_ok=True)
        target.symlink_to(fact.source)
        return msgspec.structs.replace(fact, value=f"in/{name}")
    store.link(fact.artifact, target)
    return msgspec.structs.replace(fact, value=f"in/{name}", stamp=stamp(target))


def _fetch(address: str, file: RemoteFile, store: Store, service: Remote) -> FileFact:
    key = hashlib.sha256(f"{address}\n{file.path}".encode()).hexdigest()
    index = store.root / FETCHED / f"{key}.json"
    if index.exists() and file.version:
        known = read(_Fetched, index)
        with contextlib.suppress(Tampered):  # an object that is gone or altered is fetched again
            if known.version == file.version and file_fact(store.object(known.fact)) == known.fact:
                return known.fact
    beside = store.objects / f".fetch-{secrets.token_hex(4)}"
    try:
        with beside.open("wb") as target:
            service.download(address, file, target)
        fact = file_fact(beside)
        if file.size_bytes is not None and fact.size_bytes != file.size_bytes:
            raise RemoteError(f"{address}{file.path}: {fact.size_bytes} of {file.size_bytes} bytes arrived. Run again.")
        store.seal(store.objects, Artifact(path=beside.name, sha256=fact.sha256, size_bytes=fact.size_bytes))
    finally:
        beside.unlink(missing_ok=True)
    index.parent.mkdir(exist_ok=True)
    atomic_write(index, encode(_Fetched(address=address + file.path, version=file.version, fact=fact)))
    return fact


def _digest(files: list[RemoteFile]) -> str:
    lines = "".join(f"{file.version}  {file.size_bytes}  {file.path}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
