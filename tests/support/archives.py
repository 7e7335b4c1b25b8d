"""Packed runs taken apart, altered and put together again, as an enemy would; and bytes that unpack to gigabytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACK, MANIFEST = "pack.json", "run/run.json"
MEBIBYTE = 1 << 20


@dataclass
class Archive:
    """The members of a pack in their order; `kinds` are tar's types of those that are not regular files."""

    members: list[tuple[str, bytes]]
    kinds: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Archive:
        with tarfile.open(path) as archive:
            return cls([(member.name, _content(archive, member)) for member in archive])

    def write(self, path: Path) -> Path:
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for name, content in self.members:
                member = tarfile.TarInfo(name)
                member.type = self.kinds.get(name, tarfile.REGTYPE)
                member.size = len(content) if member.isreg() else 0
                member.linkname = "/etc/passwd" if member.issym() or member.islnk() else ""
                archive.addfile(member, io.BytesIO(content))
        return path

    def content(self, name: str) -> bytes:
        return next(content for member, content in self.members if member == name)

    def put(self, name: str, content: bytes) -> None:
        """Replace the member, or add it at the end."""
        names = [member for member, _ in self.members]
        at = names.index(name) if name in names else len(names)
        self.members[at : at + 1] = [(name, content)]

    @contextlib.contextmanager
    def json(self, name: str) -> Iterator[Any]:
        """The member's JSON, to be changed."""
        found = json.loads(self.content(name))
        yield found
        self.put(name, json.dumps(found).encode())

    def rename(self, old: str, new: str) -> None:
        self.members = [(new if name == old else name, content) for name, content in self.members]

    def listed(self) -> Archive:
        """With the hash of every member in pack.json, as a careful enemy would have it."""
        with self.json(PACK) as pack:
            if "files" in pack:
                pack["files"] = {
                    name: {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
                    for name, content in self.members
                    if name != PACK
                }
        return self

    def same_everywhere(self) -> Archive:
        """With each step's job.json and result.json as run.json has them now, so that what is compared agrees."""
        manifest = json.loads(self.content(MANIFEST))
        names = {name for name, _ in self.members}
        for state in manifest["steps"]:
            for record, value in (("job.json", state["job"]), ("result.json", state["result"])):
                place = f"run/steps/{state['name']}/{record}"
                if value is not None and place in names:
                    self.put(place, json.dumps(value).encode())
        return self


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's 512 bytes, whatever follows."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def bomb(path: Path, *beginning: bytes, mebibytes: int, of: bytes = b"\0") -> Path:
    """A gzip file of the beginning and so many MiB of one byte; its own size is a thousandth."""
    one = gzip.compress(of * MEBIBYTE, 9)
    with path.open("wb") as file:
        file.write(gzip.compress(b"".join(beginning)))
        for _ in range(mebibytes):  # a gzip file may consist of several
            file.write(one)
    return path


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A JSON value with the thing at `path` changed."""
    if not path:
        return change(value)
    made = dict(value) if isinstance(value, dict) else list(value)
    made[path[0]] = changed(value[path[0]], path[1:], change)
    return made
