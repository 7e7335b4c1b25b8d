"""Files and folders by content: hashes, stamps, and atomic writes.

Also what some file systems lack: locks (an error in words), links and modes (done without), names that are not UTF-8.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from runner.errors import Refused, UsageError
from runner.paths import stays_below
from runner.records import Artifact, FileFact


def file_fact(path: Path) -> FileFact:
    """Hash and size of a regular file. Raises UsageError for a FIFO, socket or device, which could hang."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFact(sha256=digest, size_bytes=file.tell())


def bytes_fact(content: bytes) -> FileFact:
    """Hash and size of a file in memory."""
    return FileFact(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def artifact(path: Path, *, name: str) -> Artifact:
    """The file or folder at `path` by content, under the path `name`.

    A folder's hash is over its sorted `sha256  size  path` lines. Raises UsageError where something in it is neither
    file nor folder, is a link that leaves the folder or loops, or has a name that no record can hold.
    """
    if not stays_below(name):
        raise _unrecordable(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error
    if not stat.S_ISDIR(mode):
        fact = file_fact(path)
        return Artifact(path=name, sha256=fact.sha256, size_bytes=fact.size_bytes)
    files = {relative: file_fact(file) for relative, file in walk(path)}
    return folder_artifact(name, files)


def folder_artifact(name: str, files: dict[str, FileFact]) -> Artifact:
    """The artifact of a folder that holds these files, by path relative to it."""
    ordered = dict(sorted(files.items()))
    lines = "".join(f"{fact.sha256}  {fact.size_bytes}  {relative}\n" for relative, fact in ordered.items())
    total = sum(fact.size_bytes for fact in ordered.values())
    return Artifact(path=name, sha256=hashlib.sha256(lines.encode()).hexdigest(), size_bytes=total, files=ordered)


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """(path relative to `root` with `/`, file) of every file below it, sorted. Raises as `artifact`."""
    inside = root.resolve()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for entry in [*folders, *files]:
            path = Path(folder) / entry
            if path.is_symlink() and not _is_inside(path, inside):
                raise UsageError(f"{path} is a link that leaves its folder, or leads nowhere.")
            if entry in folders and path.is_symlink():
                raise UsageError(f"{path} is a link to a folder; put the folder itself there.")
        for entry in sorted(files):
            path = Path(folder) / entry
            relative = path.relative_to(root).as_posix()
            if not stays_below(relative):
                raise _unrecordable(path)
            yield relative, path


def stamp(path: Path) -> str:
    """Size, modification time and inode of the file, or of everything below the folder: equal while untouched."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
    lines = "".join(f"{relative} {stamp(file)}\n" for relative, file in walk(path))
    return hashlib.sha256(lines.encode()).hexdigest()


def atomic_write(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace the file at `path`: after a crash or on a full disk it is the old one or the new one.

    Where it is not `lasting`, nothing waits for the disk: after a crash of the machine it may be empty.
    """
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if lasting:
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames in the folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unrecordable(path: Path) -> UsageError:
    return UsageError(
        f"{str(path)!r} has a name that cannot be recorded: control characters, bytes that are not UTF-8, or a drive. "
        "Rename it."
    )


def hold(file: IO[Any], kind: int) -> None:
    """Lock the file, by flock and without waiting; the lock ends with the process.

    Raises BlockingIOError where another process holds it, Refused where the file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise Refused(
            f"{file.name} cannot be locked: {error.strerror}. Runs are kept apart by locks, which this file system "
            "does not have; move the project to a disk that has them, or mount it with them (`runner doctor`)."
        ) from error


def make_read_only(path: Path) -> bool:
    """Whether that worked: not every file system has modes."""
    try:
        path.chmod(0o444)
    except OSError:
        return False
    return True


def link_to(target: Path, source: Path) -> bool:
    """Make `target` a symbolic link to the file or folder; False where it is a copy, for lack of links."""
    target.unlink(missing_ok=True)
    try:
        target.symlink_to(source)
    except OSError:
        for relative, file in walk(source) if source.is_dir() else [("", source)]:
            place = target / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        return False
    return True


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # the target is missing, or a loop
        return False
