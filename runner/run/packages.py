"""Which installed packages a notebook stands on: those it imports and all that they require, with versions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from runner.content import atomic_write
from runner.records import Record, typed

_REQUIRES = re.compile(r"^Requires-Dist:\s*([A-Za-z0-9][\w.-]*)", re.M)


class _Index(Record, frozen=True, kw_only=True):
    fingerprint: str
    providers: dict[str, list[str]]  # importable top-level name -> packages
    requires: dict[str, list[str]]


def versions() -> dict[str, str]:
    """Every installed package, by the names of their metadata folders; reading the metadata takes a second."""
    found: dict[str, str] = {}
    for place in sys.path:
        with contextlib.suppress(OSError):
            for name, version in _in(place or ".", Path(place or ".").stat().st_mtime_ns):
                found.setdefault(name, version)
    return dict(sorted(found.items()))


@functools.lru_cache(maxsize=64)
def _in(place: str, _changed_ns: int) -> list[tuple[str, str]]:
    """A folder's packages; what is installed or removed changes the folder."""
    names = (entry.name.removesuffix(".dist-info") for entry in sorted(Path(place).glob("*.dist-info")))
    return [(_plain(name), version) for name, _, version in (name.rpartition("-") for name in names)]


def closure(imports: Iterable[str], *, index_file: Path) -> dict[str, str]:
    """Versions of the packages that provide `imports` (dotted names), and of everything these require.

    `index_file` keeps what importing which name means, for as long as the same packages are installed.
    """
    installed = versions()
    index = _index(installed, index_file)
    pending = [name for module in imports for name in index.providers.get(module.partition(".")[0], [])]
    found: dict[str, str] = {}
    while pending:
        name = pending.pop()
        if name in installed and name not in found:
            found[name] = installed[name]
            pending += index.requires.get(name, [])
    return dict(sorted(found.items()))


def _index(installed: dict[str, str], file: Path) -> _Index:
    return _index_of(hashlib.sha256(msgspec.json.encode([sys.prefix, *installed.items()])).hexdigest(), file)


@functools.lru_cache(maxsize=4)
def _index_of(fingerprint: str, file: Path) -> _Index:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        index = typed(_Index, file.read_bytes())
        if index.fingerprint == fingerprint:
            return index
    requires, providers = dict[str, list[str]](), dict[str, set[str]]()
    for entry in (entry for place in sys.path for entry in Path(place or ".").glob("*.dist-info")):
        name = _plain(entry.name.removesuffix(".dist-info").rpartition("-")[0])
        requires.setdefault(
            name, sorted(map(_plain, set(_REQUIRES.findall(_read(entry / "METADATA").partition("\n\n")[0]))))
        )
        for top in _read(entry / "top_level.txt").split() or _recorded(_read(entry / "RECORD")):
            providers.setdefault(top, set()).add(name)
    found = {top: sorted(names) for top, names in providers.items()}
    index = _Index(fingerprint=fingerprint, providers=found, requires=requires)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, msgspec.json.encode(index))
    return index


def _recorded(record: str) -> set[str]:
    """The top-level modules among an installed package's files, as importlib.metadata infers them, in a tenth of its time."""
    paths = (line.partition(",")[0] for line in record.splitlines())
    return {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
