"""Writing an executed notebook: atomically, seldom while it runs, and free of credentials."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runner.failpoint import reach
from runner.notebook.redaction import Redactor

SAVE_EVERY_S = 5.0
# what nbformat keeps out of files, as it does a cell's `trusted`
TRANSIENT = ("orig_nbformat", "orig_nbformat_minor", "signature")
SPLIT_TOO = ("application/javascript", "image/svg+xml")  # what nbformat stores line by line beside text/*


class Saver:
    """Writes the notebook beside its place, then renames it there: at most every SAVE_EVERY_S, or now.

    What it writes is free of credentials, as is the notebook itself from then on; `redactor` knows what was there.
    With None as redactor it is written as it is. `put` writes to a place that is not a local file.
    """

    def __init__(
        self,
        path: Path,
        redactor: Redactor | None,
        *,
        every_s: float = SAVE_EVERY_S,
        put: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.path, self.redactor, self.every_s, self.put = path, redactor, every_s, put or self._replace
        self.last = time.monotonic()
        self._clean: dict[int, Any] = {}  # by identity: what was looked through already, and has not been replaced

    def __call__(self, nb: Any, now: bool) -> None:
        if not now and time.monotonic() - self.last < self.every_s:
            return
        if self.redactor is not None:
            self._redact(nb, self.redactor)
        self.put(written(nb))
        self.last = time.monotonic()

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_suffix(".partial")
        with beside.open("wb") as file:
            file.write(content)
            reach("notebook half saved")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        reach("notebook saved")

    def _redact(self, nb: Any, redactor: Redactor) -> None:
        for cell in nb.cells:
            where = f"cell [{cell.execution_count}]" if cell.get("execution_count") else "a cell"
            for output in cell.get("outputs", []):
                for field in output.keys() - {"output_type", "execution_count"}:
                    self._look_through(output, field, redactor, where)
        if "widgets" in nb.metadata:
            self._look_through(nb.metadata, "widgets", redactor, "a widget")

    def _look_through(self, holder: Any, field: str, redactor: Redactor, where: str) -> None:
        if self._clean.get(id(holder[field])) is not holder[field]:
            holder[field], kinds = redactor.inside(holder[field], images=field == "data")
            self._clean[id(holder[field])] = holder[field]
            redactor.note(where, kinds)


def written(nb: Any) -> bytes:
    """The notebook's file, byte for byte what nbformat writes; without its validation and copies, in a third of the time."""
    metadata = {name: value for name, value in nb["metadata"].items() if name not in TRANSIENT}
    made = {**nb, "metadata": metadata, "cells": [_cell(cell) for cell in nb["cells"]]}
    # half a surrogate pair, which a source may hold and no file can
    text = json.dumps(made, sort_keys=True, ensure_ascii=False).encode(errors="replace")
    try:
        return msgspec.json.format(text, indent=1) + b"\n"
    except msgspec.DecodeError:  # a NaN, which is not JSON and yet what kernels send and nbformat writes
        return json.dumps(made, sort_keys=True, ensure_ascii=False, indent=1).encode(errors="replace") + b"\n"


def _cell(cell: Any) -> dict[str, Any]:
    made = {**cell, "source": _lines(cell["source"])}
    if "trusted" in cell["metadata"]:
        made["metadata"] = {name: value for name, value in cell["metadata"].items() if name != "trusted"}
    if "attachments" in cell:
        made["attachments"] = {name: _bundle(data) for name, data in cell["attachments"].items()}
    if "outputs" in cell:
        made["outputs"] = [_output(output) for output in cell["outputs"]]
    return made


def _output(output: Any) -> dict[str, Any]:
    made = dict(output)
    if "data" in made:
        made["data"] = _bundle(made["data"])
    if "text" in made:
        made["text"] = _lines(made["text"])
    return made


def _bundle(data: Any) -> dict[str, Any]:
    return {
        kind: _lines(value) if kind.startswith("text/") or kind in SPLIT_TOO else value for kind, value in data.items()
    }


def _lines(value: Any) -> Any:
    return value.splitlines(keepends=True) if isinstance(value, str) else value
