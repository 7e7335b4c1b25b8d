"""One execution of a pipeline: its steps in the order of their dependencies, each job through CreateProcessingJob.

Once a step has failed no other one begins; those that run are waited for. RetryPolicies are not followed.
"""

from __future__ import annotations

import json
import queue
import re
import secrets
import string
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from . import limits
from .definition import Definition, Step
from .errors import ServiceError
from .expressions import ExpressionError, Scope
from .jobs import Job, Jobs
from .transfer import split_uri

LETTERS = string.ascii_lowercase + string.digits
STEP_FAILED = "Step failure: One or multiple steps failed."
CACHED_ARGUMENTS = ("AppSpecification", "Environment", "ProcessingInputs")
MAX_JOB_NAME = 63
DURATION = re.compile(
    r"P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)S)?)?"
)
SECONDS = {
    "years": 365 * 86400, "months": 30 * 86400, "weeks": 7 * 86400, "days": 86400, "hours": 3600, "minutes": 60,
    "seconds": 1,
}  # fmt: skip


def make_id(length: int = 12) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(length))


def read_duration(text: str) -> float:
    """Seconds of an ISO 8601 duration; raises ValueError."""
    found = DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        raise ValueError(f"{text!r} is not an ISO 8601 duration")
    return float(sum(SECONDS[name] * int(value) for name, value in found.groupdict().items() if value))


@dataclass
class Cached:
    """A step that has succeeded, for later executions of the same pipeline."""

    key: str
    ended: float
    execution_arn: str
    properties: dict[str, Any]


class StepCache(Protocol):
    def find(self, step: str, key: str, since: float) -> Cached | None: ...

    def keep(self, step: str, cached: Cached) -> None: ...


@dataclass
class StepRun:
    step: Step
    status: str = "Starting"
    started: float = field(default_factory=time.time)
    ended: float | None = None
    reason: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    hit: str | None = None
    job: Job | None = None

    def end(self, status: str, reason: str | None = None) -> None:
        self.reason, self.ended = reason if reason is None else reason[:1024], time.time()
        self.status = status

    def describe(self) -> dict[str, Any]:
        found = {
            "StepName": self.step.name,
            "StepDisplayName": self.step.source.get("DisplayName"),
            "StepDescription": self.step.source.get("Description"),
            "StartTime": self.started,
            "EndTime": self.ended,
            "StepStatus": self.status,
            "CacheHitResult": {"SourcePipelineExecutionArn": self.hit} if self.hit else None,
            "FailureReason": self.reason,
            "Metadata": self.metadata,
            "AttemptCount": 1,
        }
        return {key: value for key, value in found.items() if value is not None}


