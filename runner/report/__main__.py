"""`python -m runner.report FOLDER [STEP…]`: write a run's pages; with --follow, steps' names come on standard input.

With --again, the report that a repetition of the run will have is written too, to be filled in.

A process of its own, so that pages are made beside the next step and not after it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runner.escape import terminal
from runner.manifest import RunManifest
from runner.records import read
from runner.report.markup import load
from runner.report.notebook import write_notebook_page
from runner.report.page import write_report
from runner.run.fast_path_record import page_of, template
from runner.run.store import Store


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if not arguments:
        sys.stderr.write("usage: python -m runner.report [--follow] [--again] FOLDER [STEP...]\n")
        return 2
    try:
        _write(Path(arguments[0]), arguments[1:])
    except OSError as error:  # a full disk, a folder that is gone: the command says how to try again
        sys.stderr.write(terminal(f"{error.strerror}: {error.filename or arguments[0]}") + "\n")
        return 1
    return 0


def _write(folder: Path, steps: list[str]) -> None:
    if "--follow" in sys.argv:
        os.nice(5)  # the step that is running now is what somebody waits for
        load()
        for line in sys.stdin:
            write_step(folder, line.strip())
    else:
        for name in steps or [state.name for state in read(RunManifest, folder / "run.json").steps]:
            write_step(folder, name)
    write_report(folder)
    if "--again" in sys.argv:
        manifest = read(RunManifest, folder / "run.json")
        if manifest.status == "succeeded":
            write_report(folder, template(manifest), page_of(Store(folder.parent), manifest.run))


def write_step(folder: Path, name: str) -> None:
    """The page of one step, where it has an executed notebook."""
    manifest = read(RunManifest, folder / "run.json")
    state = next((state for state in manifest.steps if state.name == name), None)
    if state is not None and (folder / "steps" / name / "executed.ipynb").exists():
        write_notebook_page(folder / "steps" / name, manifest=manifest, state=state)


if __name__ == "__main__":
    sys.exit(main())
