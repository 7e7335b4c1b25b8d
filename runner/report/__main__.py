"""`python -m runner.report FOLDER [STEP…]`: write a run's pages; with --follow, steps' names come on standard input.

A process of its own, so that importing nbconvert happens beside the next step and not after it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from runner.records import RunManifest, read
from runner.report.notebook import write_notebook_page
from runner.report.page import write_report


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--follow"]
    if not arguments:
        sys.stderr.write("usage: python -m runner.report [--follow] FOLDER [STEP...]\n")
        return 2
    folder, steps = Path(arguments[0]), arguments[1:]
    if "--follow" in sys.argv:
        for line in sys.stdin:
            write_step(folder, line.strip())
    else:
        for name in steps or [state.name for state in read(RunManifest, folder / "run.json").steps]:
            write_step(folder, name)
    write_report(folder)
    return 0


def write_step(folder: Path, name: str) -> None:
    """The page of one step, where it has an executed notebook."""
    manifest = read(RunManifest, folder / "run.json")
    state = next((state for state in manifest.steps if state.name == name), None)
    if state is not None and (folder / "steps" / name / "executed.ipynb").exists():
        write_notebook_page(folder / "steps" / name, manifest=manifest, state=state)


if __name__ == "__main__":
    sys.exit(main())
