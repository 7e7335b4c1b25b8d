"""Executions of a SageMaker Pipeline: started, looked at, whoever started them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.pipelines.parameters import INSTANCES, LONGEST_VALUE, key_of, named, taking
from runner.aws.pipelines.push import Pipelines
from runner.aws.pipelines.pushed import LEFT, JobReport, put_source
from runner.aws.processing.jobs import Jobs
from runner.aws.s3 import split
from runner.aws.session import ABSENT, AwsError, Session
from runner.aws.settings import settings
from runner.errors import UsageError
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import is_address, is_path, nearest
from runner.pipeline.plan import Plan
from runner.records import decode

ENDED = ("Succeeded", "Failed", "Stopped")


@dataclass(frozen=True)
class ExecutionStep:
    """A step as the service lists it. `cached_from` is the execution it was taken from, "" where it ran."""

    name: str
    status: str
    kind: str
    seconds: float | None
    cached_from: str
    reason: str
    job: str = ""  # the processing job's name


@dataclass(frozen=True)
class Execution:
    """An execution; its steps in the order in which they began."""

    arn: str
    status: str
    reason: str
    started: datetime
    ended: datetime | None
    note: str = ""
    steps: list[ExecutionStep] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.arn.rpartition("/")[2]


def to_check(overrides: Mapping[str, str]) -> dict[str, str]:
    """Those of -p's values that pipeline.toml and the notebooks know of; the others are the Pipeline's own."""
    return {key: value for key, value in overrides.items() if key.rpartition(".")[2] not in INSTANCES}


def start(plan: Plan, overrides: Mapping[str, str], *, note: str = "", once: str = "") -> str:
    """Start the Pipeline with -p's values, which `plan` was made with too; the execution's ARN. Local sources go up.

    With `once`, such as a commit, what was started for it before with the same definition and values is not started
    again: the ARN is that execution's.

    Raises UsageError for a name that the Pipeline as pushed has not, or where there is no such Pipeline.
    """
    chosen = settings(plan.pipeline)
    session = Session(chosen.region, kms_key=chosen.kms_key)
    pipelines = Pipelines(session, plan.pipeline.name)
    found = pipelines.describe()
    if found is None:
        raise UsageError(
            f"There is no Pipeline {pipelines.name} in {session.region} yet. Make it with `runner pipeline push`."
        )
    names = [item["Name"] for item in json.loads(found["PipelineDefinition"]).get("Parameters", [])]
    values: dict[str, str] = {}
    for key, value in overrides.items():
        takers = taking(key, names)
        if not takers:
            known = {key_of(taker) for taker in names}
            raise UsageError(
                f"-p {key}: is not a parameter of the Pipeline as it was pushed{nearest(key, known)} "
                "What pipeline.toml gives a value becomes one; `runner pipeline push` brings it up to date."
            )
        if is_address(value) and not is_public(value):
            raise UsageError(
                f"-p {key}: {public(value)} is signed or has a password, and an execution's parameters are kept in the "
                "clear. `runner upload` the file and name its place in the bucket."
            )
        if len(value) > LONGEST_VALUE:
            raise UsageError(f"-p {key}: has {len(value)} characters; a Pipeline hands over {LONGEST_VALUE}.")
        values |= dict.fromkeys(takers, value)
    values |= _uploaded(plan, overrides, Bucket(session, chosen.bucket, chosen.prefix))
    said = {"PipelineExecutionDescription": note} if note else {}
    asked = json.dumps([once, found["PipelineDefinition"], values, note], sort_keys=True)
    reply = pipelines.call(
        "start_pipeline_execution",
        # the same for each try, so that a lost reply starts nothing twice
        ClientRequestToken=hashlib.sha256(asked.encode()).hexdigest() if once else uuid.uuid4().hex,
        PipelineParameters=[{"Name": taker, "Value": value} for taker, value in values.items()],
        **said,
    )
    return str(reply["PipelineExecutionArn"])


def _uploaded(plan: Plan, overrides: Mapping[str, str], bucket: Bucket) -> dict[str, str]:
    """The addresses of local sources among the values, by parameter, once they are there."""
    found = {}
    for key in overrides:
        step, _, name = key.partition(".")
        spec = plan.pipeline.steps[step].inputs.get(name) if step in plan.pipeline.steps else None
        if spec is not None and is_path(spec.from_):
            found[named(key)] = put_source(Path(spec.from_), bucket)
    return found


def look(session: Session, name: str, reference: str | None = None) -> Execution:
    """The execution by its ARN or id, or the latest. Raises UsageError where there is none."""
    arn = find(session, name, reference)
    found = _call(session, "describe_pipeline_execution", arn)
    status = str(found["PipelineExecutionStatus"])
    return Execution(
        arn=arn,
        status=status,
        reason=str(found.get("FailureReason", "")),
        started=found["CreationTime"].astimezone(UTC),
        ended=found["LastModifiedTime"].astimezone(UTC) if status in ENDED else None,
        note=str(found.get("PipelineExecutionDescription", "")),
        steps=[_step(item, session) for item in _steps(session, arn)],
    )


def find(session: Session, name: str, reference: str | None) -> str:
    """The execution's ARN. Raises UsageError where there is none."""
    if reference is not None and reference.startswith("arn:"):
        return reference
    token: dict[str, str] = {}
    pipelines = Pipelines(session, name)
    while True:
        try:
            page = pipelines.call("list_pipeline_executions", SortBy="CreationTime", SortOrder="Descending", **token)
        except AwsError as error:
            if error.code not in ABSENT:
                raise
            raise UsageError(f"There is no Pipeline {name} in {session.region}. See `runner pipeline push`.") from error
        for item in page["PipelineExecutionSummaries"]:
            arn = str(item["PipelineExecutionArn"])
            if reference is None or arn.rpartition("/")[2] == reference:
                return arn
        if not page.get("NextToken"):
            break
        token = {"NextToken": page["NextToken"]}
    said = f"no execution {reference}" if reference else "no execution yet; `runner pipeline start` makes one"
    raise UsageError(f"The Pipeline {name} has {said}.")


