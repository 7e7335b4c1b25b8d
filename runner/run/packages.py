"""The installed packages that a notebook depends on: those it imports and all that they require, with versions."""

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
from runner.run.machine import dist_infos

_REQUIRES = re.compile(r"^Requires-Dist:\s*(.+)$", re.M)
_PLAIN = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\(?[<>=!~][^;\[]*)?")  # a name, with or without versions
_KIND = 3  # of the index; one of another kind is made anew


class _Index(Record, frozen=True, kw_only=True):
    fingerprint: str
    providers: dict[str, list[str]]  # importable top-level name -> packages
    requires: dict[str, list[str]]  # package, or package[extra] where some package asks for the extra
    editable: list[str]  # packages that are installed as editable


def versions() -> dict[str, str]:
    """Every installed package, by the names of metadata folders; reading all metadata would take a second."""
    packages: dict[str, str] = {}
    for place in sys.path:
        with contextlib.suppress(OSError):
            for name, version in _in(place or ".", Path(place or ".").stat().st_mtime_ns):
                packages.setdefault(name, version)
    return dict(sorted(packages.items()))


@functools.lru_cache(maxsize=64)
def _in(place: str, _changed_ns: int) -> list[tuple[str, str]]:
    """A folder's packages; installing or removing one changes the folder's time."""
    names = (entry.removesuffix(".dist-info") for entry in dist_infos(place))
    return [(_plain(name), version) for name, _, version in (name.rpartition("-") for name in names)]


def closure(imports: Iterable[str], *, index_file: Path) -> dict[str, str]:
    """Versions of the packages that provide `imports` (dotted names), and of everything these require here.

    An optional dependency counts only if it is imported too. `index_file` keeps which package provides which name, for
    as long as the same packages are installed.
    """
    installed = versions()
    index = _index(installed, index_file)
    pending = [name for module in imports for name in index.providers.get(module.partition(".")[0], [])]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in seen and name.partition("[")[0] in installed:
            seen.add(name)
            pending += index.requires.get(name, [])
    return {name: installed[name] for name in sorted(seen) if "[" not in name}


def provided(*, index_file: Path) -> set[str]:
    """The importable names of all packages that change only with their version."""
    index = _index(versions(), index_file)
    return {name for name, packages in index.providers.items() if not {*packages} & {*index.editable}}


def _index(installed: dict[str, str], file: Path) -> _Index:
    return _index_of(hashlib.sha256(msgspec.json.encode([_KIND, sys.prefix, *installed.items()])).hexdigest(), file)


@functools.lru_cache(maxsize=4)
def _index_of(fingerprint: str, file: Path) -> _Index:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        index = typed(_Index, file.read_bytes())
        if index.fingerprint == fingerprint:
            return index
    lines, providers, editable = dict[str, list[str]](), dict[str, set[str]](), set[str]()
    for entry in (entry for place in sys.path for entry in Path(place or ".").glob("*.dist-info")):
        name = _plain(entry.name.removesuffix(".dist-info").rpartition("-")[0])
        lines.setdefault(name, sorted(set(_REQUIRES.findall(_read(entry / "METADATA").partition("\n\n")[0]))))
        for top in _read(entry / "top_level.txt").split() or _recorded(_read(entry / "RECORD")):
            providers.setdefault(top, set()).add(name)
        if '"editable": true' in _read(entry / "direct_url.json").replace('":true', '": true'):
            editable.add(name)
    sorted_providers = {top: sorted(names) for top, names in providers.items()}
    index = _Index(
        fingerprint=fingerprint, providers=sorted_providers, requires=_required(lines), editable=sorted(editable)
    )
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, msgspec.json.encode(index))
    return index


def _required(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """What each package requires on this machine, by its metadata; only the extras that another asks for."""
    required: dict[str, list[str]] = {}
    pending = list(lines)
    while pending:
        package = pending.pop()
        name, _, extra = package.rstrip("]").partition("[")
        if package not in required and name in lines:
            required[package] = sorted({part for line in lines[name] for part in _requirements(line, extra)} - {name})
            pending += [part for part in required[package] if "[" in part]
    return required


def _requirements(line: str, extra: str) -> list[str]:
    """`name` and `name[extra]…` that a Requires-Dist line requires here, with this extra ("" for none)."""
    if ";" not in line and (plain := _PLAIN.fullmatch(line)):
        return [] if extra else [_plain(plain[1])]
    if not extra and re.search(r"\bextra\s*==", line):
        return []
    from packaging.requirements import InvalidRequirement, Requirement  # 0.02 s, where packages have changed

    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return []
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    if not applies or (extra and "extra" not in str(requirement.marker)):
        return []
    name = _plain(requirement.name)
    return [name, *(f"{name}[{_plain(other)}]" for other in requirement.extras)]


def _recorded(record: str) -> set[str]:
    """The top-level modules among a package's files; importlib.metadata takes ten times as long."""
    paths = (line.partition(",")[0] for line in record.splitlines())
    return {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
