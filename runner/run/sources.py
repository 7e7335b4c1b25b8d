"""Where a step's inputs come from: local paths, remote addresses, approved versions; each identified before use.

A remote source is downloaded once per version and kept as an object. The service's version (ETag, VersionId) is
recorded beside the hash of the bytes; credentials and signatures in an address never are.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import msgspec

from runner.content import artifact, atomic_write, file_fact, folder_artifact, link_to, stamp
from runner.errors import RemoteError, Tampered, UsageError, counted
from runner.paths import inside, stays_below
from runner.pipeline.addresses import public
from runner.pipeline.file import is_address
from runner.records import Artifact, FileFact, InputFact, InputSpec, Pipeline, Record, encode, read
from runner.run.store import Store, facts_of

FETCHED = "fetched"  # folder of the store: which version of an address is which object
LISTINGS = "listings"  # folder of the store: what lay below an address, by the hash of the listing


@dataclass(frozen=True)
class RemoteFile:
    """One file behind an address: its path below it ("" for the address itself), size and version."""

    path: str
    size_bytes: int | None
    version: str


class RemoteSource(Protocol):
    """A remote store. Both raise RemoteError naming the address and what to do."""

    def listing(self, address: str) -> list[RemoteFile]:
        """The file at `address`, or all below it where it ends in `/`; sorted by path, never empty."""

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        """Write the file's bytes to `target`; a file cut short is an error."""


class _Fetched(Record, frozen=True, kw_only=True):
    format: int = 1
    address: str
    version: str
    fact: FileFact


def local(spec: InputSpec, root: Path, store: Store) -> InputFact:
    """A file or folder outside the store; with `keep` its bytes become objects too."""
    path = (root / Path(spec.from_).expanduser()).resolve()
    if spec.optional and not path.exists():
        return absent(spec.from_)
    before = stamp(path)
    content = artifact(path, name=path.name)
    if not spec.keep:
        return InputFact(source=str(path), artifact=content, stamp=before)
    for relative, fact in facts_of(content).items():
        store.add(path / relative, fact)
    return InputFact(source=str(path), artifact=content)


def absent(source: str) -> InputFact:
    return InputFact(source=source, present=False)


def remote(
    spec: InputSpec, store: Store, remote_for: Callable[[str], RemoteSource], *, fetch: bool = True
) -> InputFact:
    """An address: identified by a listing for `as = "uri"` or without `fetch`, otherwise by its bytes, which are
    downloaded if the store does not have this version."""
    address = spec.from_
    if not stays_below(address):
        raise UsageError(f"The address {address!r} cannot be recorded; write it without `..` and control characters.")
    service = remote_for(address)
    public_address = public(address)
    try:
        files = service.listing(address)
    except RemoteError:
        if spec.optional:
            return absent(public_address)
        raise
    for file in files:
        if file.path:
            inside(file.path)
    version = files[0].version if len(files) == 1 and not files[0].path else listing_digest(files)
    if spec.as_ == "uri" or not fetch:
        size = sum(file.size_bytes or 0 for file in files)
        content = Artifact(path=public_address, sha256=_keep_listing(files, store), size_bytes=size)
        value = public_address if spec.as_ == "uri" else ""
        return InputFact(
            source=public_address, as_=spec.as_, artifact=content, version=version, value=value, listed=True
        )
    facts = {file.path: _fetch(address, file, store, service) for file in files}
    if list(facts) == [""]:
        content = Artifact(path=public_address, sha256=facts[""].sha256, size_bytes=facts[""].size_bytes)
    else:
        content = folder_artifact(public_address, facts)
    return InputFact(source=public_address, artifact=content, version=version)


def without_credentials(pipeline: Pipeline) -> Pipeline:
    """The pipeline as it is recorded: without the credentials in its addresses."""
    steps = {}
    for name, step in pipeline.steps.items():
        inputs = {
            key: msgspec.structs.replace(spec, from_=public(spec.from_)) if is_address(spec.from_) else spec
            for key, spec in step.inputs.items()
        }
        steps[name] = msgspec.structs.replace(step, inputs=inputs)
    return msgspec.structs.replace(pipeline, steps=steps)


