"""Inside a processing or training job: make the step folder, execute it as everywhere, and send its results to S3.

The job sends the executed notebook and the result in any case, and the outputs where the step succeeded. On its machine
it writes into its work folder only (`_run.py`).

The service may start a training job again on another instance. If the step has succeeded by then, nothing is executed;
else it is executed from the beginning, with the outputs in a folder of this start (`training.py`).
"""

from __future__ import annotations

import functools
import json
import os
import platform
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing import keys
from runner.aws.processing._run import leave_message
from runner.aws.processing.bundle import digest
from runner.aws.processing.jobs import END, progress_line
from runner.aws.processing.outcome import result_at
from runner.aws.processing.request import INPUT, JobPlace, input_name
from runner.aws.processing.training import VARIABLE, metric_line
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.cluster import LOOPBACK, Machines, OnLine
from runner.cluster.process import bounded, start
from runner.content import artifact
from runner.errors import KernelDied, RemoteError, RunnerError, Tampered
from runner.escape import terminal
from runner.paths import inside
from runner.records import InputFact, RemoteJob, StepError, StepJob, StepResult, encode, read
from runner.run.packages import versions
from runner.run.store import files_of
from runner.step.__main__ import exit_code
from runner.step.execute import EXECUTED, JOB, RESULT, SOURCE, Progress, execute
from runner.step.outcome import not_executed

MACHINES = Path("/opt/ml/config/resourceconfig.json")  # of a processing job
THREADS = 4  # that send outputs, or fetch an input


def main() -> int:
    stop = stop_event()
    job, place, session = own_job()
    machines = job_machines(job, place)
    if machines.own != machines.hosts[0]:
        return add_workers(job, place, session, stop, paths=service_inputs(place))
    if VARIABLE in os.environ:
        earlier = result_at(Bucket(session, place.bucket, place.key))
        if earlier is not None and earlier.error is None:
            log("runner: an earlier start of this job has sent all its results, nothing is executed")
            log(END)
            return 0
        place = msgspec.structs.replace(place, key=f"{place.key}starts/{secrets.token_hex(4)}/", attempt=place.key)
    return execute_and_send(job, place, session, stop, paths=service_inputs(place))


def exit_with(run: Callable[[], int]) -> NoReturn:
    """End the program with the exit code of `run`, or of its error, which goes to the log and to the job's client."""
    try:
        sys.exit(run())
    except RunnerError as error:
        sys.stderr.write(terminal(f"{error.headline}: {error}") + "\n")
        leave_message(str(error))
        sys.exit(error.exit_code)


def input_folder() -> Path:
    """The folder that has the job's inputs, put there by the service."""
    return Path(os.environ.get("RUNNER_INPUT", INPUT))


def own_job() -> tuple[StepJob, JobPlace, Session]:
    """The step that the job was made for."""
    folder = input_folder() / "job"
    place, job = read(JobPlace, folder / "place.json"), read(StepJob, folder / JOB)
    return job, place, Session(place.region, kms_key=place.kms_key)


def execute_and_send(
    job: StepJob,
    place: JobPlace,
    session: Session,
    stop: threading.Event,
    *,
    paths: Mapping[str, Path],
    code: Path | None = None,
    since: float | None = None,
) -> int:
    """Execute the step and send its results; the exit code.

    `code` is the step's bundle where the service did not put it, `since` the start of its share of the job's time.
    """
    code = input_folder() / "step" if code is None else code
    try:
        check_code(place.code, code)
        result = execute_step(job, place, session, stop, paths=paths, code=code)
    except Tampered as error:
        refused = not_executed(job, StepError(kind="refused", ename="Tampered", evalue=str(error)))
        result = msgspec.structs.replace(refused, remote=_remote(place))
    return send(result if since is None else with_billed_time(result, since), place, session)


def with_billed_time(result: StepResult, since: float) -> StepResult:
    """The result with its share of the job's time, which began at `since`."""
    assert result.remote is not None
    billed_s = round(time.time() - since, 3)
    return msgspec.structs.replace(result, remote=msgspec.structs.replace(result.remote, billed_s=billed_s))


def check_code(sha256: str, folder: Path) -> None:
    """Raises Tampered where the step's files do not have that hash; to be called before any of them runs."""
    actual = digest(folder)
    if actual != sha256:
        raise Tampered(
            f"The step's files that came to the job have the hash {actual[:12]} and not {sha256[:12]}: steps/{sha256}/ "
            "in the bucket was altered. Delete it and `runner resume` (of a Pipeline: push and start again)."
        )


def stop_event() -> threading.Event:
    """Set when the service asks the container to end."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    return stop


def last_attempt(place: JobPlace, attempt: int, session: Session) -> keys.EarlierAttempt | None:
    """What the latest attempt before this one has left of a mapped step; None where none has."""
    for number in range(attempt - 1, 0, -1):
        bucket = Bucket(session, place.bucket, place.key.removesuffix(f"{attempt}/") + f"{number}/")
        result = result_at(bucket)
        if result is not None and result.mapped is not None:
            fetch_outputs = functools.partial(fetch, bucket.address("out/"), session=session)
            return keys.EarlierAttempt(result, bucket, fetch_outputs)
    return None


def service_inputs(place: JobPlace) -> dict[str, Path]:
    """The paths at which the service has put the step's inputs."""
    folder = input_folder()
    return {name: folder / input_name(number) / file for number, (name, file) in enumerate(sorted(place.files.items()))}


