"""papermill's way to our client: an engine, and one function that runs a notebook through papermill with it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.failpoint import reach
from runner.lean import PAPERMILLS, without
from runner.pipeline.credentials import Redactor
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
        _look_up(nb_man.nb, kwargs["secrets"])
        StepClient(nb_man, kwargs["session"], kernel_name=kernel_name, skip_cells_with_tag="skip-execution").execute()


class Saver:
    """Writes the notebook beside its place, then renames it there: at most every SAVE_EVERY_S, or now.

    What it writes is free of credentials, as is the notebook itself from then on; `redactor` knows what was there.
    """

    def __init__(self, path: Path, redactor: Redactor) -> None:
        self.path, self.redactor = path, redactor
        self.last = time.monotonic()

    def __call__(self, nb: Any, now: bool) -> None:
        if not now and time.monotonic() - self.last < SAVE_EVERY_S:
            return
        from nbformat.v4.nbjson import JSONWriter  # without nbformat.write's validation of every output

        self._redact(nb)
        beside = self.path.with_suffix(".partial")
        with beside.open("w", encoding="utf-8") as file:
            writer: Any = JSONWriter()
            file.write(writer.writes(nb, split_lines=True) + "\n")
            reach("notebook half saved")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        reach("notebook saved")
        self.last = time.monotonic()

    def _redact(self, nb: Any) -> None:
        for cell in nb.cells:
            for output in cell.get("outputs", []):
                for field in ("text", "data", "evalue", "traceback"):
                    if field in output:
                        output[field], kinds = self.redactor.inside(output[field])
                        where = f"cell [{cell.execution_count}]" if cell.execution_count else "a cell"
                        self.redactor.note(where, kinds)


def execute(
    notebook: Path,
    parameters: dict[str, Value],
    *,
    language: str,
    kernel_name: str,
    session: Session,
    secrets: Mapping[str, str],
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
            secrets=secrets,
        )
    return kept


def _look_up(nb: Any, secrets: Mapping[str, str]) -> None:
    """Have the injected cell take each secret from the environment: the value stands in no file."""
    for cell in nb.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            for name, variable in secrets.items():
                line = f'{name} = __import__("os").environ["{variable}"]  # secret'
                cell.source = cell.source.replace(f'{name} = "env:{variable}"', line)


def _tell_the_truth(nb: Any, index: int | None) -> None:
    """papermill marks every cell completed, also those that never ran: put them back to pending."""
    for position, cell in enumerate(nb.cells):
        marks = cell.metadata.get("papermill", {})
        if index is not None and position == index:
            marks.update(status="failed", exception=True)
        elif index is None or position > index:
            marks.update(status="pending", exception=None)
    nb.metadata.papermill["exception"] = True
