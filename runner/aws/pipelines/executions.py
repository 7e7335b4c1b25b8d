"""Executions of a SageMaker Pipeline: starting one, and describing any."""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.pipelines.parameters import INSTANCES, LONGEST_VALUE, key_of, named, taking
from runner.aws.pipelines.push import PipelineService
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
    """A step as the service lists it. `cached_from` is the execution that has its result, "" where it ran."""

    name: str
    status: str
    kind: str
    seconds: float | None
    cached_from: str
    reason: str
    job: str = ""  # the processing job's name


@dataclass(frozen=True)
class PipelineExecution:
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
    """Those of -p's values that pipeline.toml and the notebooks declare; the others are the Pipeline's own."""
    return {key: value for key, value in overrides.items() if key.rpartition(".")[2] not in INSTANCES}


def start(plan: Plan, overrides: Mapping[str, str], *, note: str = "", once: str = "") -> str:
    """Start the Pipeline with -p's values, which `plan` was made with too; the execution's ARN. Uploads local sources.

    With `once`, such as a commit, it is started once for the same definition and values; later calls give the ARN of
    that execution. Raises UsageError for a parameter that the pushed Pipeline does not have, or without a Pipeline.
    """
    defaults = settings(plan.pipeline)
    session = Session(defaults.region, kms_key=defaults.kms_key)
    service = PipelineService(session, plan.pipeline.name)
    description = service.describe()
    if description is None:
        raise UsageError(
            f"There is no Pipeline {service.name} in {session.region} yet. Make it with `runner pipeline push`."
        )
    names = [item["Name"] for item in json.loads(description["PipelineDefinition"]).get("Parameters", [])]
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
    bucket = Bucket(session, defaults.bucket, defaults.prefix)
    for key in overrides:  # local sources
        step, _, name = key.partition(".")
        spec = plan.pipeline.steps[step].inputs.get(name) if step in plan.pipeline.steps else None
        if spec is not None and is_path(spec.from_):
            values[named(key)] = put_source(Path(spec.from_), bucket)
    description_argument = {"PipelineExecutionDescription": note} if note else {}
    content = json.dumps([once, description["PipelineDefinition"], values, note], sort_keys=True)
    reply = service.call(
        "start_pipeline_execution",
        # the same for each try, so that a lost reply starts nothing twice
        ClientRequestToken=hashlib.sha256(content.encode()).hexdigest() if once else uuid.uuid4().hex,
        PipelineParameters=[{"Name": taker, "Value": value} for taker, value in values.items()],
        **description_argument,
    )
    return str(reply["PipelineExecutionArn"])


def look(session: Session, name: str, reference: str | None = None) -> PipelineExecution:
    """The execution by its ARN or id, or the latest. Raises UsageError where there is none."""
    arn = find(session, name, reference)
    about = f"execution {arn.rpartition('/')[2]}"
    call = functools.partial(session.call, "sagemaker", about=about, PipelineExecutionArn=arn)
    description = call("describe_pipeline_execution")
    status = str(description["PipelineExecutionStatus"])
    list_steps = functools.partial(call, "list_pipeline_execution_steps", SortOrder="Ascending", MaxResults=100)
    return PipelineExecution(
        arn=arn,
        status=status,
        reason=str(description.get("FailureReason", "")),
        started=description["CreationTime"].astimezone(UTC),
        ended=description["LastModifiedTime"].astimezone(UTC) if status in ENDED else None,
        note=str(description.get("PipelineExecutionDescription", "")),
        steps=[_step(item, session) for item in _items(list_steps, "PipelineExecutionSteps")],
    )


def find(session: Session, name: str, reference: str | None) -> str:
    """The execution's ARN. Raises UsageError where there is none."""
    if reference is not None and reference.startswith("arn:"):
        return reference
    call, order = PipelineService(session, name).call, {"SortBy": "CreationTime", "SortOrder": "Descending"}
    try:
        for item in _items(functools.partial(call, "list_pipeline_executions", **order), "PipelineExecutionSummaries"):
            arn = str(item["PipelineExecutionArn"])
            if reference is None or arn.rpartition("/")[2] == reference:
                return arn
    except AwsError as error:
        if error.code not in ABSENT:
            raise
        raise UsageError(f"There is no Pipeline {name} in {session.region}. See `runner pipeline push`.") from error
    missing = f"no execution {reference}" if reference else "no execution yet; `runner pipeline start` makes one"
    raise UsageError(f"The Pipeline {name} has {missing}.")


def _items(list_page: Callable[..., dict[str, Any]], member: str) -> Iterator[dict[str, Any]]:
    """The items of all pages of a listing."""
    token: dict[str, str] = {}
    while True:
        page = list_page(**token)
        yield from page[member]
        if not page.get("NextToken"):
            return
        token = {"NextToken": page["NextToken"]}


def _step(item: dict[str, Any], session: Session) -> ExecutionStep:
    metadata = item.get("Metadata", {})
    job = str(metadata.get("ProcessingJob", {}).get("Arn", "")).rpartition("/")[2]
    reason = str(item.get("FailureReason", ""))
    if item["StepStatus"] == "Failed" and job:  # the job's own message is nearer to the cause
        jobs = Jobs(session, poll_s=0)
        description = jobs.find(job)
        reason = (jobs.message(description) if description else "") or reason
    cached_from = str(item.get("CacheHitResult", {}).get("SourcePipelineExecutionArn", ""))
    if job and not cached_from and item["StepStatus"] == "Succeeded":
        cached_from = _earlier_execution(job, session)
    began, ended = item.get("StartTime"), item.get("EndTime")
    return ExecutionStep(
        name=item["StepName"],
        status=item["StepStatus"],
        kind=next(iter(metadata), ""),
        seconds=round((ended - began).total_seconds(), 3) if began and ended else None,
        cached_from=cached_from.rpartition("/")[2],
        reason=str(metadata.get("Fail", {}).get("ErrorMessage", "")) or reason,
        job=job,
    )


def _earlier_execution(job: str, session: Session) -> str:
    """The execution that has the results of all steps of a job, "" where it has executed one (`step_sequence.py`)."""
    description = Jobs(session, poll_s=0).find(job)
    outputs = description["ProcessingOutputConfig"]["Outputs"] if description else []
    if not outputs:
        return ""
    address = outputs[0]["S3Output"]["S3Uri"]
    name, key = split(address)
    content = Bucket(session, name, f"{key.rstrip('/')}/").get(LEFT)
    if content is None:
        return ""
    report = decode(JobReport, content, where=address)
    return next(iter(report.taken.values()), "") if len(report.taken) == len(report.at) else ""
