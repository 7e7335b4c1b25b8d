"""One prefix of one bucket, as a place for bytes: put once, read with their hash checked."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from runner.aws.session import ABSENT, DENIED, AwsError, Session
from runner.records import FileFact

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
PART_BYTES, MOST_PARTS = 16 << 20, 10_000  # of an upload; S3 takes parts of 5 MB or more, and so many
THREADS = 4  # that send parts, each with one in memory
ATTEMPTS = 4  # of a download whose bytes did not all arrive
KEY_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict")


class Bucket:
    """Keys are relative to the prefix, which is "" or ends in `/`. Objects are encrypted by the session's `kms_key`."""

    def __init__(self, session: Session, bucket: str, prefix: str = "") -> None:
        self.session, self.name, self.prefix = session, bucket, prefix

    def address(self, key: str) -> str:
        return f"s3://{self.name}/{self.prefix}{key}"

    def put(self, key: str, data: bytes, *, once: bool = False) -> bool:
        """Write the object; with `once` only where there is none, and False where there is one."""
        condition = {"IfNoneMatch": "*"} if once else {}
        try:
            self._call("put_object", key, Body=data, **condition, **self._encryption())
        except AwsError as error:
            if once and error.code in KEY_TAKEN:
                return False
            raise
        return True

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None where there is none."""

        def read() -> bytes:
            whole = io.BytesIO()
            self.fetch(key, whole)
            return whole.getvalue()

        return self._unless_absent(key, read)

    def size(self, key: str) -> int | None:
        """The object's size in bytes; None where there is none."""
        return self._unless_absent(key, lambda: int(self._call("head_object", key)["ContentLength"]))

    def _unless_absent(self, key: str, read: Callable[[], T]) -> T | None:
        """What `read` gives, None where there is no such object.

        Who may list below the prefix only gets 403 for it, as for what may not be read; a listing tells which. One that
        is listed is read once more: somebody may have put it there in between.
        """
        try:
            return read()
        except AwsError as error:
            if error.code in ABSENT:
                return None
            if error.code not in DENIED:
                raise
        with contextlib.suppress(AwsError):
            first = next(self.objects(key), None)  # in order, so that the object itself would come first
            if first is None or first["Key"] != self.prefix + key:
                return None
        return read()

    def keys(self, below: str = "") -> Iterator[tuple[str, int]]:
        """(key relative to the prefix, size in bytes) of every object below, in order."""
        for item in self.objects(below):
            yield item["Key"][len(self.prefix) :], item["Size"]

    def etags(self, below: str = "") -> Iterator[tuple[str, str]]:
        """(key relative to the prefix, ETag) of every object below, in order."""
        for item in self.objects(below):
            yield item["Key"][len(self.prefix) :], item["ETag"].strip('"')

    def objects(self, below: str = "") -> Iterator[dict[str, Any]]:
        """The entry of every object below, in order, as S3 lists it: with its whole key."""
        about, prefix = self.address(below), self.prefix + below
        for page in self.session.pages("s3", "list_objects_v2", about=about, Bucket=self.name, Prefix=prefix):
            yield from page.get("Contents", [])

    def tag(self, key: str, tags: Mapping[str, str]) -> None:
        """Give the object these tags and no others; writing it anew takes them off."""
        tag_set = [{"Key": name, "Value": value} for name, value in tags.items()]
        self._call("put_object_tagging", key, Tagging={"TagSet": tag_set})

    def delete(self, key: str) -> None:
        """Remove the object; also where there is none."""
        self._call("delete_object", key)

    def upload(self, key: str, path: Path, *, missing_only: bool = True) -> int:
        """Copy the file there, in parts where it is large; the bytes moved, 0 where an object of its size is there.

        Not by boto3's own transfer, which repeats failed requests for half a second only.
        """
        size = path.stat().st_size
        if missing_only and self.size(key) == size:
            return 0
        if size <= PART_BYTES:
            self._call("put_object", key, Body=path.read_bytes(), **self._encryption())
        else:
            self._upload_parts(key, path, size)
        return size

    def _upload_parts(self, key: str, path: Path, size: int) -> None:
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        upload_id = self._call("create_multipart_upload", key, **self._encryption())["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            reply = self._call("upload_part", key, UploadId=upload_id, PartNumber=number, Body=data)
            return {"PartNumber": number, "ETag": reply["ETag"]}

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                parts = list(pool.map(send, range(1, -(-size // part_bytes) + 1)))
            self._call("complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": parts})
        except AwsError as error:
            if error.code == "NoSuchUpload" and self.size(key) == size:  # completed, and the reply was lost
                return
            with contextlib.suppress(AwsError):  # the rest of it costs a little; the first error is the one to report
                self._call("abort_multipart_upload", key, UploadId=upload_id)
            raise

    def download(self, key: str, target: Path, fact: FileFact | None = None) -> None:
        """Copy the object to the file; with `fact`, bytes that differ from it are fetched again, then refused."""
        for attempt in range(1, ATTEMPTS + 1):
            with target.open("wb") as file:
                self.fetch(key, file)
            if fact is None:
                return
            with target.open("rb") as file:
                actual = FileFact(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=file.tell())
            if actual == fact:
                return
            if attempt == ATTEMPTS:
                target.unlink(missing_ok=True)
                raise AwsError(
                    f"{self.address(key)} has {actual.size_bytes} bytes with hash {actual.sha256[:12]}; recorded were "
                    f"{fact.size_bytes} with {fact.sha256[:12]}. It was altered; nothing of it was kept.",
                    code="Altered",
                )

    def digest(self, key: str) -> FileFact:
        """Hash and size of the object, read without being kept."""
        sink = _HashOnly()
        self.fetch(key, sink)
        return FileFact(sha256=sink.sha256.hexdigest(), size_bytes=sink.size_bytes)

    def fetch(self, key: str, target: IO[bytes] | _HashOnly) -> None:
        """Write the object's bytes to `target`; an interrupted transfer is repeated from the start."""
        for attempt in range(1, ATTEMPTS + 1):
            reply = self._call("get_object", key)
            arrived, broken = 0, None
            try:
                for chunk in reply["Body"].iter_chunks(CHUNK_BYTES):
                    target.write(chunk)
                    arrived += len(chunk)
            except Exception as error:  # botocore's stream errors share no base class
                broken = error
            if broken is None and arrived == reply["ContentLength"]:
                return
            if attempt == ATTEMPTS:
                raise AwsError(
                    f"{self.address(key)}: {arrived} of {reply['ContentLength']} bytes arrived, {ATTEMPTS} times. "
                    "Check the network and run again.",
                    code="Truncated",
                ) from broken
            target.seek(0)
            target.truncate()

    def _encryption(self) -> dict[str, str]:
        """Sent with each object, so that a bucket may refuse what is not encrypted with the key."""
        key = self.session.kms_key
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def _call(self, action: str, key: str, **arguments: object) -> dict[str, Any]:
        return self.session.call(
            "s3", action, about=self.address(key), Bucket=self.name, Key=self.prefix + key, **arguments
        )


class _HashOnly:
    """A file that keeps nothing but the hash of what is written to it."""

    def __init__(self) -> None:
        self.seek(0)

    def write(self, data: bytes) -> None:
        self.sha256.update(data)
        self.size_bytes += len(data)

    def seek(self, _: int) -> None:
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def truncate(self) -> None:
        """`seek` has emptied it."""
