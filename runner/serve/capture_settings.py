"""What a process that serves needs to know of its target's `capture`, and the key of hashed columns.

A column's hash is BLAKE2b of the value's text with a key of 32 random bytes, `runs/capture.key`, which only the account
reads: equal values have equal hashes, within a project, and who has the captured files alone cannot find a value by
hashing every telephone number. Who has the key too can.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from runner.errors import Refused
from runner.records import Capture, Record

FOLDER, KEY = "captured", "capture.key"  # in the folder of runs
KEY_BYTES = 32


class CaptureSettings(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Paths are absolute, or relative to the process's working folder."""

    spec: Capture
    folder: str
    key: str = ""  # the file of the key; "" where no column is hashed


def capture_settings(spec: Capture, target: str, root: Path, *, working: Path | None = None) -> CaptureSettings:
    """Of a target of the project at `root`; relative to `working`, unless the target names another place."""
    folder = root / spec.to if spec.to else root / "runs" / FOLDER / target
    key = root / "runs" / KEY

    def shown(path: Path) -> str:
        if working is None or (spec.to and Path(spec.to).is_absolute() and path is folder):
            return str(path.absolute())
        return os.path.relpath(os.path.realpath(path), os.path.realpath(working))

    return CaptureSettings(spec=spec, folder=shown(folder), key=shown(key) if spec.hash else "")


def read_key(file: Path) -> bytes:
    """The key, made where there is none. Raises Refused where it cannot be read or made."""
    try:
        if not file.exists():
            _make(file)
        key = file.read_bytes()
    except OSError as error:
        raise Refused(f"{file}, the key of hashed columns, cannot be read or made: {error.strerror}.") from error
    if len(key) != KEY_BYTES:
        raise Refused(
            f"{file}, the key of hashed columns, has {len(key)} bytes, not {KEY_BYTES}. Restore it, or remove it: "
            "then a value has another hash from now on."
        )
    return key


def _make(file: Path) -> None:
    """Two that make it at one time get the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(secrets.token_bytes(KEY_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, file)
    finally:
        beside.unlink(missing_ok=True)
