"""What importing a library does besides making its modules: kept while it happens, as functions that do it again."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

STREAMS = {1: "stdout", 2: "stderr"}
Again = Callable[[FrameType], object]  # for the frame that imports it


class Effects:
    """Hands what an import prints, warns, displays, and filters of warnings, to `keep`."""

    def __init__(self, shell: Any, keep: Callable[[Again], None]) -> None:
        self.shell, self.keep = shell, keep
        self._keeping = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, nothing of it is done."""
        from runner.kernel.stream import CappedStream

        session, filters = self.shell.display_pub.session, warnings.filters
        sizes = {number: os.fstat(number).st_size for number in STREAMS}
        warned, self._shown = self.warned, warnings.showwarning
        CappedStream.keeper = session.keeper = self
        warnings.filters, warnings.showwarning = _Filters(self), warned  # type: ignore[assignment]
        self._keeping = True
        try:
            yield
        finally:
            self._take_written(sizes)
            self._keeping = False
            CappedStream.keeper = session.keeper = None
            warnings.filters = filters
            if warnings.showwarning is warned:  # otherwise the library's own, from now on
                warnings.showwarning = self._shown
            with warnings.catch_warnings():
                pass  # this tells the module that the filters are others

    def printed(self, stream: str, text: str) -> None:
        self.keep(lambda _: getattr(sys, stream).write(text))

    def sent(self, kind: str, content: dict[str, Any], metadata: Any, buffers: Any) -> None:
        shell = self.shell

        def again(_: FrameType) -> None:
            if kind in ("display_data", "update_display_data"):  # as it was, for who captures what is displayed
                shown = {"metadata": content["metadata"], "transient": content["transient"]}
                shell.display_pub.publish(content["data"], update=kind == "update_display_data", **shown)
            else:
                to, parent = shell.display_pub.pub_socket, shell.get_parent()
                shell.display_pub.session.send(to, kind, content, parent=parent, metadata=metadata, buffers=buffers)

        self.keep(again)

    def warned(self, message: Warning, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if not self._keeping:  # a library has put itself before this
            self._shown(message, category, filename, lineno, *rest)
            return

        def again(importing: FrameType) -> None:
            if filename == IMPORTS:  # said of whoever imports it
                names, place = importing.f_globals, (importing.f_code.co_filename, importing.f_lineno)
            else:
                names, place = _globals_of(filename), (filename, lineno)
            registry = names.setdefault("__warningregistry__", {})
            warnings.warn_explicit(message, category, *place, module=names.get("__name__"), registry=registry)

        self.keep(again)

    def filtered(self, item: Any, *, append: bool) -> None:
        action, message, category, module, lineno = item
        patterns = getattr(message, "pattern", ""), getattr(module, "pattern", "")
        self.keep(lambda _: warnings.filterwarnings(action, patterns[0], category, patterns[1], lineno, append))

    def _take_written(self, sizes: dict[int, int]) -> None:
        """What was written to the descriptors by other means; a server's are files."""
        from runner.kernel.stream import CappedStream

        if CappedStream.capture is not None:
            CappedStream.capture.drain()
            return
        for number, size in sizes.items():
            if text := os.pread(number, os.fstat(number).st_size - size, size):
                self.printed(STREAMS[number], text.decode(errors="replace"))


def import_module(name: str) -> None:
    __import__(name)


IMPORTS = import_module.__code__.co_filename


class _Filters(list[Any]):
    """The filters of warnings while a library is loaded: all are shown, which is to say kept, except what it filters
    itself; those that it adds are kept too."""

    def __init__(self, effects: Effects) -> None:
        super().__init__([("always", None, Warning, None, 0)])
        self.effects = effects

    def insert(self, index: Any, item: Any) -> None:
        self.effects.filtered(item, append=False)
        super().insert(index, item)

    def append(self, item: Any) -> None:
        self.effects.filtered(item, append=True)
        super().append(item)


def _globals_of(filename: str) -> dict[str, Any]:
    """Of the module in that file; {} where none is."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            names: dict[str, Any] = object.__getattribute__(module, "__dict__")  # a lazy module stays as it is
            if names.get("__file__") == filename:
                return names
    return {}
