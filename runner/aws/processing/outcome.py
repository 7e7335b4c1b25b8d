"""A step's job as its run records it: results, failures of the job itself, and its log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing import keys
from runner.aws.processing.jobs import END, JobEnd, read_progress
from runner.aws.processing.prices import Prices
from runner.notebook.redaction import Redactor
from runner.records import StepError, StepJob, StepResult, StepStatus, decode
from runner.run.retries import STOPPED_BEFORE
from runner.run.store import files_of
from runner.step.execute import RESULT, Progress
from runner.step.outcome import not_executed

LAST_LINES = 30  # of the log, in the error of a job that left no result


def result_at(bucket: Bucket) -> StepResult | None:
    """The result that a job has put below the bucket's prefix; None where there is none."""
    content = bucket.get(RESULT)
    return None if content is None else decode(StepResult, content, where=bucket.address(RESULT))


def download_results(result: StepResult, folder: Path, bucket: Bucket, *, small_mb: float) -> None:
    """Copy the executed notebook and outputs of at most `small_mb` into the step's folder; the others stay in S3.

    Those of a mapped step come as one object.
    """
    if result.mapped is not None:
        keys.download(result, folder, bucket)
        return
    small = [output for output in result.outputs.values() if output.size_bytes <= small_mb * 1e6]
    for artifact in (*small, *([result.executed] if result.executed is not None else [])):
        for path, fact in files_of(artifact):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{path}.partial"
            bucket.download(path, partial, fact)
            partial.replace(folder / path)


def with_price(result: StepResult, prices: Prices, billed_s: float) -> StepResult:
    """The result with its price, of all its machines; `billed_s` is the job's time, for a result without its own."""
    assert result.remote is not None
    billed_s = billed_s if result.remote.billed_s is None else result.remote.billed_s
    price = prices.of(result.remote.instance, billed_s * result.remote.machines)
    remote = msgspec.structs.replace(result.remote, billed_s=billed_s, price_usd=price)
    return msgspec.structs.replace(result, remote=remote)


def without_result(job: StepJob, ended: JobEnd, name: str, log: JobLog) -> StepResult:
    """The failure of a job that has left no result."""
    reason = " ".join(filter(None, [ended.reason, ended.message])) or "it left no result"
    if ended.status == "Stopped":
        error = StepError(kind="interrupted", ename="Stopped", evalue=f"the job {name} was stopped")
    else:
        error = StepError(
            kind="remote",
            ename=ended.reason.partition(":")[0] or "NoResult",
            evalue=f"the job {name} ended {ended.status}: {reason}",
            traceback=log.lines[-LAST_LINES:],
        )
    status: StepStatus = "interrupted" if ended.status == "Stopped" else "failed"
    result = not_executed(job, error)
    return msgspec.structs.replace(result, status=status, seconds=ended.billed_s, kernel=job.kernel)


def stopped(result: StepResult, error: StepError, ended: JobEnd, name: str, limit_s: int) -> StepResult:
    """The result of a step that was stopped by its time limit or by somebody: for both the status is Stopped."""
    limit = ended.late or (f"its time limit of {limit_s} s" if ended.billed_s >= limit_s else "")
    if limit:
        sentence = f"the job {name} ran into {limit}"
        late = msgspec.structs.replace(error, kind="timeout", ename="StepTimeout", evalue=sentence)
        return msgspec.structs.replace(result, status="failed", error=late)
    if ended.stopped_before:
        return msgspec.structs.replace(result, error=msgspec.structs.replace(error, ename=STOPPED_BEFORE))
    return result


class JobLog:
    """The job's lines, written into the step's folder; those about progress go to the display."""

    def __init__(self, path: Path, job: StepJob, on_progress: Callable[[Progress], None]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._job, self._on_progress = job, on_progress
        self._redactor = Redactor()
        self.lines: list[str] = []

    def line(self, line: str) -> None:
        progress = read_progress(line, self._job.step)
        if progress is not None:
            self._on_progress(progress)
        elif line != END:
            text, _ = self._redactor.text(line)
            self.lines = [*self.lines[-LAST_LINES:], text]
            self._file.write(text + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
