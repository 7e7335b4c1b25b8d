"""Inside a processing or training job: a step folder is put together, executed as everywhere, and what came of it put away.

The job itself puts all of it into S3 before it ends: the executed notebook and the result whatever becomes of it, its
outputs where it ends well. Here it writes into its work folder (`_run.py`) and nowhere else.

A training job may be begun again on another instance. Where it was done by then, it is done; else all begins anew, with
outputs at a place of this start's own (`training.py`).
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing._run import leave_message
from runner.aws.processing.bundle import digest
from runner.aws.processing.jobs import END, progress_line
from runner.aws.processing.request import INPUT, JobPlace, input_name
from runner.aws.processing.training import VARIABLE, metric_line
from runner.aws.session import Session
from runner.content import artifact
from runner.errors import RunnerError, Tampered
from runner.escape import terminal
from runner.records import InputFact, RemoteJob, StepError, StepJob, StepResult, decode, encode, read, utc_text
from runner.run.packages import versions
from runner.run.store import files_of
from runner.step.__main__ import exit_code
from runner.step.execute import EXECUTED, JOB, RESULT, SOURCE, Progress, execute

THREADS = 4  # that send outputs


def main() -> int:
    try:
        return _main()
    except RunnerError as error:
        return say_failure(error)


def say_failure(error: RunnerError) -> int:
    """Say why the job has no result, in its log and where its client looks; the exit code."""
    sys.stderr.write(terminal(f"{error.headline}: {error}") + "\n")
    leave_message(str(error))
    return error.exit_code


def _main() -> int:
    stop = told_to_stop()
    job, place, session = given()
    if VARIABLE in os.environ:
        if is_done(place, session):
            _line("runner: an earlier start of this job has put everything away, nothing is executed")
            _line(END)
            return 0
        place = msgspec.structs.replace(place, key=f"{place.key}starts/{secrets.token_hex(4)}/", attempt=place.key)
    return carry_out(job, place, session, stop, arrived=by_service(place))


def is_done(place: JobPlace, session: Session) -> bool:
    """Whether this job has executed its step already, and well: its result is what is written last."""
    bucket = Bucket(session, place.bucket, place.key)
    content = bucket.get(RESULT)
    return content is not None and decode(StepResult, content, where=bucket.address(RESULT)).error is None


def given_folder() -> Path:
    """Where the service puts what the job is given."""
    return Path(os.environ.get("RUNNER_INPUT", INPUT))


def given() -> tuple[StepJob, JobPlace, Session]:
    """What the job was made for."""
    folder = given_folder() / "job"
    place, job = read(JobPlace, folder / "place.json"), read(StepJob, folder / JOB)
    return job, place, Session(place.region, kms_key=place.kms_key)


def carry_out(
    job: StepJob,
    place: JobPlace,
    session: Session,
    stop: threading.Event,
    *,
    arrived: Mapping[str, Path],
    code: Path | None = None,
    since: float | None = None,
) -> int:
    """Execute the step and put away what came of it; the exit code.

    `code` is the step's bundle where the service did not put it, `since` what its share of the job's time is from.
    """
    code = given_folder() / "step" if code is None else code
    try:
        check_code(place.code, code)
        result = perform(job, place, session, stop, arrived=arrived, code=code)
    except Tampered as error:
        refused = not_executed(job, StepError(kind="refused", ename="Tampered", evalue=str(error)))
        result = msgspec.structs.replace(refused, remote=_job(place))
    return leave(result if since is None else with_share(result, since), place, session)


def with_share(result: StepResult, since: float) -> StepResult:
    """The result with its part of the job's time, which began at `since`."""
    assert result.remote is not None
    billed_s = round(time.time() - since, 3)
    return msgspec.structs.replace(result, remote=msgspec.structs.replace(result.remote, billed_s=billed_s))


def check_code(sha256: str, folder: Path) -> None:
    """Raises Tampered where the step's files are not those of that hash; to be asked before anything of them runs."""
    found = digest(folder)
    if found != sha256:
        raise Tampered(
            f"The step's files that came to the job have the hash {found[:12]} and not {sha256[:12]}: steps/{sha256}/ in "
            "the bucket was altered. Delete it and `runner resume` (of a Pipeline: push and start again)."
        )


def told_to_stop() -> threading.Event:
    """Set once the service has asked the container to end."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    return stop


def by_service(place: JobPlace) -> dict[str, Path]:
    """Where the service has put the step's inputs."""
    folder = given_folder()
    return {name: folder / input_name(number) / file for number, (name, file) in enumerate(sorted(place.files.items()))}


def perform(
    job: StepJob,
    place: JobPlace,
    session: Session,
    stop: threading.Event,
    *,
    arrived: Mapping[str, Path],
    code: Path,
) -> StepResult:
    """Put the step folder together and execute it. Again from the start where it was called before.

    `arrived` are the inputs that are read by path, as files or folders of this machine, `code` the step's bundle.
    """
    secrets = _secrets(job, place, session)
    try:
        return _performed(job, place, stop, arrived, code)
    finally:
        for variable in secrets:  # another step of the same job is not to see them
            del os.environ[variable]


def _performed(
    job: StepJob, place: JobPlace, stop: threading.Event, arrived: Mapping[str, Path], code: Path
) -> StepResult:
    _put_together(job, code)
    came, wrong = _inputs(job, arrived)
    if wrong is None:
        project = work() / "project"
        cwd = project / place.notebook_folder
        cwd.mkdir(parents=True, exist_ok=True)
        result = execute(step_folder(), cwd=cwd, project=project, stop=stop, on_progress=_say)
    else:
        result = not_executed(job, wrong)
    return msgspec.structs.replace(result, inputs={**result.inputs, **came}, remote=_job(place))


