"""`python -m runner.report FOLDER [STEP…]`: write a run's pages; with --follow, steps' names come on standard input.

With --again, the report that a repetition of the run will have is written too, to be filled in.

A process of its own, so that pages are made beside the next step and not after it.
"""

from __future__ import annotations

import io
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
    steps: Iterable[str] | None = arguments[1:] or None
    return write(Path(arguments[0]), sys.stdin if "--follow" in sys.argv else steps, again="--again" in sys.argv)


def write(folder: Path, steps: Iterable[str] | None, *, again: bool) -> int:
    """Write the pages of the run in the folder; the exit code. `steps` may be an open file, a name a line, in which
    they are named as they end; None stands for all. With `again` as the option."""
    try:
        _write(folder, steps, again)
    except OSError as error:  # such as a full disk; the command says how to try again
        sys.stderr.write(terminal(f"{error.strerror}: {error.filename or folder}") + "\n")
        return 1
    return 0


def _write(folder: Path, steps: Iterable[str] | None, again: bool) -> None:
    if isinstance(steps, io.TextIOBase):
        os.nice(5)  # a person waits for the running step, not for pages
        load()
        steps = map(str.strip, steps)
    for name in steps or [state.name for state in _manifest(folder).steps]:
        manifest = _manifest(folder)
        for state in manifest.steps:
            if state.name == name:
                write_step(folder, manifest, state)
    manifest = _manifest(folder)
    write_report(folder, manifest)
    if again and manifest.status == "succeeded":
        write_report(folder, template(manifest), page_of(Store(folder.parent), manifest.run))


def _manifest(folder: Path) -> RunManifest:
    return read(RunManifest, folder / "run.json")


if __name__ == "__main__":
    sys.exit(main())