def _steps(session: Session, arn: str) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = _call(session, "list_pipeline_execution_steps", arn, SortOrder="Ascending", MaxResults=100, **token)
        yield from page["PipelineExecutionSteps"]
        if not page.get("NextToken"):
            return
        token = {"NextToken": page["NextToken"]}


def _step(item: dict[str, Any], session: Session) -> ExecutionStep:
    metadata = item.get("Metadata", {})
    job = str(metadata.get("ProcessingJob", {}).get("Arn", "")).rpartition("/")[2]
    reason = str(item.get("FailureReason", ""))
    if item["StepStatus"] == "Failed" and job:  # what the job itself has said is nearer to the cause
        jobs = Jobs(session, poll_s=0)
        described = jobs.find(job)
        reason = (jobs.message(described) if described else "") or reason
    hit = str(item.get("CacheHitResult", {}).get("SourcePipelineExecutionArn", ""))
    if job and not hit and item["StepStatus"] == "Succeeded":
        hit = _taken(job, session)
    began, ended = item.get("StartTime"), item.get("EndTime")
    return ExecutionStep(
        name=item["StepName"],
        status=item["StepStatus"],
        kind=next(iter(metadata), ""),
        seconds=round((ended - began).total_seconds(), 3) if began and ended else None,
        cached_from=hit.rpartition("/")[2],
        reason=str(metadata.get("Fail", {}).get("ErrorMessage", "")) or reason,
        job=job,
    )


def _taken(job: str, session: Session) -> str:
    """The execution that a job has taken all its steps from, "" where it has executed one (`step_sequence.py`)."""
    described = Jobs(session, poll_s=0).find(job)
    outputs = described["ProcessingOutputConfig"]["Outputs"] if described else []
    if not outputs:
        return ""
    name, key = split(outputs[0]["S3Output"]["S3Uri"])
    content = Bucket(session, name, f"{key.rstrip('/')}/").get(LEFT)
    if content is None:
        return ""
    left = decode(JobReport, content, where=outputs[0]["S3Output"]["S3Uri"])
    return next(iter(left.taken.values()), "") if len(left.taken) == len(left.at) else ""


def _call(session: Session, action: str, arn: str, **arguments: Any) -> dict[str, Any]:
    about = f"execution {arn.rpartition('/')[2]}"
    return session.call("sagemaker", action, about=about, PipelineExecutionArn=arn, **arguments)
