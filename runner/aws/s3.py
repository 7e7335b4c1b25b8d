"""Sources in S3, identified by VersionId or ETag; public buckets are read unsigned where there are no credentials."""

from __future__ import annotations

from typing import IO, Any
from urllib.parse import urlsplit

from runner.errors import RemoteError
from runner.run.sources import RemoteFile


class S3:
    """Reads objects; implements `runner.run.sources.Remote`."""

    def __init__(self) -> None:
        import boto3  # 0.25 s, and only where an s3:// source is read
        from botocore import UNSIGNED
        from botocore.config import Config

        session = boto3.Session()
        signature = {} if session.get_credentials() is not None else {"signature_version": UNSIGNED}
        region = session.region_name or "us-east-1"
        self.client: Any = session.client("s3", region_name=region, config=Config(**signature))

    def listing(self, address: str) -> list[RemoteFile]:
        bucket, key = _split(address)
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
        bucket, key = _split(address)
        body = self._call(address, "get_object", Bucket=bucket, Key=key + file.path)["Body"]
        try:
            for chunk in body.iter_chunks(1 << 20):
                target.write(chunk)
        except Exception as error:  # botocore's stream errors share no base class
            raise RemoteError(f"{address}: the download broke off: {error}. Run again.") from error

    def _call(self, address: str, action: str, **arguments: str) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            reply: dict[str, Any] = getattr(self.client, action)(**arguments)
        except ClientError as error:
            code = error.response["Error"].get("Code")
            raise RemoteError(
                f"{address}: {action} was answered {code}. Check the address and your rights to it."
            ) from error
        except BotoCoreError as error:
            raise RemoteError(
                f"{address}: {action}: {error}. Check the address and the network, then run again."
            ) from error
        return reply


def _split(address: str) -> tuple[str, str]:
    parts = urlsplit(address, allow_fragments=False)
    return parts.netloc, parts.path.removeprefix("/")


def _version(head: dict[str, Any]) -> str:
    version = head.get("VersionId")
    return version if version and version != "null" else str(head["ETag"]).strip('"')
