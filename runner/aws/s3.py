"""S3 by address: sources, identified by VersionId or ETag, and objects that stayed there.

Without credentials public buckets are read, by unsigned requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from runner.aws.bucket import Bucket
from runner.aws.session import Session
from runner.errors import RemoteError
from runner.records import FileFact
from runner.run.sources import RemoteFile


class S3:
    """Reads objects; implements `runner.run.sources.RemoteSource` and `runner.run.store.Remote`."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session or Session(anonymous=True)

    def listing(self, address: str) -> list[RemoteFile]:
        bucket, key = split(address)
        if key and not key.endswith("/"):
            head = self.session.call("s3", "head_object", about=address, Bucket=bucket, Key=key)
            return [RemoteFile(path="", size_bytes=head["ContentLength"], version=_version(head))]
        files = [
            RemoteFile(path=item["Key"][len(key) :], size_bytes=item["Size"], version=item["ETag"].strip('"'))
            for item in Bucket(self.session, bucket).objects(key)
            if not item["Key"].endswith("/")
        ]
        if not files:
            raise RemoteError(f"{address}: there are no objects below it. Check the address.")
        return sorted(files, key=lambda file: file.path)

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        bucket, key = self._place(address + file.path)
        bucket.fetch(key, target)

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        bucket, key = self._place(address)
        bucket.download(key, target, fact)

    def digest(self, address: str) -> FileFact:
        bucket, key = self._place(address)
        return bucket.digest(key)

    def _place(self, address: str) -> tuple[Bucket, str]:
        bucket, key = split(address)
        return Bucket(self.session, bucket), key


def split(address: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    parts = urlsplit(address, allow_fragments=False)
    return parts.netloc, parts.path.removeprefix("/")


def _version(head: dict[str, Any]) -> str:
    version = head.get("VersionId")
    return version if version and version != "null" else str(head["ETag"]).strip('"')