def public_values(values: Mapping[str, str]) -> dict[str, str]:
    """The values of -p as they are recorded: without the credentials in addresses."""
    return {name: public(value) if is_address(value) else value for name, value in values.items()}


def changed_objects(before: str, now: str, store: Store) -> str | None:
    """How two listings with these hashes differ: "1 of 100,000 objects changed"; None where one was not kept."""
    try:
        old, new = (_listing(sha256, store) for sha256 in (before, now))
    except (OSError, ValueError):
        return None
    changed = sum(old[path] != line for path, line in new.items() if path in old)
    counts = {
        f"{changed:,} of {counted(len(new), 'object')} changed": changed,
        f"{len(new.keys() - old.keys()):,} added": len(new.keys() - old.keys()),
        f"{len(old.keys() - new.keys()):,} removed": len(old.keys() - new.keys()),
    }
    return ", ".join(words for words, count in counts.items() if count)


def name_only(fact: InputFact, name: str, *_: object) -> InputFact:
    """As `place_input` for a step that runs elsewhere: the input's path, with nothing put there."""
    if not fact.is_file:
        return fact
    return msgspec.structs.replace(fact, value=f"in/{name}", stamp="")


def place_input(fact: InputFact, name: str, folder: Path, store: Store) -> InputFact:
    """Put the input where its step reads it, `in/<name>`: a link to the source, or links to objects."""
    if not fact.is_file:
        return fact
    assert fact.artifact is not None
    target = folder / "in" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if fact.stamp:
        source = Path(fact.source)
        is_link = link_to(target, source)
        # where the source has changed, its old stamp stays, so that the end of the step notices the change
        now = fact.stamp if is_link or stamp(source) != fact.stamp else stamp(target)
        return msgspec.structs.replace(fact, value=f"in/{name}", stamp=now)
    store.link(fact.artifact, target)
    return msgspec.structs.replace(fact, value=f"in/{name}", stamp=stamp(target))


def _fetch(address: str, file: RemoteFile, store: Store, service: RemoteSource) -> FileFact:
    public_address = public(address)  # the same whenever it is signed again
    key = hashlib.sha256(f"{public_address}\n{file.path}".encode()).hexdigest()
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
            raise RemoteError(
                f"{public_address}{file.path}: {fact.size_bytes} of {file.size_bytes} bytes arrived. Run again."
            )
        store.seal(store.objects, Artifact(path=beside.name, sha256=fact.sha256, size_bytes=fact.size_bytes))
    finally:
        beside.unlink(missing_ok=True)
    index.parent.mkdir(exist_ok=True)
    atomic_write(index, encode(_Fetched(address=public_address + file.path, version=file.version, fact=fact)))
    return fact


def listing_lines(files: list[RemoteFile]) -> str:
    """The listing as text, a line for each file; equal while all sizes and versions are."""
    return "".join(f"{file.version}  {file.size_bytes}  {file.path}\n" for file in files)


def listing_digest(files: list[RemoteFile]) -> str:
    """The hash of `listing_lines`."""
    return hashlib.sha256(listing_lines(files).encode()).hexdigest()


def _keep_listing(files: list[RemoteFile], store: Store) -> str:
    """Keep the listing, so that a later one can be compared with it; its hash."""
    sha256 = listing_digest(files)
    path = store.root / LISTINGS / f"{sha256}.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, gzip.compress(listing_lines(files).encode(), 6, mtime=0))
    return sha256


def _listing(sha256: str, store: Store) -> dict[str, str]:
    """Version and size by path."""
    text = gzip.decompress((store.root / LISTINGS / f"{sha256}.gz").read_bytes()).decode()
    parts = [line.split("  ", 2) for line in text.splitlines()]
    return {path: f"{version}  {size}" for version, size, path in parts}
