"""Inside a job of a SageMaker Pipeline: `pin`, a notebook's step, or `gate`.

A step's job knows its execution from where its output is to go, which is not part of what the service caches it by; the
pins of that execution lie beside it. What it is started with identifies its inputs, so that a cached step is one that
would come to the same.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from runner import __version__
from runner.aws.bucket import Bucket
from runner.aws.pipelines.pin import pins, registry
from runner.aws.pipelines.pushed import PIN, PINS, PUSHED, RULES, TASK, Pins, Pushed, Rules, Task, is_pinned
from runner.aws.processing import inside
from runner.aws.processing.bundle import name_of
from runner.aws.processing.request import INPUT, Place
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.content import file_fact
from runner.errors import RemoteError, RunnerError, UsageError
from runner.gate import judge
from runner.manifest import RunManifest, StepState
from runner.model.versions import NewVersion
from runner.pipeline.file import VERDICT
from runner.pipeline.notebook import read_notebook
from runner.pipeline.remote import settings
from runner.pipeline.types import DoesNotFit, read_text
from runner.records import (
    Artifact,
    InputFact,
    InputSpec,
    Metric,
    StepError,
    StepJob,
    StepResult,
    Value,
    Verdict,
    decode,
    encode,
    read,
)
from runner.run.folder import as_input
from runner.run.orchestrate import VERDICT_FILE
from runner.run.registration import commit
from runner.run.retries import RETRIED
from runner.run.sources import name_only
from runner.run.store import facts_of
from runner.step.execute import JOB, RESULT, SOURCE

CONFIGURATION = Path("/opt/ml/config/processingjobconfig.json")
OWN = Path(INPUT) / "step"
GATE_FILE, VERSION = "gate.json", "version.json"
LONGEST_REASONS = 800  # of what a Fail step's message holds


@dataclass(frozen=True)
class Here:
    """This job, as the service has described it to its container."""

    name: str
    region: str
    image: str
    instance: str
    inputs: dict[str, str]  # where each is put, below input/ -> its address
    output: str  # address of the step's folder in its execution's, without a last slash
    kms_key: str | None  # encrypts what is written

    @property
    def bucket(self) -> str:
        return split(self.output)[0]

    @property
    def key(self) -> str:
        return f"{split(self.output)[1]}/"

    @property
    def execution(self) -> str:
        """Address of the execution's folder, ending in `/`."""
        return f"{self.output.rpartition('/')[0]}/"

    def folder(self, session: Session) -> Bucket:
        """The step's folder. What comes of a job goes there from here, as its user may write no folder of the service."""
        return Bucket(session, self.bucket, self.key)


def main() -> int:
    try:
        here = _here()
        session = Session(here.region, kms_key=here.kms_key)
        match sys.argv[1]:
            case "pin":
                return _pin(here, session)
            case "gate":
                return _gate(here, session)
            case _:
                return _step(here, session)
    except RunnerError as error:
        return inside.say_failure(error)


def _here() -> Here:
    found: dict[str, Any] = json.loads(CONFIGURATION.read_bytes())
    arn = str(found["ProcessingJobArn"])
    sources = [item["S3Input"] for item in found.get("ProcessingInputs") or [] if "S3Input" in item]
    return Here(
        name=str(found.get("ProcessingJobName") or arn.rpartition("/")[2]),
        region=arn.split(":")[3],
        image=found["AppSpecification"]["ImageUri"],
        instance=found["ProcessingResources"]["ClusterConfig"]["InstanceType"],
        inputs={item["LocalPath"].removeprefix(f"{INPUT}/").rstrip("/"): item["S3Uri"] for item in sources},
        output=found["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"].rstrip("/"),
        kms_key=found["ProcessingOutputConfig"].get("KmsKeyId"),
    )


