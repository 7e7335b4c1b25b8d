"""An untrusted gzipped tar file, read member by member.

Python's own reader reads a header of any length into memory, and follows links, sparse files and chains of headers.
Here a member is a regular file with at most one short extended header, and no more is unpacked than allowed.
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
RATIO, FREE_BYTES = 200, 100_000_000  # an archive may unpack to FREE_BYTES + RATIO * its size


@dataclass(frozen=True)
class Member:
    """A regular file; its content can be read until the next member is read."""

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
        while (header := self._header()) is not None:
            name, size = header
            content = self._content(size)
            yield Member(name, size, content)
            for _ in content:  # what was not read
                pass
        while rest := self._read(CHUNK, whole=False):
            if rest.strip(b"\0"):
                raise self._refused("has something after its end")

    def expect(self, size_bytes: int) -> None:
        """Raises Refused where this is more than may still be unpacked."""
        if size_bytes > self._left:
            raise self._refused("unpacks to far more than its size")

    def _header(self) -> tuple[str, int] | None:
        """Name and size of the next member; None at the end."""
        extended: dict[str, str] | None = None  # fields of an extended header, for the one after it
        while True:
            block = self._read(BLOCK)
            if not block.strip(b"\0"):
                return None
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
                fields = extended or {}
                name, size = fields.get("path", header.name), int(fields.get("size", header.size))
            except (tarfile.HeaderError, ValueError) as error:
                raise self._refused(f"has a header that cannot be read: {error}") from error
            if header.type == tarfile.XHDTYPE and extended is None and 0 < header.size <= LONGEST_HEADER:
                extended = self._extended(b"".join(self._content(header.size)))
                continue
            if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or size < 0:
                raise self._refused(f"has {name!r}, which is not a regular file")
            return name, size

    def _extended(self, data: bytes) -> dict[str, str]:
        """The records of a PAX header, each `LENGTH KEY=VALUE` and a newline."""
        fields: dict[str, str] = {}
        try:
            while data:
                length = int(data[: data.index(b" ")])
                record, data = data[:length], data[length:]
                key, equals, value = record.partition(b" ")[2].partition(b"=")
                if not equals or not value.endswith(b"\n"):
                    raise ValueError("no record")
                fields[key.decode()] = value[:-1].decode()
        except ValueError as error:
            raise self._refused("has an extended header that cannot be read") from error
        return fields

    def _content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._read(min(CHUNK, left))
            left -= len(chunk)
            yield chunk
        if size % BLOCK:
            self._read(BLOCK - size % BLOCK)

    def _read(self, size: int, *, whole: bool = True) -> bytes:
        """The next bytes; fewer only at the end, and not with `whole`."""
        self._left -= size if whole else 0
        if self._left < 0:
            raise self._refused("unpacks to far more than its size")
        try:
            data = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's
                raise
            raise self._refused(f"is damaged: {error}") from error
        if whole and len(data) < size:
            raise self._refused("is damaged: it ends too early")
        self._left -= 0 if whole else len(data)
        return data

    def _refused(self, what: str) -> Refused:
        return Refused(f"{self._where} {what}. Nothing of it was kept.")
