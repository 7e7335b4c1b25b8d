"""Where a step's inputs come from: local paths, remote addresses, approved versions; each identified before use.

A remote source is downloaded once per version of it and kept as an object. What a store calls its version (ETag,
VersionId) is recorded beside the hash of the bytes; of its address, what signs it or lets one in never is.
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

from runner.content import artifact, atomic_write, file_fact, folder_artifact, lead_to, stamp
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


def remote(
    spec: InputSpec, store: Store, remote_for: Callable[[str], RemoteSource], *, fetch: bool = True
) -> InputFact:
    """An address: identified by a listing for `as = "uri"` or without `fetch`, otherwise downloaded where this version
    is not here yet."""
    address = spec.from_
    if not stays_below(address):
        raise UsageError(f"The address {address!r} cannot be recorded; write it without `..` and control characters.")
    service = remote_for(address)
    said = public(address)
    try:
        files = service.listing(address)
    except RemoteError:
        if spec.optional:
            return absent(said)
        raise
    for file in files:
        if file.path:
            inside(file.path)
    version = files[0].version if len(files) == 1 and not files[0].path else listing_digest(files)
    if spec.as_ == "uri" or not fetch:
        size = sum(file.size_bytes or 0 for file in files)
        found = Artifact(path=said, sha256=_keep_listing(files, store), size_bytes=size)
        value = said if spec.as_ == "uri" else ""
        return InputFact(source=said, as_=spec.as_, artifact=found, version=version, value=value, listed=True)
    facts = {file.path: _fetch(address, file, store, service) for file in files}
    if list(facts) == [""]:
        found = Artifact(path=said, sha256=facts[""].sha256, size_bytes=facts[""].size_bytes)
    else:
        found = folder_artifact(said, facts)
    return InputFact(source=said, artifact=found, version=version)


def without_credentials(pipeline: Pipeline) -> Pipeline:
    """The pipeline as it is written down: its addresses without what lets one in."""
    steps = {}
    for name, step in pipeline.steps.items():
        inputs = {
            key: msgspec.structs.replace(spec, from_=public(spec.from_)) if is_address(spec.from_) else spec
            for key, spec in step.inputs.items()
        }
        steps[name] = msgspec.structs.replace(step, inputs=inputs)
    return msgspec.structs.replace(pipeline, steps=steps)


def public_values(values: Mapping[str, str]) -> dict[str, str]:
    """-p's values as they are written down."""
    return {name: public(value) if is_address(value) else value for name, value in values.items()}


def changed_objects(before: str, now: str, store: Store) -> str | None:
    """ "1 of 100,000 objects changed": how two listings with these hashes differ; None where one was not kept."""
    try:
        old, new = (_listing(sha256, store) for sha256 in (before, now))
    except (OSError, ValueError):
        return None
    changed = sum(old[path] != line for path, line in new.items() if path in old)
    said = [f"{changed:,} of {counted(len(new), 'object')} changed"] if changed else []
    said += [f"{count:,} added"] if (count := len(new.keys() - old.keys())) else []
    said += [f"{count:,} removed"] if (count := len(old.keys() - new.keys())) else []
    return ", ".join(said)


def name_only(fact: InputFact, name: str, *_: object) -> InputFact:
    """As `place_input` for a step that runs elsewhere: its input's place, with nothing put there."""
    if not fact.present or fact.as_ == "uri":
        return fact
    return msgspec.structs.replace(fact, value=f"in/{name}", stamp="")


def place_input(fact: InputFact, name: str, folder: Path, store: Store) -> InputFact:
    """Put the input where its step finds it, `in/<name>`: a link to the source, or links to objects."""
    if not fact.present or fact.as_ == "uri":
        return fact
    assert fact.artifact is not None
    target = folder / "in" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if fact.stamp:
        source = Path(fact.source)
        led = lead_to(target, source)
        # a copy of what had changed by then keeps the source's stamp, by which the step's end notices it
        now = fact.stamp if led or stamp(source) != fact.stamp else stamp(target)
        return msgspec.structs.replace(fact, value=f"in/{name}", stamp=now)
    store.link(fact.artifact, target)
    return msgspec.structs.replace(fact, value=f"in/{name}", stamp=stamp(target))


def _fetch(address: str, file: RemoteFile, store: Store, service: RemoteSource) -> FileFact:
    said = public(address)  # an address that is signed anew is the same address
    key = hashlib.sha256(f"{said}\n{file.path}".encode()).hexdigest()
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
            raise RemoteError(f"{said}{file.path}: {fact.size_bytes} of {file.size_bytes} bytes arrived. Run again.")
        store.seal(store.objects, Artifact(path=beside.name, sha256=fact.sha256, size_bytes=fact.size_bytes))
    finally:
        beside.unlink(missing_ok=True)
    index.parent.mkdir(exist_ok=True)
    atomic_write(index, encode(_Fetched(address=said + file.path, version=file.version, fact=fact)))
    return fact


def listing_lines(files: list[RemoteFile]) -> str:
    """The listing as text, a line a file; equal while every file has its size and version."""
    return "".join(f"{file.version}  {file.size_bytes}  {file.path}\n" for file in files)


def listing_digest(files: list[RemoteFile]) -> str:
    """The hash by which a listing is known."""
    return hashlib.sha256(listing_lines(files).encode()).hexdigest()


def _keep_listing(files: list[RemoteFile], store: Store) -> str:
    """Write the listing beside the objects, so that a later one can be told apart from it; its hash."""
    place = store.root / LISTINGS / f"{(sha256 := listing_digest(files))}.gz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, gzip.compress(listing_lines(files).encode(), 6, mtime=0))
    return sha256


def _listing(sha256: str, store: Store) -> dict[str, str]:
    """Version and size by path."""
    text = gzip.decompress((store.root / LISTINGS / f"{sha256}.gz").read_bytes()).decode()
    parts = [line.split("  ", 2) for line in text.splitlines()]
    return {path: f"{version}  {size}" for version, size, path in parts}