def _pin(here: Here, session: Session) -> int:
    pushed = read(Pushed, OWN / PUSHED)
    values = {
        parameter.key: os.environ[f"RUNNER_VALUE_{number}"] for number, parameter in enumerate(pushed.parameters, 1)
    }
    made = pins(
        pushed,
        values,
        Bucket(session, here.bucket, settings(pushed.pipeline).prefix),
        execution=os.environ["RUNNER_EXECUTION"],
        started=os.environ["RUNNER_STARTED"],
    )
    if os.environ["RUNNER_ENVIRONMENT"] == "none":  # the steps run with the lock's packages, of which this job has none
        packages = json.loads((Path(INPUT) / "bundle" / "environment.json").read_bytes())["pins"]
        made = msgspec.structs.replace(made, environment=msgspec.structs.replace(made.environment, packages=packages))
    here.folder(session).put(PINS, encode(made))
    return 0


def _gate(here: Here, session: Session) -> int:
    results = _results(session)
    metrics, problems = _recorded(results)
    present = {
        f"{step}.{name}" for step, result in results.items() for name, fact in result.inputs.items() if fact.present
    }
    verdict = judge(metrics, read(Rules, OWN / RULES).rules, problems=problems, present=present)
    said = " ".join(rule.sentence for rule in verdict.rules if rule.outcome not in ("pass", "not judged"))
    reasons = said if len(said) <= LONGEST_REASONS else f"{said[:LONGEST_REASONS]} …"
    here.folder(session).put(VERDICT_FILE, encode(verdict))
    here.folder(session).put(GATE_FILE, msgspec.json.encode({"outcome": verdict.outcome, "reasons": reasons}))
    return 0


def _step(here: Here, session: Session) -> int:
    stop, code = inside.told_to_stop(), name_of(here.inputs["step"])
    inside.check_code(code)
    task = read(Task, OWN / TASK)
    bucket = Bucket(session, here.bucket, task.prefix)
    found = _pins(here, bucket)
    job = _job(task, here, found, session)
    place = Place(
        job=here.name,
        bucket=here.bucket,
        key=here.key,
        region=here.region,
        image=here.image,
        instance=here.instance,
        code=code,
        notebook_folder=str(PurePosixPath(job.notebook).parent),
        files={
            name: "" if address.endswith("/") else PurePosixPath(address).name
            for name, address in _addresses(here).items()
        },
        secrets=task.prefix,
        kms_key=here.kms_key,
    )
    here.folder(session).put(JOB, encode(job))
    for left in range(task.retries, -1, -1):
        result = inside.perform(job, place, session, stop)
        if result.error is None or result.error.kind not in RETRIED or not left or stop.is_set():
            break
    if result.error is None and result.registration is not None:
        result = _registered(result, job, here, found, bucket)
    return inside.leave(result, place, session)


def _job(task: Task, here: Here, found: Pins, session: Session) -> StepJob:
    """The step's job in this execution."""
    declared = read_notebook(OWN / SOURCE).parameters
    given: dict[str, Value] = {}
    for name in task.given:
        try:
            given[name] = read_text(os.environ[f"RUNNER_PARAMETER_{name}"], declared[name].type)
        except DoesNotFit as error:
            raise UsageError(f"-p {name}: {error}, declared in {task.job.notebook}.") from error
    inputs = {name: _input(name, spec, task, here, found, session) for name, spec in task.inputs.items()}
    return msgspec.structs.replace(
        task.job,
        run=found.run,
        parameters=dict(sorted({**task.job.parameters, **given}.items())),
        inputs={name: name_only(fact, name) for name, fact in inputs.items()},
    )


def _input(name: str, spec: InputSpec, task: Task, here: Here, found: Pins, session: Session) -> InputFact:
    if is_pinned(spec):
        return next(pin.fact for pin in found.pins.values() if pin.of == f"{task.job.step}.{name}")
    if spec.from_ == VERDICT:
        fact = file_fact(Path(INPUT) / "in" / name / VERDICT_FILE)
        verdict = Artifact(path=VERDICT_FILE, sha256=fact.sha256, size_bytes=fact.size_bytes)
        return InputFact(source=VERDICT, artifact=verdict)
    runs = here.execution.rstrip("/").rpartition("/")[0]
    execution, upstream = _addresses(here)[name].removeprefix(f"{runs}/").split("/")[:2]
    return as_input(_result(f"{runs}/{execution}/{upstream}", session), spec.from_.partition(".")[2], spec.from_)


