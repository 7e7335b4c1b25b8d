"""Packages that are imported from where they are written: installed as editable, by a .pth file, or in PYTHONPATH.

Their code changes without a new version, so a step that imports one depends on the code itself. The project modules
beside a notebook are not among them: a run has copies of those.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

from runner.content import file_fact
from runner.run.machine import code_files, kernel_path

OURS = "runner"  # counts by its version
_IMPORT = re.compile(r"^[ \t]*import[ \t]+([^\n#;]+)|^[ \t]*from[ \t]+([A-Za-z_][\w.]*)[ \t]+import\b", re.M)


def places(imports: Iterable[str], *, known: Collection[str]) -> dict[str, Path | None]:
    """Top-level name -> file or folder of each such package that `imports` (dotted names) reach, through others too.

    None where nothing of that name is found now. `known` are names with another meaning: the project's own modules and
    what installed packages provide.
    """
    found: dict[str, Path | None] = {}
    seen = {OURS, *sys.stdlib_module_names, *known}
    pending = {name.partition(".")[0] for name in imports}
    while pending := pending - seen:
        name = pending.pop()
        seen.add(name)
        place = found[name] = _place(name)
        for file in code_files(str(place)) if place is not None else ():
            if file.endswith(".py"):
                pending |= _imports(file)
    return dict(sorted(found.items()))


def candidates(name: str) -> Iterator[Path]:
    """Every file in the places of sys.path that would be the name's module, whether it is there or not."""
    for place in map(Path, kernel_path()):
        yield from (place / f"{name}.py", place / name / "__init__.py")


def digest(place: Path) -> str:
    """The package's code by content: the names and bytes of its modules."""
    lines = (f"{file_fact(Path(file)).sha256}  {os.path.relpath(file, place)}\n" for file in code_files(str(place)))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _place(name: str) -> Path | None:
    """Where a kernel would import the name from."""
    path = kernel_path()
    for finder in sys.meta_path:
        if finder in (BuiltinImporter, FrozenImporter):
            continue
        try:
            spec = finder.find_spec(name, path if finder is PathFinder else None)
        except Exception:  # whatever an editable package's own finder raises, the notebook's import will say it
            continue
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
    return None


def _imports(file: str) -> set[str]:
    """Top-level names that the file seems to import; a large package would take seconds to be parsed."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    named = (part.strip() for several, one in _IMPORT.findall(text) for part in (one or several).split(","))
    return {found[0] for part in named if (found := re.match(r"[A-Za-z_]\w*", part))}
