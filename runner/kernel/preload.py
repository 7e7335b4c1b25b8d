"""Libraries loaded ahead of the cells that import them, and what their import says, kept for those cells.

Importing a library does more than make modules: it prints, warns, displays, and puts filters of warnings before those
that are there. All that belongs to the cell that imports it first, where the filters that earlier cells have set decide
what is shown. So none of it stays when a library is loaded here, and it is done again when a cell imports the package,
or one that imports it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from runner.import_blocking import deferred
from runner.kernel.import_effects import Again, Effects, import_module


@dataclass(frozen=True)
class Effect:
    """Something that importing `package` did."""

    package: str
    again: Again


class Preload:
    """In the kernel, or in the server that forks it, `load` is called; then in the kernel `begin`, and from there on
    cells find what they would find had nothing been loaded, except in `sys.modules`."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._effects: list[Effect] = []
        self._needs: dict[str, set[str]] = {}  # package: those with effects that it imports, or that need such
        self._heard: dict[str, _Initializing] = {}  # the packages of which imports are heard
        self._imported: set[str] = set()  # those of them that cells have imported
        self._loading = ""
        self._complete = self._begun = False

    def load(self, name: str, avoid: Collection[str] = ()) -> None:
        """Import the module, unless that would import a package in `avoid`; what goes wrong, the cell's import says."""
        self._loading = name.partition(".")[0]
        known, modules = self._known(), set(sys.modules)
        guard = _Guard(avoid)
        sys.meta_path.insert(0, guard)
        # pandas asks get_ipython() how to display
        with Effects(self.shell, self._keep).kept(), deferred(), self.shell.builtin_trap:
            try:
                import_module(name)
            except (Exception, SystemExit, _Avoided):
                _remove_orphans(modules)
        sys.meta_path.remove(guard)
        # what could not be imported is imported, and says all that, once more
        self._effects = [effect for effect in self._effects if effect.package in sys.modules]
        self._loading = ""
        self._complete = False
        if self._known() != known:
            self._listen()

    def complete(self) -> None:
        """Everything is loaded. A server says so before it forks: what is written here is each fork's own memory."""
        if not self._complete:
            self._listen()
            self._complete = True

    def begin(self) -> None:
        """From here on cells import."""
        from runner.kernel.shell import hide

        self.complete()
        self._begun = True
        # known only of packages with effects, of which numpy is one
        hide(lambda package: package in self._heard and package not in self._imported)

    def imported(self, package: str, by: FrameType) -> bool:
        """It is imported, and was there already; whether that was by a cell."""
        while by.f_back is not None and by.f_code.co_filename.startswith("<frozen importlib"):
            by = by.f_back
        if self._begun:
            self._do_again(package, by)
        elif self._loading and by.f_code.co_name == "<module>":
            self._needs.setdefault(_package(by), set()).add(package)
        return self._begun

    def _keep(self, again: Again) -> None:
        packages = _importing() or [self._loading]
        for inner, outer in itertools.pairwise(packages):
            self._needs.setdefault(outer, set()).add(inner)
        self._effects.append(Effect(packages[0], again))

    def _known(self) -> tuple[int, int]:
        return len(self._effects), sum(map(len, self._needs.values()))

    def _listen(self) -> None:
        """Hear of imports of what is loaded already: an import statement asks the module's spec whether it is still
        being initialised. (What a later Python does not ask is not said.)"""
        for name in {*self._needs, *(effect.package for effect in self._effects)}:
            self._heard.setdefault(name, _Initializing(self, name))
        for name, module in list(sys.modules.items()):
            package = self._heard.get(name.partition(".")[0])
            if package is not None and isinstance(module, ModuleType):
                # not by attribute, which has lazy modules load
                spec = object.__getattribute__(module, "__dict__").get("__spec__")
                if isinstance(spec, ModuleSpec) and spec._initializing is not package:  # type: ignore[attr-defined]
                    spec._initializing = package  # type: ignore[attr-defined]

    def _do_again(self, package: str, importing: FrameType) -> None:
        pending = [package]
        while pending:
            self._imported.add(one := pending.pop())
            pending += self._needs.get(one, set()) - self._imported
        due = [effect for effect in self._effects if effect.package in self._imported]
        self._effects = [effect for effect in self._effects if effect.package not in self._imported]
        for effect in due:
            try:
                effect.again(importing)
            except Exception as error:  # a warning that cells have made an error; the import itself is over
                sys.stderr.write(f"{type(error).__name__}: {error}\n")


class _Initializing:
    """False, for who asks it; and then a module of the package is being imported."""

    def __init__(self, preload: Preload, package: str) -> None:
        self.preload, self.package, self.done = preload, package, False

    def __bool__(self) -> bool:
        if not self.done:
            self.done = self.preload.imported(self.package, sys._getframe(1))
        return False


class _Avoided(BaseException):
    """No Exception: libraries do without what they cannot import."""


class _Guard:
    """Stands before what finds modules."""

    def __init__(self, avoid: Collection[str]) -> None:
        self.avoid = avoid

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.avoid:
            raise _Avoided(name)


def _remove_orphans(known: Collection[str]) -> None:
    """Modules that are not `known` and whose package could not be imported: it will import them once more."""
    for name in sorted(set(sys.modules).difference(known)):
        parent = name.rpartition(".")[0]
        if parent and parent not in sys.modules:
            del sys.modules[name]


def _importing() -> list[str]:
    """The packages whose modules are being executed, the innermost first."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not Preload.load.__code__:
        if frame.f_code.co_name == "<module>" and _package(frame) not in found[-1:]:
            found.append(_package(frame))
        frame = frame.f_back
    return found


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