def execute_step(
    job: StepJob,
    place: JobPlace,
    session: Session,
    stop: threading.Event,
    *,
    paths: Mapping[str, Path],
    code: Path,
) -> StepResult:
    """Make the step folder anew and execute it.

    `paths` are the files or folders of the inputs that are read by path, `code` is the step's bundle.
    """
    project = work() / "project"
    variables = _set_secrets(job, place, session)
    try:
        _make_folders(job, code, step_folder(), project)
        identified, error = _link_inputs(job, paths)
        if error is None:
            cwd = project / place.notebook_folder
            cwd.mkdir(parents=True, exist_ok=True)
            if place.keys is None:
                machines = job_machines(job, place)
                run = functools.partial(execute, step_folder(), machines=machines)
            else:
                earlier = last_attempt(place, job.attempt, session)
                run = functools.partial(keys.execute_keys, job, place.keys, step_folder(), earlier=earlier)
            result = run(cwd=cwd, project=project, stop=stop, on_progress=_log_progress)
        else:
            result = not_executed(job, error)
    finally:
        for variable in variables:  # another step of the same job must not see them
            del os.environ[variable]
    return msgspec.structs.replace(result, inputs={**result.inputs, **identified}, remote=_remote(place))


def job_machines(job: StepJob, place: JobPlace) -> Machines:
    """The machines of this job, as the service tells each. Raises RemoteError where they are not as many as asked."""
    secret_values = [os.environ[variable] for variable in job.secrets.values() if variable in os.environ]
    on_line = bounded(lambda name, line: log(f"{name} | {line}"), secret_values)
    if place.machines == 1:
        return Machines(LOOPBACK, [LOOPBACK], on_line)
    return named_machines(place.machines, on_line)


def named_machines(count: int, on_line: OnLine | None = None) -> Machines:
    """The machines of a job of several, by the names that the service gives them. As `job_machines` raises."""
    content = json.loads(MACHINES.read_bytes())
    own, hosts = str(content["current_host"]), [str(host) for host in content["hosts"]]
    if len(hosts) != count or own not in hosts:
        raise RemoteError(
            f"The job was made for {count} machines, and {MACHINES} tells of {', '.join(hosts)}. Run again."
        )
    return Machines(own, sorted(hosts, key=lambda host: (len(host), host)), on_line)


def add_workers(
    job: StepJob, place: JobPlace, session: Session, stop: threading.Event, *, paths: Mapping[str, Path]
) -> int:
    """Be another machine of the job: its workers, until the cluster ends; the exit code. `paths` as for `execute_step`.

    They find inputs and modules at the paths that the first machine's notebook names.
    """
    assert job.cluster is not None
    code, project = input_folder() / "step", work() / "project"
    check_code(place.code, code)
    _set_secrets(job, place, session)
    machines = job_machines(job, place)
    assert machines.on_line is not None
    _make_folders(job, code, step_folder(), project)
    _, error = _link_inputs(job, paths)
    cwd, modules, scratch = project / place.notebook_folder, step_folder() / "modules", work() / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of an attempt before
    for folder in (cwd, modules, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    if error is None:
        process = start(
            job.cluster, machines, threads=0, path=[modules, cwd], scratch=scratch, on_line=machines.on_line
        )
        error = process.wait("ready", stop=stop) or process.wait("ended", stop=stop, seconds=None)
        process.close()
    if error is not None:
        leave_message(f"{machines.own}: {error.evalue}")
        log(f"runner: {error.evalue}")
    return 0 if error is None else 143 if error.kind == "interrupted" else KernelDied.exit_code


def send(result: StepResult, place: JobPlace, session: Session) -> int:
    """Put the step's results into S3; the exit code. The result itself is last: where it is, they all are."""
    bucket = Bucket(session, place.bucket, place.key)
    for name, metric in result.metrics.items() if place.attempt is not None else ():
        log(metric_line(name, metric.value))
    if result.error is None or result.mapped is not None:  # of the keys that have succeeded
        # not by the service, which would have them in a folder that the job's user may not write
        paths = [path for output in result.outputs.values() for path, _ in files_of(output)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda path: bucket.upload(path, step_folder() / path, missing_only=False), paths))
    if result.executed is not None:
        bucket.put(EXECUTED, (step_folder() / EXECUTED).read_bytes())
    if place.keys is not None and result.mapped is not None:
        keys.upload(result, step_folder(), bucket, small_mb=place.keys.small_mb)
    Bucket(session, place.bucket, place.attempt or place.key).put(RESULT, encode(result))
    if result.error is not None:
        error = result.error
        where = f" in cell [{error.cell}] {error.first_line}" if error.cell is not None else ""
        leave_message(f"{error.ename}: {error.evalue}{where}")
    log(END)
    return exit_code(result)


