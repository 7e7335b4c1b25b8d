"""A registry's events and facts as objects of a bucket, each written once and never changed.

registry/<name>/events/000001.json          one event; its number is free exactly once
registry/<name>/facts/<run>-<sha256>.json   what a run registers, written before the version is made

What was read is kept, in memory and in a folder, so that a history of any length costs one listing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.content import atomic_write
from runner.errors import NewerStore, Tampered
from runner.model.copies import facts_json, facts_of
from runner.model.versions import Event, NewVersion
from runner.records import FORMAT, Record, checked, decode, encode

ROOT = "registry/"
NAME_OF = re.compile(r"registry/([A-Za-z0-9][A-Za-z0-9-]{0,62})/(?:events|facts)/[^/]+\.json\Z")
EVENT = re.compile(r"registry/[^/]+/events/\d{6,}\.json\Z")
READERS = 16

Objects = dict[str, str]  # key -> ETag


class ReadObject(Record, frozen=True, kw_only=True):
    etag: str
    content: bytes


class HistoryCache(Record, frozen=True, kw_only=True):
    """What was read of one name before, by address."""

    format: int = FORMAT
    objects: dict[str, ReadObject] = {}


class History:
    """Reads and adds to the histories below `registry/` of the bucket; safe for many processes at once."""

    def __init__(self, bucket: Bucket, cache: Path | None = None) -> None:
        self.bucket = bucket
        self.cache = cache
        self._names: dict[str, dict[str, ReadObject]] = {}  # of each name, by address

    def listed(self, name: str | None = None) -> dict[str, Objects]:
        """What there is of each name, or of one; a call per thousand objects."""
        below = ROOT if name is None else f"{ROOT}{name}/"
        objects: dict[str, Objects] = {}
        for key, etag in self.bucket.etags(below):
            match = NAME_OF.match(key)
            if match is not None:
                objects.setdefault(match[1], {})[key] = etag
        return objects

    def events(self, name: str, objects: Objects) -> list[Event]:
        """The name's events in order, as they are written. Raises Tampered for one that is gone or was replaced."""
        for address in self._known(name):
            key = address.removeprefix(self.bucket.address(""))
            if EVENT.match(key) and key not in objects:
                raise Tampered(
                    f"{address} was there before and is gone: the history of {name} was altered.{self._memory(name)}"
                )
        keys = sorted(key for key in objects if EVENT.match(key))
        content = self._read(name, {key: objects[key] for key in keys})
        events = [decode(Event, content[key], where=self.bucket.address(key)) for key in keys]
        if any(event.name != name for event in events):
            raise Tampered(f"The history of {name} has events of another name: one was moved.")
        return events

    def append(self, event: Event) -> bool:
        """Write the event under its number; False where that number has been taken by another event."""
        key, content = f"{ROOT}{event.name}/events/{event.seq:06}.json", encode(event)
        # a write whose reply was lost is refused when it is tried again, and was this one nevertheless
        return self.bucket.put(key, content, once=True) or self.bucket.get(key) == content

    def facts(self, name: str, wanted: Mapping[str, str], objects: Objects) -> dict[str, NewVersion]:
        """What each run registered, by run; `wanted` has the hash of its facts. Raises Tampered where they differ."""
        keys = {run: facts_key(name, run, sha256) for run, sha256 in wanted.items()}
        content = self._read(name, {key: objects.get(key, "") for key in keys.values()})
        facts_of_run = {}
        for run, key in keys.items():
            facts = decode(NewVersion, content[key], where=self.bucket.address(key))
            if (facts_sha256(facts), facts.run, facts.name) != (wanted[run], run, name):
                raise Tampered(f"{self.bucket.address(key)} is not what was registered: it was altered.")
            facts_of_run[run] = facts
        return facts_of_run

    def keep_facts(self, new: NewVersion) -> None:
        """Write what the run is going to register; idempotent."""
        self.bucket.put(facts_key(new.name, new.run, facts_sha256(new)), encode(facts_of(new)))

    def _read(self, name: str, objects: Objects) -> dict[str, bytes]:
        """The objects' content by key, fetched where it is not known. Raises Tampered for a gone or changed one."""
        known = self._known(name)
        addresses = {key: self.bucket.address(key) for key in objects}
        fetched = [
            key
            for key, etag in objects.items()
            if not etag or addresses[key] not in known or known[addresses[key]].etag != etag
        ]
        with ThreadPoolExecutor(READERS) as readers:
            contents = list(readers.map(self.bucket.get, fetched))
        for key, content in zip(fetched, contents, strict=True):
            if content is None:
                raise Tampered(f"{addresses[key]} is gone: the history of {name} was altered.")
            before = known.get(addresses[key])
            if before is not None and before.content != content:
                raise Tampered(f"{addresses[key]} was replaced: the history of {name} was altered.{self._memory(name)}")
            known[addresses[key]] = ReadObject(etag=objects[key], content=content)
        if fetched and self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
            atomic_write(self.cache / f"{name}.json", encode(HistoryCache(objects=known)))
        return {key: known[addresses[key]].content for key in objects}

    def _memory(self, name: str) -> str:
        return f" What it was is in {self.cache / name}.json." if self.cache is not None else ""

    def _known(self, name: str) -> dict[str, ReadObject]:
        if name not in self._names:
            self._names[name] = {}
            file = self.cache / f"{name}.json" if self.cache is not None else None
            if file is not None and file.exists():
                try:
                    cached = checked(decode(HistoryCache, file.read_bytes(), where=file), where=file)
                except (Tampered, NewerStore):  # only a copy: everything is read again
                    return self._names[name]
                self._names[name] = dict(cached.objects)
        return self._names[name]


def facts_key(name: str, run: str, sha256: str) -> str:
    return f"{ROOT}{name}/facts/{run}-{sha256[:16]}.json"


def facts_sha256(new: NewVersion) -> str:
    """As the local registry's events have it: over the facts' JSON with sorted keys."""
    return hashlib.sha256(facts_json(new)).hexdigest()
