"""Captured lines on disk: files by hour, closed atomically, bounded in days and bytes.

FOLDER/2026-11-29/12-4711x9f3a-00001.jsonl.part   being written, held by flock while its writer lives
FOLDER/2026-11-29/12-4711x9f3a-00001.jsonl        closed: the hour ended, the file was full, or its writer ended

Lines are queued and written twice a second by a thread, so that a process that is killed loses no more. A disk that is
full stops it: what comes is dropped and counted, and the lines that are held are tried again until there is room.
Knows nothing of requests and models: a line begins with its time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runner.content import fsync_folder

EVERY_S = 0.5
QUEUE_BYTES = 32 * 2**20  # of lines that wait; what comes above is dropped
FILE_BYTES = 64 * 2**20  # of one file at most, and less where `max_bytes` is small
LEAST_FILE_BYTES = 64 * 1024
PART, CLOSED = ".part", ".jsonl"
PRUNE_S = 3600.0  # though no file is opened
HOUR = slice(len(b'{"time":"'), len(b'{"time":"2026-11-29T12'))  # of a line
# whoever has the folder reads customers' data: nobody but the account
FOLDER_MODE, FILE_MODE = 0o700, 0o600


class CaptureWriter:
    """Writes lines that `offer` takes. Of one process: `start` it after a fork, and `close` it at the end.

    `on_change(written, dropped, stopped)` is told lines since the last call, and whether the disk takes none now; it is
    called under the writer's lock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        days: int,
        max_bytes: int,
        writers: int = 1,
        on_change: Callable[[int, int, bool], None] = lambda *_: None,
    ) -> None:
        """`writers` is how many processes write to the folder, of which each has a file open."""
        self.folder, self.days, self.max_bytes = folder, days, max_bytes
        self.file_bytes = max(LEAST_FILE_BYTES, min(FILE_BYTES, max_bytes // (8 * writers)))
        self.written, self.dropped, self.stopped = 0, 0, False
        self._on_change = on_change
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._held: list[bytes] = []  # by the thread: taken from the queue, and not written yet
        self._waiting_bytes = 0  # of both
        self._part: Path | None = None
        self._descriptor, self._size, self._hour, self._number = -1, 0, b"", 0
        self._pruned = 0.0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = ""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def has_room(self, size: int) -> bool:
        """Whether a line of this size would be taken now; otherwise it is counted as dropped."""
        if self.stopped or self._waiting_bytes + size > QUEUE_BYTES or 2 * size > self.max_bytes:
            with self._lock:
                self._tell(dropped=1)
            return False
        return True

    def reserve(self, size: int) -> bool:
        """Whether so many bytes may be held by somebody who makes a line of them; then until `release`."""
        if not self.has_room(size):
            return False
        with self._lock:
            self._waiting_bytes += size
        return True

    def release(self, size: int) -> None:
        with self._lock:
            self._waiting_bytes -= size

    def offer(self, line: bytes) -> None:
        """Queue the line, or drop and count it. Never waits for the disk."""
        if self.has_room(len(line)):
            with self._lock:
                self._lines.append(line)
                self._waiting_bytes += len(line)

    def flush(self) -> None:
        """Write what was queued. Not for a process that has started the thread, which does so."""
        with self._lock:
            self._held += self._lines
            self._lines = []
        try:
            if time.time() - self._pruned > PRUNE_S:
                self._prune()
            if self._part is not None and self._hour < _now_hour():
                self._end_file()
            while self._held:
                self._write_some()
        except OSError as error:
            if not self.stopped:
                _log(f"capture stops: {error.strerror}: {self.folder}. Requests are answered; it is tried again.")
            with self._lock:
                self.stopped = True
                self._tell()
        else:
            if self.stopped:
                _log(f"capture goes on: there is room in {self.folder}.")
                with self._lock:
                    self.stopped = False
                    self._tell()

    def close(self) -> None:
        """Write what was queued and close the file. What a full disk does not take is dropped and counted."""
        if self._thread is not None:
            self._ending.set()
            self._thread.join(10)
            self._thread = None
        self.flush()
        with self._lock:
            self._tell(dropped=len(self._held))
            self._held = []
        with contextlib.suppress(OSError):
            self._end_file()

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            self.flush()

    def _tell(self, written: int = 0, dropped: int = 0) -> None:
        self.written += written
        self.dropped += dropped
        self._on_change(written, dropped, self.stopped)

    def _write_some(self) -> None:
        """The first lines, of one hour, as far as the file has room for them; at least one. Raises OSError."""
        hour, size, count = self._held[0][HOUR], 0, 0
        if self._part is not None and (hour != self._hour or self._size + len(self._held[0]) > self.file_bytes):
            self._end_file()
        for line in self._held:
            if count and (line[HOUR] != hour or self._size + size + len(line) > self.file_bytes):
                break
            size, count = size + len(line), count + 1
        if self._part is None:
            self._begin_file(hour)
        data = memoryview(b"".join(self._held[:count]))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            os.ftruncate(self._descriptor, self._size)  # half a line is no line
            raise
        self._size += size
        del self._held[:count]
        with self._lock:
            self._waiting_bytes -= size
            self._tell(written=count)

    def _begin_file(self, hour: bytes) -> None:
        self._prune()
        day, _, of_day = hour.decode().partition("T")
        place = self.folder / day
        place.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # of several machines that share the folder, two processes can have one number
        self._process = self._process or f"{os.getpid()}x{secrets.token_hex(2)}"
        self._number += 1
        part = place / f"{of_day}-{self._process}-{self._number:05d}{CLOSED}{PART}"
        self._descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, FILE_MODE)
        with contextlib.suppress(OSError):  # a file system without locks: nobody closes it when this process has died
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._part, self._size, self._hour = part, 0, hour

    def _end_file(self) -> None:
        if self._part is None:
            return
        part, descriptor, self._part = self._part, self._descriptor, None
        try:
            _close_part(part, descriptor, self._size)
        finally:
            os.close(descriptor)

    def _prune(self) -> None:
        """Close what dead processes left, remove files that are too old, and the oldest where there are too many."""
        self._pruned = time.time()
        first_day = (datetime.now(UTC) - timedelta(days=self.days)).date().isoformat()
        closed: list[tuple[str, float, int, Path]] = []  # day and hour, when it was written last, size
        total = self.file_bytes  # of the one that is begun
        for file in sorted(self.folder.glob(f"*/*{CLOSED}*")):
            with contextlib.suppress(FileNotFoundError):  # another process has removed or renamed it
                kept = _without_part(file) if file.suffix == PART and file != self._part else file
                status = kept.stat()
                size = status.st_size
                if kept.suffix == PART:
                    total += max(size, self.file_bytes)
                elif kept.parent.name < first_day:
                    _remove(kept)
                else:
                    total += size
                    closed.append((f"{kept.parent.name}T{kept.name[:2]}", status.st_mtime, size, kept))
        for *_, size, file in sorted(closed):
            if total <= self.max_bytes:
                break
            _remove(file)
            total -= size


def _without_part(part: Path) -> Path:
    """The file closed, where its writer has died; else as it is."""
    with part.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it lives
            return part
        _close_part(part, file.fileno(), _whole_lines(file.fileno()))
    return part.with_suffix("")


def _close_part(part: Path, descriptor: int, size: int) -> None:
    """Under its final name, with its first `size` bytes; an empty one is removed."""
    if not size:
        part.unlink()
        return
    os.ftruncate(descriptor, size)
    with contextlib.suppress(OSError):  # some network file systems cannot
        os.fsync(descriptor)
    part.rename(part.with_suffix(""))
    fsync_folder(part.parent)


def _whole_lines(descriptor: int) -> int:
    """The bytes up to the last end of a line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - 65536)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is another file in it
        file.parent.rmdir()


def _now_hour() -> bytes:
    return time.strftime("%Y-%m-%dT%H", time.gmtime()).encode()


def _log(sentence: str) -> None:
    """As the access log: a line of JSON on stderr."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):  # the disk is full, or nobody reads any more
        sys.stderr.write(json.dumps({"at": at, "capture": sentence}) + "\n")
        sys.stderr.flush()
