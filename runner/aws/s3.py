"""S3 by address: sources, identified by VersionId or ETag, and objects that stayed there; public buckets are read
unsigned where there are no credentials."""

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
            head = self._call(address, "head_object", Bucket=bucket, Key=key)
            return [RemoteFile(path="", size_bytes=head["ContentLength"], version=_version(head))]
        files: list[RemoteFile] = []
        token: dict[str, str] = {}
        while True:
            page = self._call(address, "list_objects_v2", Bucket=bucket, Prefix=key, **token)
            files += [
                RemoteFile(path=item["Key"][len(key) :], size_bytes=item["Size"], version=item["ETag"].strip('"'))
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")
            ]
            if not page.get("IsTruncated"):
                break
            token = {"ContinuationToken": page["NextContinuationToken"]}
        if not files:
            raise RemoteError(f"{address}: there are no objects below it. Check the address.")
        return sorted(files, key=lambda file: file.path)

    def download(self, address: str, file: RemoteFile, target: IO[bytes]) -> None:
        place, key = self._place(address + file.path)
        place.fetch(key, target)

    def fetch(self, address: str, fact: FileFact, target: Path) -> None:
        place, key = self._place(address)
        place.download(key, target, fact)

    def digest(self, address: str) -> FileFact:
        place, key = self._place(address)
        return place.digest(key)

    def _place(self, address: str) -> tuple[Bucket, str]:
        bucket, key = split(address)
        return Bucket(self.session, bucket), key

    def _call(self, address: str, action: str, **arguments: str) -> dict[str, Any]:
        return self.session.call("s3", action, about=address, **arguments)


def split(address: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address."""
    parts = urlsplit(address, allow_fragments=False)
    return parts.netloc, parts.path.removeprefix("/")


def _version(head: dict[str, Any]) -> str:
    version = head.get("VersionId")
    return version if version and version != "null" else str(head["ETag"]).strip('"')