def work() -> Path:
    """The folder that the job writes into (`_run.py`)."""
    return Path(os.environ["RUNNER_WORK"])


def step_folder() -> Path:
    """The step's folder in this job."""
    return work() / "step"


def keep_outputs(step: str) -> None:
    """Move the outputs of the last executed step to where a later one of the same job reads them."""
    target = work() / "made" / step
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if (step_folder() / "out").is_dir():
        (step_folder() / "out").rename(target / "out")


def kept_outputs(step: str) -> Path | None:
    """The folder that has the step's `out/`; None where this job has not executed it."""
    target = work() / "made" / step
    return target if target.is_dir() else None


def fetch(address: str, folder: Path, session: Session) -> Path:
    """Download the object, or all objects below an address that ends in `/`, into the folder; the path of the input.

    For what the service could not put there, as its address was not known when the job was made. Whoever reads it
    compares it with what was recorded. Raises RemoteError where there is no such object.
    """
    name, key = split(address)
    bucket = Bucket(session, name, key[: key.rfind("/") + 1])
    file = PurePosixPath(key).name
    targets = {file: folder / file}
    if address.endswith("/"):
        targets = {path: folder / inside(path) for path, _ in bucket.keys("") if path and not path.endswith("/")}
    if not targets:
        raise RemoteError(f"There is nothing below {address}, which the job is to read. It was removed.")
    for target in targets.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda item: bucket.download(*item), targets.items()))
    return folder if address.endswith("/") else folder / file


def read_object(bucket: Bucket, key: str) -> bytes:
    """The object's bytes. Raises RemoteError where there is none."""
    content = bucket.get(key)
    if content is None:
        raise RemoteError(f"There is no {bucket.address(key)}, which the job is to read. It was removed.")
    return content


def _make_folders(job: StepJob, code: Path, step: Path, project: Path) -> None:
    for folder in (step, project):
        shutil.rmtree(folder, ignore_errors=True)
    (step / "in").mkdir(parents=True)
    shutil.copyfile(code / SOURCE, step / SOURCE)
    if (code / "modules").is_dir():
        shutil.copytree(code / "modules", step / "modules")
    if (code / "project").is_dir():  # a copy, as cells may write where they run
        shutil.copytree(code / "project", project)
    (step / JOB).write_bytes(encode(job))


def _link_inputs(job: StepJob, paths: Mapping[str, Path]) -> tuple[dict[str, InputFact], StepError | None]:
    """Link each input into the step's folder. (facts of inputs whose content was not known, error of a changed one)."""
    identified: dict[str, InputFact] = {}
    for name, fact in job.inputs.items():
        if not fact.is_file or fact.artifact is None:
            continue
        try:
            actual = artifact(paths[name], name=fact.artifact.path)
        except RunnerError as error:
            return identified, _changed(name, fact, str(error))
        if fact.listed:
            identified[name] = msgspec.structs.replace(fact, artifact=actual, listed=False)
        elif actual.sha256 != fact.artifact.sha256:
            difference = f"sha256 {actual.sha256[:12]}, recorded {fact.artifact.sha256[:12]}"
            return identified, _changed(name, fact, difference)
        (step_folder() / "in" / name).symlink_to(paths[name])
    return identified, _changed_source(job)


def _changed_source(job: StepJob) -> StepError | None:
    """The error of a source in S3 that has changed since the run was started."""
    from runner.aws.s3 import S3
    from runner.run.sources import listing_digest

    for name, fact in job.inputs.items():
        if fact.listed and fact.artifact is not None and fact.as_ == "path":
            listed = listing_digest(S3().listing(fact.source))
            if listed != fact.artifact.sha256:
                return _changed(name, fact, "its listing is another than when the run was started")
    return None


def _changed(name: str, fact: InputFact, why: str) -> StepError:
    return StepError(
        kind="input changed",
        ename="InputChanged",
        evalue=f"input `{name}` ({fact.source}) is not what the run was started with: {why}. Run again.",
    )


def _set_secrets(job: StepJob, place: JobPlace, session: Session) -> list[str]:
    """Set the variables of secret parameters from Secrets Manager; never through the job's description. Those set."""
    variables = [variable for variable in dict.fromkeys(job.secrets.values()) if variable not in os.environ]
    for variable in variables:
        name = f"{place.secrets}{variable}"
        secret = session.call("secretsmanager", "get_secret_value", about=f"secret {name}", SecretId=name)
        os.environ[variable] = secret["SecretString"]
    return variables


def _remote(place: JobPlace) -> RemoteJob:
    return RemoteJob(
        name=place.job,
        at=f"s3://{place.bucket}/{place.key}",
        image=place.image,
        instance=place.instance,
        machines=place.machines,
        python=platform.python_version(),
        environment="image" if os.environ.get("RUNNER_ENVIRONMENT") == "image" else "lock",
        packages=versions(),
    )


def _log_progress(progress: Progress) -> None:
    log(progress_line(progress))


def log(text: str) -> None:
    """Write a line into the job's log."""
    sys.stdout.write(terminal(text) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    exit_with(main)