def leave(result: StepResult, place: JobPlace, session: Session) -> int:
    """Put away what came of the step; the exit code."""
    bucket = Bucket(session, place.bucket, place.key)
    for name, metric in result.metrics.items() if place.attempt is not None else ():
        _line(metric_line(name, metric.value))
    if result.error is None:
        _put_outputs(result, bucket)
    if result.executed is not None:
        bucket.put(EXECUTED, (step_folder() / EXECUTED).read_bytes())
    Bucket(session, place.bucket, place.attempt or place.key).put(RESULT, encode(result))
    if result.error is not None:
        _say_error(result.error)
    _line(END)
    return exit_code(result)


def work() -> Path:
    """Where the job writes (`_run.py`)."""
    return Path(os.environ["RUNNER_WORK"])


def step_folder() -> Path:
    """The step's folder in this job."""
    return work() / "step"


def keep_outputs(step: str) -> None:
    """Put the outputs of the step that was executed last where a later one of the same job finds them."""
    target = work() / "made" / step
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if (step_folder() / "out").is_dir():
        (step_folder() / "out").rename(target / "out")


def kept_outputs(step: str) -> Path | None:
    """The folder that has the step's `out/`; None where this job has not executed it."""
    target = work() / "made" / step
    return target if target.is_dir() else None


def _put_together(job: StepJob, code: Path) -> None:
    step, project = step_folder(), work() / "project"
    for folder in (step, project):
        shutil.rmtree(folder, ignore_errors=True)
    (step / "in").mkdir(parents=True)
    shutil.copyfile(code / SOURCE, step / SOURCE)
    if (code / "modules").is_dir():
        shutil.copytree(code / "modules", step / "modules")
    if (code / "project").is_dir():  # a copy, as cells may write where they run
        shutil.copytree(code / "project", project)
    (step / JOB).write_bytes(encode(job))


def _inputs(job: StepJob, arrived: Mapping[str, Path]) -> tuple[dict[str, InputFact], StepError | None]:
    """Put each input where the step reads it. Gives what was not known by content before, and what is not as it was."""
    came: dict[str, InputFact] = {}
    for name, fact in job.inputs.items():
        if not fact.is_file or fact.artifact is None:
            continue
        try:
            found = artifact(arrived[name], name=fact.artifact.path)
        except RunnerError as error:
            return came, _changed(name, fact, str(error))
        if fact.listed:
            came[name] = msgspec.structs.replace(fact, artifact=found, listed=False)
        elif found.sha256 != fact.artifact.sha256:
            return came, _changed(name, fact, f"sha256 {found.sha256[:12]}, recorded {fact.artifact.sha256[:12]}")
        (step_folder() / "in" / name).symlink_to(arrived[name])
    return came, _moved_on(job)


def _moved_on(job: StepJob) -> StepError | None:
    """A source in S3 that is not any more what it was when the run was started."""
    from runner.aws.s3 import S3
    from runner.run.sources import listing_digest

    for name, fact in job.inputs.items():
        if fact.listed and fact.artifact is not None and fact.as_ == "path":
            now = listing_digest(S3().listing(fact.source))
            if now != fact.artifact.sha256:
                return _changed(name, fact, "its listing is another than when the run was started")
    return None


def _changed(name: str, fact: InputFact, why: str) -> StepError:
    return StepError(
        kind="input changed",
        ename="InputChanged",
        evalue=f"input `{name}` ({fact.source}) is not what the run was started with: {why}. Run again.",
    )


def _secrets(job: StepJob, place: JobPlace, session: Session) -> list[str]:
    """Values of secret parameters come from Secrets Manager, never through the job's description; the variables set."""
    made = []
    for variable in job.secrets.values():
        if variable not in os.environ:
            name = f"{place.secrets}{variable}"
            found = session.call("secretsmanager", "get_secret_value", about=f"secret {name}", SecretId=name)
            os.environ[variable] = found["SecretString"]
            made.append(variable)
    return made


def _put_outputs(result: StepResult, bucket: Bucket) -> None:
    """Not by the service, which would have them in a folder that the job's user may not write."""
    paths = [path for output in result.outputs.values() for path, _ in files_of(output)]
    with ThreadPoolExecutor(THREADS) as pool:
        sent = [pool.submit(bucket.upload, path, step_folder() / path, missing_only=False) for path in paths]
        for future in sent:
            future.result()


def _job(place: JobPlace) -> RemoteJob:
    return RemoteJob(
        name=place.job,
        at=f"s3://{place.bucket}/{place.key}",
        image=place.image,
        instance=place.instance,
        python=platform.python_version(),
        environment="image" if os.environ.get("RUNNER_ENVIRONMENT") == "image" else "lock",
        packages=versions(),
    )


def not_executed(job: StepJob, error: StepError) -> StepResult:
    now = utc_text()
    return StepResult(
        status="failed", started=now, ended=now, seconds=0.0, cells=0, cells_run=0, inputs=dict(job.inputs), error=error
    )


def _say(progress: Progress) -> None:
    _line(progress_line(progress.done, progress.total, progress.cell, progress.first_line))


def _line(text: str) -> None:
    sys.stdout.write(terminal(text) + "\n")
    sys.stdout.flush()


def _say_error(error: StepError) -> None:
    where = f" in cell [{error.cell}] {error.first_line}" if error.cell is not None else ""
    leave_message(f"{error.ename}: {error.evalue}{where}")


if __name__ == "__main__":
    sys.exit(main())
