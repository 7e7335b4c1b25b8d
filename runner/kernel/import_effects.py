"""The effects of importing a library besides its modules, kept as functions that repeat them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

STREAMS = {1: "stdout", 2: "stderr"}
Replay = Callable[[FrameType], object]  # called with the frame that imports the library


class ImportEffects:
    """Hands what an import prints, warns and displays, and its filters of warnings, to `keep`."""

    def __init__(self, shell: Any, keep: Callable[[Replay], None]) -> None:
        self.shell, self.keep = shell, keep
        self._keeping = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, these effects are kept instead of taking place."""
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
            if warnings.showwarning is warned:  # otherwise the library's own stays
                warnings.showwarning = self._shown
            with warnings.catch_warnings():
                pass  # by this the module notices that the filters have changed

    def printed(self, stream: str, text: str) -> None:
        self.keep(lambda _: getattr(sys, stream).write(text))

    def sent(self, kind: str, content: dict[str, Any], metadata: Any, buffers: Any) -> None:
        shell = self.shell

        def replay(_: FrameType) -> None:
            if kind in (
                "display_data",
                "update_display_data",
            ):  # by the publisher, which code may have replaced to capture displays
                shown = {"metadata": content["metadata"], "transient": content["transient"]}
                shell.display_pub.publish(content["data"], update=kind == "update_display_data", **shown)
            else:
                to, parent = shell.display_pub.pub_socket, shell.get_parent()
                shell.display_pub.session.send(to, kind, content, parent=parent, metadata=metadata, buffers=buffers)

        self.keep(replay)

    def warned(self, message: Warning, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if not self._keeping:  # a library has replaced the function and calls this one
            self._shown(message, category, filename, lineno, *rest)
            return

        def replay(importing: FrameType) -> None:
            if filename == IMPORTS:  # the warning is about the importing code
                names, position = importing.f_globals, (importing.f_code.co_filename, importing.f_lineno)
            else:
                names, position = _globals_of(filename), (filename, lineno)
            registry = names.setdefault("__warningregistry__", {})
            warnings.warn_explicit(message, category, *position, module=names.get("__name__"), registry=registry)

        self.keep(replay)

    def filtered(self, item: Any, *, append: bool) -> None:
        action, message, category, module, lineno = item
        patterns = getattr(message, "pattern", ""), getattr(module, "pattern", "")
        self.keep(lambda _: warnings.filterwarnings(action, patterns[0], category, patterns[1], lineno, append))

    def _take_written(self, sizes: dict[int, int]) -> None:
        """Keep text that was written to the descriptors directly; a server's are files."""
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
    """The filters of warnings while a library is loaded: all warnings are kept except those that it filters itself; the
    filters that it adds are kept too."""

    def __init__(self, effects: ImportEffects) -> None:
        super().__init__([("always", None, Warning, None, 0)])
        self.effects = effects

    def insert(self, index: Any, item: Any) -> None:
        self.effects.filtered(item, append=False)
        super().insert(index, item)

    def append(self, item: Any) -> None:
        self.effects.filtered(item, append=True)
        super().append(item)


def _globals_of(filename: str) -> dict[str, Any]:
    """The globals of the module in that file; {} if there is none."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            names: dict[str, Any] = object.__getattribute__(module, "__dict__")  # a lazy module stays as it is
            if names.get("__file__") == filename:
                return names
    return {}
