"""What a record may hold where it becomes a path or a part of one: types that are checked whenever a record is read.

A record can come from anybody: a packed run, a shared bucket. A path that stays below its folder has no `..` (a
backslash counts as a slash), is not absolute, names no drive and has no control characters, which would also break the
lines that a folder's hash is made of. Paths that a person writes, of a notebook or a source, are text, and only read.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from runner.errors import Tampered

_BELOW = r"\A(?![/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|\Z))"
_MEANINGS = {
    _BELOW + r"[^\x00-\x1f\x7f]+\Z": "a path that stays below its folder",
    _BELOW + r"[^\x00-\x1f\x7f]*\Z": "a path that stays below its folder, or nothing",
    _BELOW + r"(?!\.\Z)[^/\\\x00-\x1f\x7f]+\Z": "the name of a file or folder",
    r"\A[^\x00]*\Z": "text without NUL",
    r"\A[0-9a-f]{64}\Z": "a SHA-256 in hexadecimal",
}
_below, _optional, _name, _text, _sha256 = (msgspec.Meta(pattern=pattern) for pattern in _MEANINGS)

RelativePath = Annotated[str, _below]
OptionalPath = Annotated[str, _optional]
FileName = Annotated[str, _name]
AnyPath = Annotated[str, _text]
Sha256 = Annotated[str, _sha256]

_RELATIVE = re.compile(next(iter(_MEANINGS)))


def stays_below(path: str) -> bool:
    """Whether a record may hold it as a RelativePath; a record cannot hold a file name that is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return _RELATIVE.match(path) is not None


def inside(path: str) -> str:
    """The path, if it stays below where it is put. Raises Tampered."""
    if not stays_below(path):
        raise Tampered(
            f"The path {path!r} leads out of its folder, or has control characters; nothing is written there."
        )
    return path


def in_words(error: Exception) -> str:
    """msgspec's sentence about a record, with words for the expressions above."""
    sentence = str(error)
    for pattern, meaning in _MEANINGS.items():
        sentence = sentence.replace(f"Expected `str` matching regex {pattern!r}", f"Expected {meaning}")
    return sentence
