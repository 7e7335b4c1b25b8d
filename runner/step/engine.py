"""papermill's way to our client: an engine, and one function that runs a notebook through papermill with it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from runner.lean import PAPERMILLS, without
from runner.records import Value

with without(*PAPERMILLS, "pyarrow"):  # nothing in this process reads tables
    import papermill
    from papermill.engines import Engine, papermill_engines
    from papermill.exceptions import PapermillExecutionError

from runner.step.client import Session, StepClient  # after papermill, which it imports too

NAME = "runner"
SAVE_EVERY_S = 5.0


class RunnerEngine(Engine):  # type: ignore[misc]
    """Executes in `session.kernel`. papermill's own saves are off: `Saver` writes, atomically and seldom."""

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        session: Session = kwargs["session"]
        done = super().execute_notebook(nb, kernel_name, **kwargs)
        if session.ending != "end":
            _tell_the_truth(done, session.index)
        session.save(done, True)
        return done

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
        StepClient(nb_man, kwargs["session"], kernel_name=kernel_name, skip_cells_with_tag="skip-execution").execute()


class Saver:
    """Writes the notebook beside its place, then renames it there: at most every SAVE_EVERY_S, or now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = time.monotonic()

    def __call__(self, nb: Any, now: bool) -> None:
        if not now and time.monotonic() - self.last < SAVE_EVERY_S:
            return
        from nbformat.v4.nbjson import JSONWriter  # without nbformat.write's validation of every output

        beside = self.path.with_suffix(".partial")
        with beside.open("w", encoding="utf-8") as file:
            writer: Any = JSONWriter()
            file.write(writer.writes(nb, split_lines=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self.last = time.monotonic()


def execute(
    notebook: Path, parameters: dict[str, Value], *, language: str, kernel_name: str, session: Session
) -> list[Any]:
    """The executed notebook's cells; how it ended is in `session`."""
    if NAME not in papermill_engines._engines:
        papermill_engines.register(NAME, RunnerEngine)
    kept: list[Any] = []
    save = session.save

    def keep(nb: Any, now: bool) -> None:
        kept[:] = nb.cells  # papermill inserts banners into a failed notebook afterwards
        save(nb, now)

    session.save = keep
    # papermill goes by the error outputs it finds, so cells tagged `raises-exception` count too;
    # whether this notebook failed is for the session to say
    with contextlib.suppress(PapermillExecutionError):
        papermill.execute_notebook(
            str(notebook),
            None,
            parameters=parameters,
            engine_name=NAME,
            kernel_name=kernel_name,
            language=language,
            progress_bar=False,
            session=session,
        )
    return kept


def _tell_the_truth(nb: Any, index: int | None) -> None:
    """papermill marks every cell completed, also those that never ran: put them back to pending."""
    for position, cell in enumerate(nb.cells):
        marks = cell.metadata.get("papermill", {})
        if index is not None and position == index:
            marks.update(status="failed", exception=True)
        elif index is None or position > index:
            marks.update(status="pending", exception=None)
    nb.metadata.papermill["exception"] = True
