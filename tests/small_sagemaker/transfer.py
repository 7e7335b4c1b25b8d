"""What the service moves for a job: its inputs from S3, its outputs to S3, its lines to CloudWatch Logs."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
MAX_EVENT_BYTES = 200_000  # CloudWatch takes 256 KiB with its overhead
MAX_BATCH = 500


class TransferError(Exception):
    """An input that cannot be delivered or an output that cannot be stored; the message is the job's reason."""


def split_uri(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_prefix(s3: Any, bucket: str, prefix: str) -> Iterator[str]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            yield found["Key"]


def place_key(key: str, prefix: str) -> str:
    """Where below the local path an object goes; the prefix is a string prefix, so its last part may be half a name."""
    if key == prefix:
        return PurePosixPath(key).name
    if not prefix or prefix.endswith("/"):
        return key[len(prefix) :]
    rest = key[len(prefix) :]
    return rest.lstrip("/") if rest.startswith("/") else prefix.rpartition("/")[2] + rest


def download(s3: Any, uri: str, folder: Path) -> None:
    """Every object below the prefix `uri`, into `folder`."""
    bucket, prefix = split_uri(uri)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        for key in list_prefix(s3, bucket, prefix):
            count += 1
            if key.endswith("/"):
                continue
            target = folder / place_key(key, prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, key, str(target))
    except Exception as error:
        raise TransferError(f"ClientError: Data download failed:{error}") from error
    if not count:
        raise TransferError(
            f'ClientError: Data download failed:No S3 objects found under S3 URL "{uri}" given in input data source. '
            "Please ensure that the bucket exists in the selected region, that objects exist under that S3 prefix, "
            'and that the role has "s3:ListBucket" permissions on the bucket.'
        )


class Uploads:
    """The outputs of one job; a file is sent again when its size or time has changed."""

    def __init__(self, s3: Any, outputs: list[tuple[dict[str, Any], Path]], kms_key: str | None = None) -> None:
        self._s3 = s3
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        self._outputs = outputs
        self._sent: dict[Path, tuple[int, int]] = {}

    def send(self, *, end_of_job: bool) -> None:
        """The continuous outputs; with `end_of_job` every output. Raises TransferError."""
        for output, folder in self._outputs:
            if output["S3UploadMode"] == "Continuous" or end_of_job:
                self._send_folder(output["S3Uri"], folder)

    def _send_folder(self, uri: str, folder: Path) -> None:
        bucket, prefix = split_uri(uri)
        for parent, _, names in os.walk(folder):
            for name in sorted(names):
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # the container may take files away while we look
                    found = path.lstat()
                    if not stat.S_ISREG(found.st_mode):
                        continue
                    state = (found.st_mtime_ns, found.st_size)
                    if self._sent.get(path) == state:
                        continue
                    key = "/".join(part for part in (prefix.rstrip("/"), path.relative_to(folder).as_posix()) if part)
                    self._put(path, bucket, key)
                    self._sent[path] = state

    def _put(self, path: Path, bucket: str, key: str) -> None:
        try:
            self._s3.upload_file(str(path), bucket, key, ExtraArgs=self._encryption)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise TransferError(f"ClientError: Data upload failed:{error}") from error


class LogStream:
    """Sends a container's lines to CloudWatch Logs from a thread, `delay_s` late at first; `hear` is told each at once.

    `start` is the number of the job's start, so that two in one second have two streams.
    """

    def __init__(
        self,
        logs: Any,
        job: str,
        lines: IO[bytes],
        delay_s: float,
        *,
        group: str = LOG_GROUP,
        start: int = 0,
        hear: Callable[[str], None] = lambda _: None,
        host: str = "algo-1",
    ) -> None:
        self._logs, self._group, self._hear = logs, group, hear
        self._lines = lines
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.name = f"{job}/{host}-{int(time.time()) + start}"
        self.visible_at = time.monotonic() + delay_s
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"read {job}")
        self._sender = threading.Thread(target=self._send, daemon=True, name=f"logs {job}")
        self._reader.start()
        self._sender.start()

    def finish(self, timeout_s: float) -> None:
        """Waits until the last line is sent; a stream that is delayed goes on by itself."""
        self._reader.join(timeout_s)
        self._ended.set()
        if self.visible_at <= time.monotonic():
            self._sender.join(timeout_s)

    def _read(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed under us when the container is removed
            for line in self._lines:
                text = line[:MAX_EVENT_BYTES].decode(errors="replace").rstrip("\n")
                self._hear(text)
                with self._lock:
                    self._waiting.append({"timestamp": int(time.time() * 1000), "message": text or " "})
        self._ended.set()

    def _take(self) -> list[dict[str, Any]]:
        with self._lock:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        return batch

    def _send(self) -> None:
        time.sleep(max(0.0, self.visible_at - time.monotonic()))
        with contextlib.suppress(self._logs.exceptions.ResourceAlreadyExistsException):
            self._logs.create_log_group(logGroupName=self._group)
        self._logs.create_log_stream(logGroupName=self._group, logStreamName=self.name)
        while True:
            last = self._ended.wait(0.1)
            while batch := self._take():
                self._logs.put_log_events(logGroupName=self._group, logStreamName=self.name, logEvents=batch)
            if last:
                return
