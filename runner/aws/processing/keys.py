"""A mapped step as one job: all its keys on the job's machine, as many at once as it has cores.

    <attempt>/out/<output>/<key's folder>/…, out/<output>/keys.json   a prefix that the next step's job reads as it is
    <attempt>/keys.tar.gz     what comes back to the client in one call: `keys/…`, and outputs that are small

A later attempt takes what an earlier one has of the keys from S3, and executes the others.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.audit.tarball import Tarball
from runner.aws.bucket import Bucket
from runner.aws.processing.request import JobKeys
from runner.content import file_fact
from runner.errors import RemoteError, RunnerError
from runner.escape import terminal
from runner.notebook.source import read_notebook
from runner.pipeline.plan import PlannedStep
from runner.records import FileFact, StepJob, StepResult, StepSpec
from runner.run.cache import Cache
from runner.run.mapped import MappedExecution
from runner.run.store import Store, files_of
from runner.run.turns import InTurn
from runner.step.execute import SOURCE, Progress
from runner.step.local import LocalExecutor

log = logging.getLogger(__name__)

ARCHIVE = "keys.tar.gz"
EVERY_S = 1.0  # between two lines of progress in the job's log
HEADER_BYTES = 4096  # at most, of a file in the archive
STORE = "store"  # in the folder beside the step's


@dataclass(frozen=True)
class EarlierAttempt:
    """What another attempt at the step has left below the bucket's prefix."""

    result: StepResult
    bucket: Bucket
    fetch_outputs: Callable[[Path], Path]  # downloads them into the folder


def execute_keys(
    job: StepJob,
    keys: JobKeys,
    folder: Path,
    *,
    earlier: EarlierAttempt | None,
    cwd: Path,
    project: Path,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
) -> StepResult:
    """Execute the keys that `earlier` has no good result of, in the step's folder; the result of the step."""
    values = keys.step_key.parameters[keys.parameter]
    assert isinstance(values, list)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(cores // (job.cluster.workers if job.cluster else 1), len(values)))
    store = Store(folder.parent / STORE)
    shutil.rmtree(store.root, ignore_errors=True)  # of another step of the same job
    store.prepare()
    if earlier is not None:
        try:
            _take_over(earlier, folder, store)
        except RunnerError as error:  # removed or altered; what is there of it is checked key by key
            log.warning("What the attempt before has left is not taken: %s", terminal(str(error)))
    spec = StepSpec(notebook=job.notebook, map={keys.parameter: values}, share=keys.share)
    step = PlannedStep(job.step, spec, read_notebook(folder / SOURCE), job.parameters)
    local = LocalExecutor(project, kernel=job.kernel)
    execution = MappedExecution(
        step,
        values,
        msgspec.structs.replace(job, threads=max(1, cores // jobs)),
        keys.step_key,
        folder=folder,
        store=store,
        cache=Cache(store, project),
        executor=InTurn(local, threading.Semaphore(jobs), ahead=True),
        jobs=jobs,
        force=True,
    )
    on_progress = _seldom(on_progress)
    try:
        return execution.run(cwd=cwd, stop=stop, on_progress=on_progress)
    except (RunnerError, OSError) as error:  # one key's, or a full disk's: what the others have is sent all the same
        stopped = threading.Event()
        stopped.set()
        result = execution.run(cwd=cwd, stop=stopped, on_progress=on_progress)
        if result.error is None:
            return result
        evalue = f"{error}; {result.error.evalue}"
        said = msgspec.structs.replace(result.error, kind="remote", ename=type(error).__name__, evalue=evalue)
        return msgspec.structs.replace(result, status="failed", error=said)
    finally:
        local.close()


def _seldom(on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """One call each EVERY_S and for the last key: each is a line in the job's log, which the client reads."""
    last = 0.0

    def note(progress: Progress) -> None:
        nonlocal last
        if progress.done == progress.total or time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            on_progress(progress)

    return note


def _take_over(earlier: EarlierAttempt, folder: Path, store: Store) -> None:
    """Put the earlier attempt's keys into the step's folder and their outputs into the store, which checks them."""
    beside = folder.parent / "earlier"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    download(earlier.result, folder, earlier.bucket)
    if earlier.result.outputs:
        earlier.fetch_outputs(beside)
    for path in (*beside.rglob("*"), *(folder / "keys").rglob("*")):
        if path.is_file():
            store.add(path, file_fact(path))
    shutil.rmtree(beside)


def upload(result: StepResult, folder: Path, bucket: Bucket, *, small_mb: float) -> None:
    """Put the archive there: the keys' records and notebooks, and each output of at most `small_mb`."""
    assert result.mapped is not None
    small = [output for output in result.outputs.values() if output.size_bytes <= small_mb * 1e6]
    archive = folder.parent / ARCHIVE
    with tarfile.open(archive, mode="w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as tar:
        for artifact in (result.mapped.files, *small):
            for path, fact in files_of(artifact):
                member = tarfile.TarInfo(path)
                member.size = fact.size_bytes
                with (folder / path).open("rb") as content:
                    tar.addfile(member, content)
    bucket.upload(ARCHIVE, archive, missing_only=False)
    archive.unlink()


def download(result: StepResult, folder: Path, bucket: Bucket) -> None:
    """Take the archive's files into the step's folder: those that the result names, with the hashes that it has.

    Raises RemoteError where one differs, or a key's record or notebook is missing.
    """
    assert result.mapped is not None
    where = bucket.address(ARCHIVE)
    known = {path: fact for artifact in result.artifacts() for path, fact in files_of(artifact)}
    zeros = tarfile.RECORDSIZE  # at most so many stand at an archive's end
    most_bytes = sum(fact.size_bytes + HEADER_BYTES for fact in known.values()) + zeros
    content = bucket.get(ARCHIVE)
    if content is None:
        raise RemoteError(f"There is no {where}, which has the keys' results. It was removed.")
    missing = {path for path, _ in files_of(result.mapped.files)}
    for member in Tarball(io.BytesIO(content), most_bytes=most_bytes, where=where):
        if member.name in known:
            _write(folder / member.name, member.read(), known[member.name], where)
            missing.discard(member.name)
    if missing:
        raise RemoteError(f"{where} lacks {min(missing)}, which the result names. It was altered.")


def _write(path: Path, content: bytes, fact: FileFact, where: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    if file_fact(partial) != fact:
        partial.unlink()
        raise RemoteError(f"{where}: {path.name} has other bytes than the result says. Nothing of it was kept.")
    partial.replace(path)