class Execution:
    """`start` once; the rest may be called from any thread."""

    def __init__(
        self,
        definition: Definition,
        parameters: Mapping[str, Any],
        *,
        pipeline: str,
        pipeline_arn: str,
        jobs: Jobs,
        role: str,
        cache: StepCache,
        parallel: int,
    ) -> None:
        self.id = make_id()
        self.arn = f"{pipeline_arn}/execution/{self.id}"
        self.definition = definition
        self.parameters = dict(parameters)
        self.created = self.modified = time.time()
        self.status, self.reason = "Executing", ""
        self.request: dict[str, Any] = {}
        self.created_by: dict[str, Any] = {}
        self.runs: dict[str, StepRun] = {}
        self._jobs = jobs
        self._role = role
        self._cache = cache
        self._parallel = parallel
        self._ended: queue.Queue[str] = queue.Queue()
        self._stop = threading.Event()
        self._skipped: set[str] = set()
        self._properties: dict[str, dict[str, Any]] = {}
        begun = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        variables = {
            "StartDateTime": begun,
            "CurrentDateTime": begun,
            "PipelineName": pipeline,
            "PipelineArn": pipeline_arn,
            "PipelineExecutionId": self.id,
            "PipelineExecutionArn": self.arn,
        }
        self._scope = Scope(self.parameters, variables, self._properties, self._read_file, self._read_uri)

    def start(self) -> None:
        threading.Thread(target=self._execute, daemon=True, name=f"execution {self.id}").start()

    def stop(self) -> None:
        if self.status == "Executing":
            self.status = "Stopping"
            self._stop.set()
            self._ended.put("")

    def _execute(self) -> None:
        try:
            while self._begin_ready() or self._running():
                self._ended.get()
                if self._stop.is_set():
                    self._stop_jobs()
        except Exception as error:
            self.reason = f"InternalServerError: {type(error).__name__}: {error}"
        self.modified = time.time()
        statuses = {run.status for run in self.runs.values()}
        if self._stop.is_set():
            self.status = "Stopped"
        elif self.reason or "Failed" in statuses:
            self.reason = self.reason or STEP_FAILED
            self.status = "Failed"
        else:
            self.status = "Succeeded"

    def _running(self) -> list[StepRun]:
        return [run for run in self.runs.values() if run.ended is None]

    def _stop_jobs(self) -> None:
        for run in self._running():
            if run.job is not None and run.status != "Stopping":
                run.status = "Stopping"
                self._jobs.stop_as(self._role, run.job)

    def _begin_ready(self) -> bool:
        """Starts what may start now; whether anything was begun."""
        begun = False
        for step in self.definition.steps.values():
            failed = any(run.status in ("Failed", "Stopped") for run in self.runs.values())
            if self._stop.is_set() or failed or len(self._running()) >= self._parallel:
                break
            if step.name in self.runs or step.name in self._skipped or not self._is_ready(step):
                continue
            self.runs[step.name] = run = StepRun(step)
            begun = True
            threading.Thread(target=self._run_step, args=(run,), daemon=True, name=f"step {step.name}").start()
        return begun

    def _is_ready(self, step: Step) -> bool:
        """Whether all it needs has succeeded; remembers steps that will never run."""
        for name in step.depends_on:
            if name in self._skipped:
                self._skipped.add(step.name)
                return False
            if name not in self.runs or self.runs[name].status != "Succeeded":
                return False
        if step.parent is not None and self.runs[step.parent].metadata["Condition"]["Outcome"] != step.branch:
            self._skipped.add(step.name)
            return False
        return True

    def _run_step(self, run: StepRun) -> None:
        run.status = "Executing"
        try:
            {"Processing": self._run_processing, "Condition": self._run_condition, "Fail": self._run_fail}[
                run.step.kind
            ](run)
        except ExpressionError as error:
            run.end("Failed", str(error))
        except ServiceError as error:
            text = f"ClientError: Failed to invoke sagemaker:CreateProcessingJob. Error Details: {error.message}"
            run.end("Failed", text)
        except Exception as error:
            run.end("Failed", f"InternalServerError: {type(error).__name__}: {error}")
        finally:
            self._ended.put(run.step.name)

    def _run_condition(self, run: StepRun) -> None:
        outcome = all(self._scope.decide(item) for item in run.step.arguments["Conditions"])
        run.metadata = {"Condition": {"Outcome": str(outcome)}}
        self._properties[run.step.name] = {"Outcome": str(outcome)}
        run.end("Succeeded")

    def _run_fail(self, run: StepRun) -> None:
        message = self._scope.resolve(run.step.arguments.get("ErrorMessage", ""))
        run.metadata = {"Fail": {"ErrorMessage": message}}
        self.reason = self.reason or message
        run.end("Failed", message)

    def _run_processing(self, run: StepRun) -> None:
        request = self._scope.resolve(run.step.arguments)
        request["ProcessingJobName"] = self._name_job(run.step.name)
        limits.check("sagemaker", "CreateProcessingJob", request)
        key = json.dumps({name: request.get(name) for name in CACHED_ARGUMENTS}, sort_keys=True)
        if self._take_cached(run, key):
            return
        marks = {"sagemaker:pipeline-execution-arn": self.arn, "sagemaker:pipeline-step-name": run.step.name}
        request["Tags"] = [*request.get("Tags", ()), *({"Key": k, "Value": v} for k, v in marks.items())]
        run.job = job = self._jobs.create_as(self._role, request)
        run.metadata = {"ProcessingJob": {"Arn": job.arn}}
        if self._stop.is_set():
            self._jobs.stop_as(self._role, job)
        job.over.wait()
        if job.status != "Completed":
            run.end(job.status, job.failure_reason)
            return
        self._properties[run.step.name] = job.describe()
        self._cache.keep(run.step.name, Cached(key, time.time(), self.arn, job.describe()))
        run.end("Succeeded")

    def _take_cached(self, run: StepRun, key: str) -> bool:
        asked = run.step.source.get("CacheConfig") or {}
        if not asked.get("Enabled"):
            return False
        lives_s = read_duration(asked["ExpireAfter"]) if asked.get("ExpireAfter") else float("inf")
        found = self._cache.find(run.step.name, key, time.time() - lives_s)
        if found is None:
            return False
        run.hit = found.execution_arn
        run.metadata = {"ProcessingJob": {"Arn": found.properties["ProcessingJobArn"]}}
        self._properties[run.step.name] = found.properties
        run.end("Succeeded")
        return True

    def _name_job(self, step: str) -> str:
        begin, end = f"pipelines-{self.id}-", f"-{make_id(10)}"
        name = re.sub(r"[^A-Za-z0-9]+", "-", step)[: MAX_JOB_NAME - len(begin) - len(end)].strip("-")
        return f"{begin}{name}{end}"

    def _read_file(self, step: str, name: str) -> bytes:
        """A property file, from where the step's job has put it."""
        declared = self.definition.steps[step].property_files[name]
        if step not in self._properties:
            raise ExpressionError(f"ClientError: Step {step} was not executed and has no property files")
        outputs = (self._properties[step].get("ProcessingOutputConfig") or {}).get("Outputs", ())
        for output in outputs:
            if output["OutputName"] == declared["OutputName"]:
                return self._read_uri(f"{output['S3Output']['S3Uri'].rstrip('/')}/{declared['FilePath'].lstrip('/')}")
        raise ExpressionError(f"ClientError: Step {step} has no output {declared['OutputName']} for {name}")

    def _read_uri(self, uri: str) -> bytes:
        bucket, key = split_uri(uri)
        try:
            content: bytes = self._jobs.client_as("s3", self._role).get_object(Bucket=bucket, Key=key)["Body"].read()
        except self._jobs.s3.exceptions.ClientError as error:
            raise ExpressionError(f"ClientError: Unable to read property file from {uri}: {error}") from error
        return content
