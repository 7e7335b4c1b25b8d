"""`python -m runner.report FOLDER [STEP…]`: write a run's pages; with --follow, steps' names come on standard input.

With --again, the report that a repetition of the run will have is written too, to be filled in.

A process of its own, so that pages are made beside the next step and not after it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from runner.escape import terminal
from runner.manifest import RunManifest
from runner.records import read
from runner.report.markup import load
from runner.report.page import write_report, write_step
from runner.run.fast_path_record import page_of, template
from runner.run.store import Store


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if not arguments:
        sys.stderr.write("usage: python -m runner.report [--follow] [--again] FOLDER [STEP...]\n")
        return 2
    try:
        _write(Path(arguments[0]), arguments[1:])
    except OSError as error:  # such as a full disk; the command says how to try again
        sys.stderr.write(terminal(f"{error.strerror}: {error.filename or arguments[0]}") + "\n")
        return 1
    return 0


def _write(folder: Path, steps: list[str]) -> None:
    if "--follow" in sys.argv:
        os.nice(5)  # a person waits for the running step, not for pages
        load()
        names: Iterable[str] = map(str.strip, sys.stdin)
    else:
        names = steps or [state.name for state in _manifest(folder).steps]
    for name in names:
        manifest = _manifest(folder)
        for state in manifest.steps:
            if state.name == name:
                write_step(folder, manifest, state)
    manifest = _manifest(folder)
    write_report(folder, manifest)
    if "--again" in sys.argv and manifest.status == "succeeded":
        write_report(folder, template(manifest), page_of(Store(folder.parent), manifest.run))


def _manifest(folder: Path) -> RunManifest:
    return read(RunManifest, folder / "run.json")


if __name__ == "__main__":
    sys.exit(main())
