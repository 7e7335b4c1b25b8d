"""What came of a step's job, as its run takes it in: results, failures of the job itself, and its log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing.jobs import END, JobEnd, read_progress
from runner.notebook.redaction import Redactor
from runner.records import Artifact, StepError, StepJob, StepResult, utc_text
from runner.run.retries import STOPPED_BEFORE
from runner.run.store import files_of
from runner.step.execute import Progress

LAST_LINES = 30  # of the log, in the error of a job that left no result


def bring(found: Artifact, folder: Path, at: Bucket) -> None:
    """Copy what a job has left below `at` into the step's folder."""
    for path, fact in files_of(found):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{path}.partial"
        at.download(path, beside, fact)
        beside.replace(folder / path)


def without_result(job: StepJob, ended: JobEnd, name: str, log: JobLog) -> StepResult:
    """The failure of a job that has left no result."""
    now = utc_text()
    said = " ".join(filter(None, [ended.reason, ended.message])) or "it left no result"
    if ended.status == "Stopped":
        error = StepError(kind="interrupted", ename="Stopped", evalue=f"the job {name} was stopped")
    else:
        error = StepError(
            kind="remote",
            ename=ended.reason.partition(":")[0] or "NoResult",
            evalue=f"the job {name} ended {ended.status}: {said}",
            traceback=log.lines[-LAST_LINES:],
        )
    return StepResult(
        status="interrupted" if error.kind == "interrupted" else "failed",
        started=now,
        ended=now,
        seconds=ended.billed_s,
        cells=0,
        cells_run=0,
        inputs=dict(job.inputs),
        error=error,
        kernel=job.kernel,
    )


def stopped(result: StepResult, error: StepError, ended: JobEnd, name: str, limit_s: int) -> StepResult:
    """The result of a step that was told to stop, by its time limit or by somebody; the service says Stopped of both."""
    over = ended.late or (f"its time limit of {limit_s} s" if ended.billed_s >= limit_s else "")
    if over:
        said = f"the job {name} ran into {over}"
        late = msgspec.structs.replace(error, kind="timeout", ename="StepTimeout", evalue=said)
        return msgspec.structs.replace(result, status="failed", error=late)
    if ended.stopped_before:
        return msgspec.structs.replace(result, error=msgspec.structs.replace(error, ename=STOPPED_BEFORE))
    return result


class JobLog:
    """The job's lines, written beside the step; those that say how far it is go to the display."""

    def __init__(self, path: Path, job: StepJob, on_progress: Callable[[Progress], None]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._job, self._on_progress = job, on_progress
        self._redactor = Redactor()
        self.lines: list[str] = []

    def line(self, line: str) -> None:
        progress = read_progress(line)
        if progress is not None:
            self._on_progress(Progress(self._job.step, *progress))
        elif line != END:
            text, _ = self._redactor.text(line)
            self.lines = [*self.lines[-LAST_LINES:], text]
            self._file.write(text + "\n")
            self._file.flush()

    def status(self, status: str) -> None:
        """What SageMaker calls it is not more than a person sees already."""

    def close(self) -> None:
        self._file.close()
