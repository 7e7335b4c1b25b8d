"""Packages imported from their source folder: installed as editable, by a .pth file, or in PYTHONPATH.

Their code changes without a new version, so a step that imports one depends on the code itself. Project modules beside
a notebook are not among them: a run has copies of those.
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
    """Top-level name -> file or folder of each such package that `imports` (dotted names) lead to, also indirectly.

    None where no module of that name exists. `known` are the names of project modules and of installed packages.
    """
    packages: dict[str, Path | None] = {}
    seen = {OURS, *sys.stdlib_module_names, *known}
    pending = {name.partition(".")[0] for name in imports}
    while pending := pending - seen:
        name = pending.pop()
        seen.add(name)
        place = packages[name] = _place(name)
        for file in code_files(str(place)) if place is not None else ():
            if file.endswith(".py"):
                pending |= _imports(file)
    return dict(sorted(packages.items()))


def candidates(name: str) -> Iterator[Path]:
    """Every file in the folders of sys.path that would be the name's module, whether it exists or not."""
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
        except Exception:  # of an editable package's own finder; the notebook's import reports it
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
    modules = (part.strip() for names, name in _IMPORT.findall(text) for part in (name or names).split(","))
    return {match[0] for module in modules if (match := re.match(r"[A-Za-z_]\w*", module))}
