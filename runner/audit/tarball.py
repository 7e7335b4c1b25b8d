"""A gzipped tar file that may be anybody's, read member by member.

Python's own reader takes a header into memory whole, however long it says it is, and follows links, sparse files and
chains of headers. Here a member is a regular file, what stands before it is one extended header of some kB at most, and
no more is unpacked than was agreed on. Nothing is written.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from runner.errors import Refused

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 16_384  # of an extended header: a path of 4 kB, and times
CHUNK = 1 << 20
RATIO, FREE_BYTES = 200, 100_000_000  # an archive may unpack to so many times its size, beyond the first bytes


@dataclass(frozen=True)
class Member:
    """A regular file; its content is to be had until the next member is asked for."""

    name: str
    size_bytes: int
    content: Iterator[bytes]

    def read(self) -> bytes:
        return b"".join(self.content)


class Tarball:
    """The members of the archive in `file`, once. `where` names it in messages.

    Raises Refused where it is damaged, has anything but regular files, or unpacks to more than `most_bytes`.
    """

    def __init__(self, file: IO[bytes], *, most_bytes: int, where: str) -> None:
        self._stream, self._left, self._where = gzip.GzipFile(fileobj=file, mode="rb"), most_bytes, where

    def __iter__(self) -> Iterator[Member]:
        while (found := self._header()) is not None:
            name, size = found
            content = self._content(size)
            yield Member(name, size, content)
            for _ in content:  # what nobody wanted
                pass
        while rest := self._read(CHUNK, whole=False):
            if rest.strip(b"\0"):
                raise self._refused("has something after its end")

    def expect(self, size_bytes: int) -> None:
        """Raises Refused where so many bytes are more than may come."""
        if size_bytes > self._left:
            raise self._refused("unpacks to far more than its size")

    def _header(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end."""
        more: dict[str, str] | None = None  # what an extended header says of the one after it
        while True:
            block = self._read(BLOCK)
            if not block.strip(b"\0"):
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
                said = more or {}
                name, size = said.get("path", header.name), int(said.get("size", header.size))
            except (tarfile.HeaderError, ValueError) as error:
                raise self._refused(f"has a header that cannot be read: {error}") from error
            if header.type == tarfile.XHDTYPE and more is None and 0 < header.size <= LONGEST_HEADER:
                more = self._extended(b"".join(self._content(header.size)))
                continue
            if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or size < 0:
                raise self._refused(f"has {name!r}, which is not a regular file")
            return name, size

    def _extended(self, data: bytes) -> dict[str, str]:
        """The records of a PAX header, each `LENGTH KEY=VALUE` and a newline."""
        found: dict[str, str] = {}
        try:
            while data:
                length = int(data[: data.index(b" ")])
                record, data = data[:length], data[length:]
                key, equals, value = record.partition(b" ")[2].partition(b"=")
                if not equals or not value.endswith(b"\n"):
                    raise ValueError("no record")
                found[key.decode()] = value[:-1].decode()
        except ValueError as error:
            raise self._refused("has an extended header that cannot be read") from error
        return found

    def _content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._read(min(CHUNK, left))
            left -= len(chunk)
            yield chunk
        if size % BLOCK:
            self._read(BLOCK - size % BLOCK)

    def _read(self, size: int, *, whole: bool = True) -> bytes:
        """So many bytes; fewer only at the end, and not where they have to be there."""
        self._left -= size if whole else 0
        if self._left < 0:
            raise self._refused("unpacks to far more than its size")
        try:
            found = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's
                raise
            raise self._refused(f"is damaged: {error}") from error
        if whole and len(found) < size:
            raise self._refused("is damaged: it ends too early")
        self._left -= 0 if whole else len(found)
        return found

    def _refused(self, what: str) -> Refused:
        return Refused(f"{self._where} {what}. Nothing of it was kept.")