def _pins(here: Here, bucket: Bucket) -> Pins:
    key = split(here.execution)[1].removeprefix(bucket.prefix) + f"{PIN}/{PINS}"
    content = bucket.get(key)
    if content is None:
        raise RemoteError(f"There is no {bucket.address(key)}. Start the whole Pipeline, so that its step pin runs.")
    return decode(Pins, content, where=bucket.address(key))


def _registered(result: StepResult, job: StepJob, here: Here, found: Pins, bucket: Bucket) -> StepResult:
    """The result once the model it asks for is registered; a failed one where that was refused."""
    results = {**_results(bucket.session), job.step: result}
    metrics, problems = _recorded(results)
    specs = found.pushed.pipeline.steps
    manifest = RunManifest(
        run=found.run,
        pipeline_file=found.pushed.file,
        pipeline=found.pushed.pipeline,
        started_by=found.started_by,
        identity=found.identity,
        started=found.started,
        status="running",
        steps=[StepState(name=name, notebook=specs[name].notebook, result=made) for name, made in results.items()],
        sources={pin.of: pin.fact for pin in found.pins.values()},
        champion=found.champion,
        metrics=metrics,
        problems=problems,
        verdict=_verdict(bucket.session),
        git=found.pushed.git,
        environment=found.environment,
        runner_version=__version__,
    )
    with tempfile.TemporaryDirectory() as scratch:
        versions = registry(
            found.pushed.pipeline,
            bucket,
            model_folder=lambda new: _model(new, job, results, bucket.session, Path(scratch)),
            run_address=lambda _: here.execution,
        )
        try:
            version = commit(manifest, result, versions, content=None)
        except RunnerError as error:
            refused = StepError(kind="refused", ename=type(error).__name__, evalue=str(error))
            return msgspec.structs.replace(result, status="failed", error=refused)
    here.folder(bucket.session).put(VERSION, encode(version))
    return result


def _model(new: NewVersion, job: StepJob, results: dict[str, StepResult], session: Session, scratch: Path) -> Path:
    """The model's folder: where the step read it, or brought here from the step that made it."""
    for name, fact in job.inputs.items():
        if fact.artifact is not None and fact.artifact.sha256 == new.sha256:
            return (inside.step_folder() / "in" / name).resolve()
    step = PurePosixPath(new.artifact.path).parts[1]
    remote = results[step].remote
    assert remote is not None
    name, key = split(remote.at)
    path = new.artifact.path.removeprefix(f"steps/{step}/")
    for relative, part in facts_of(new.artifact).items():
        (scratch / relative).parent.mkdir(parents=True, exist_ok=True)
        Bucket(session, name, key).download(f"{path}/{relative}", scratch / relative, part)
    return scratch


def _results(session: Session) -> dict[str, StepResult]:
    """What the steps before came to, by their names."""
    found = {}
    number = 1
    while address := os.environ.get(f"RUNNER_RESULT_{number}"):
        found[address.rstrip("/").rpartition("/")[2]] = _result(address, session)
        number += 1
    return found


def _result(folder: str, session: Session) -> StepResult:
    return decode(StepResult, _content(folder, RESULT, session), where=f"{folder}/{RESULT}")


def _verdict(session: Session) -> Verdict | None:
    folder = os.environ.get("RUNNER_GATE")
    return decode(Verdict, _content(folder, VERDICT_FILE, session), where=folder) if folder else None


def _content(folder: str, name: str, session: Session) -> bytes:
    bucket, key = split(folder.rstrip("/"))
    content = Bucket(session, bucket).get(f"{key}/{name}")
    if content is None:
        raise RemoteError(f"There is no {folder}/{name}, though the step has ended well. It was removed.")
    return content


def _recorded(results: dict[str, StepResult]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics and problems as a run's manifest has them."""
    return (
        {f"{step}.{name}": metric for step, result in results.items() for name, metric in result.metrics.items()},
        {f"{step}.{name}": said for step, result in results.items() for name, said in result.problems.items()},
    )


def _addresses(here: Here) -> dict[str, str]:
    """The notebook's inputs that were copied here."""
    return {path.removeprefix("in/"): address for path, address in here.inputs.items() if path.startswith("in/")}


if __name__ == "__main__":
    sys.exit(main())
