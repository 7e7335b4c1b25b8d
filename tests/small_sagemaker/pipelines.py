"""The actions of SageMaker about pipelines and their executions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .calls import Call
from .definition import Definition, read_definition
from .errors import ServiceError, refuse
from .execution import Cached, Execution
from .gateway import Action
from .jobs import Jobs
from .listing import sort, turn_page, was_made_between
from .permissions import context
from .tags import Tags

ENDS = ("Succeeded", "Failed", "Stopped")
MANY = 10_000  # steps at a time where no limit is asked for
DESCRIBED = ("PipelineDisplayName", "PipelineDescription", "RoleArn", "ParallelismConfiguration")


@dataclass
class Pipeline:
    """A pipeline with its executions, and the steps that have succeeded in them."""

    name: str
    arn: str
    request: dict[str, Any]
    definition: Definition
    created: float = field(default_factory=time.time)
    modified: float = field(default_factory=time.time)
    executions: list[Execution] = field(default_factory=list)
    cached: dict[str, list[Cached]] = field(default_factory=dict)

    def find(self, step: str, key: str, since: float) -> Cached | None:
        found = [item for item in self.cached.get(step, ()) if item.key == key and item.ended >= since]
        return found[-1] if found else None

    def keep(self, step: str, cached: Cached) -> None:
        self.cached.setdefault(step, []).append(cached)

    @property
    def last_run(self) -> float | None:
        return max((execution.created for execution in self.executions), default=None)


class Pipelines:
    def __init__(self, jobs: Jobs, name_arn: Callable[[str, str], str], tags: Tags) -> None:
        self._jobs = jobs
        self._name_arn = name_arn
        self._tags = tags
        self._lock = threading.RLock()
        self._pipelines: dict[str, Pipeline] = {}
        self._tokens: dict[tuple[str, str], str] = {}

    def actions(self) -> dict[tuple[str, str], Action]:
        made: dict[str, Action] = {
            "CreatePipeline": self.create,
            "UpdatePipeline": self.update,
            "DescribePipeline": self.describe,
            "DeletePipeline": self.delete,
            "ListPipelines": self.list_pipelines,
            "StartPipelineExecution": self.start,
            "StopPipelineExecution": self.stop,
            "DescribePipelineExecution": self.describe_execution,
            "DescribePipelineDefinitionForExecution": self.describe_definition,
            "ListPipelineExecutions": self.list_executions,
            "ListPipelineExecutionSteps": self.list_steps,
            "ListPipelineParametersForExecution": self.list_parameters,
        }
        return {("sagemaker", name): action for name, action in made.items()}

    def _get(self, name: str) -> Pipeline:
        found = self._pipelines.get(name.rpartition("/")[2].lower())
        if found is None:
            arn = self._name_arn("pipeline", name.rpartition("/")[2].lower())
            raise ServiceError("ResourceNotFound", f"Pipeline '{arn}' does not exist.")
        return found

    def _execution(self, arn: str) -> tuple[Pipeline, Execution]:
        for pipeline in self._pipelines.values():
            for execution in pipeline.executions:
                if execution.arn == arn:
                    return pipeline, execution
        raise ServiceError("ResourceNotFound", f"Pipeline execution '{arn}' does not exist.")

    def _read_definition(self, wanted: dict[str, Any]) -> Definition:
        place = wanted.get("PipelineDefinitionS3Location")
        if (place is None) == (wanted.get("PipelineDefinition") is None):
            raise refuse("Exactly one of PipelineDefinition and PipelineDefinitionS3Location must be given.")
        if place is None:
            return read_definition(wanted["PipelineDefinition"])
        try:
            body = self._jobs.s3.get_object(Bucket=place["Bucket"], Key=place["ObjectKey"])["Body"].read()
        except self._jobs.s3.exceptions.ClientError as error:
            raise refuse(f"Unable to read the pipeline definition: {error}") from error
        return read_definition(body.decode())

    def create(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        name = wanted["PipelineName"]
        definition = self._read_definition(wanted)
        with self._lock:
            known = self._tokens.get((call.action, wanted["ClientRequestToken"]))
            if known is not None and name.lower() in self._pipelines:
                return {"PipelineArn": known}
            if name.lower() in self._pipelines:
                raise refuse(
                    "Pipeline names must be unique within an AWS account and region. Pipeline with name "
                    f"({name}) already exists."
                )
            made = Pipeline(name, self._name_arn("pipeline", name.lower()), dict(wanted), definition)
            self._pipelines[name.lower()] = made
            self._tokens[call.action, wanted["ClientRequestToken"]] = made.arn
        self._tags.keep(made.arn, wanted.get("Tags"))
        return {"PipelineArn": made.arn}

    def update(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        with self._lock:
            found = self._get(wanted["PipelineName"])
            if "PipelineDefinition" in wanted or "PipelineDefinitionS3Location" in wanted:
                found.definition = self._read_definition(wanted)
            found.request |= {key: wanted[key] for key in DESCRIBED if key in wanted}
            found.modified = time.time()
        return {"PipelineArn": found.arn}

    def describe(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        found = self._get(call.parameters["PipelineName"])
        described = {key: found.request[key] for key in DESCRIBED if key in found.request}
        described.setdefault("PipelineDisplayName", found.name)
        described |= {
            "PipelineArn": found.arn,
            "PipelineName": found.name,
            "PipelineDefinition": found.definition.text,
            "PipelineStatus": "Active",
            "CreationTime": found.created,
            "LastModifiedTime": found.modified,
        }
        return described if found.last_run is None else {**described, "LastRunTime": found.last_run}

    def delete(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            found = self._get(call.parameters["PipelineName"])
            if any(execution.status not in ENDS for execution in found.executions):
                raise ServiceError("ConflictException", f"Pipeline {found.name} has an execution that is running.")
            del self._pipelines[found.name.lower()]
        self._tags.forget(found.arn)
        return {"PipelineArn": found.arn}

    def list_pipelines(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        found = []
        for item in self._pipelines.values():
            if item.name.startswith(wanted.get("PipelineNamePrefix", "")) and was_made_between(
                wanted, item.created, "Created"
            ):
                summary = {"PipelineArn": item.arn, "PipelineName": item.name, "RoleArn": item.request["RoleArn"]}
                summary |= {"CreationTime": item.created, "LastModifiedTime": item.modified}
                found.append(summary | ({"LastExecutionTime": item.last_run} if item.last_run else {}))
        found = sort(found, wanted, {"": "CreationTime", "Name": "PipelineName"})
        return turn_page(found, wanted, "PipelineSummaries")

    def start(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        with self._lock:
            known = self._tokens.get((call.action, wanted["ClientRequestToken"]))
            if known is not None:
                return {"PipelineExecutionArn": known}
            pipeline = self._get(wanted["PipelineName"])
            parameters = pipeline.definition.read_parameters(wanted.get("PipelineParameters", []))
            parallel = wanted.get("ParallelismConfiguration") or pipeline.request.get("ParallelismConfiguration") or {}
            execution = Execution(
                pipeline.definition,
                parameters,
                pipeline=pipeline.name,
                pipeline_arn=pipeline.arn,
                jobs=self._jobs,
                role=pipeline.request["RoleArn"],
                cache=pipeline,
                parallel=parallel.get("MaxParallelExecutionSteps", MANY),
            )
            execution.request = wanted
            execution.created_by = context(call)
            pipeline.executions.append(execution)
            self._tokens[call.action, wanted["ClientRequestToken"]] = execution.arn
        execution.start()
        return {"PipelineExecutionArn": execution.arn}

    def stop(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        _, execution = self._execution(call.parameters["PipelineExecutionArn"])
        if execution.status in ENDS:
            raise refuse(f"Only pipelines with running status can be stopped: {execution.arn} is {execution.status}.")
        execution.stop()
        return {"PipelineExecutionArn": execution.arn}

    def describe_execution(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        pipeline, execution = self._execution(call.parameters["PipelineExecutionArn"])
        found = {
            "PipelineArn": pipeline.arn,
            "PipelineExecutionArn": execution.arn,
            "PipelineExecutionDisplayName": self._display_name(execution),
            "PipelineExecutionDescription": execution.request.get("PipelineExecutionDescription"),
            "PipelineExecutionStatus": execution.status,
            "FailureReason": execution.reason[:1300] if execution.status == "Failed" else None,
            "CreationTime": execution.created,
            "LastModifiedTime": execution.modified,
            "CreatedBy": execution.created_by,
        }
        return {key: value for key, value in found.items() if value is not None}

    def _display_name(self, execution: Execution) -> str:
        default = f"execution-{int(execution.created * 1000)}"
        return str(execution.request.get("PipelineExecutionDisplayName", default))

    def describe_definition(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        _, execution = self._execution(call.parameters["PipelineExecutionArn"])
        return {"PipelineDefinition": execution.definition.text, "CreationTime": execution.created}

    def list_executions(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        found = []
        for execution in self._get(wanted["PipelineName"]).executions:
            if was_made_between(wanted, execution.created, "Created"):
                summary = {
                    "PipelineExecutionArn": execution.arn,
                    "StartTime": execution.created,
                    "PipelineExecutionStatus": execution.status,
                    "PipelineExecutionDisplayName": self._display_name(execution),
                }
                if execution.status == "Failed":
                    summary["PipelineExecutionFailureReason"] = execution.reason
                found.append(summary)
        found = sort(found, wanted, {"": "StartTime", "PipelineExecutionArn": "PipelineExecutionArn"})
        return turn_page(found, wanted, "PipelineExecutionSummaries")

    def list_steps(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        _, execution = self._execution(call.parameters["PipelineExecutionArn"])
        found = [run.describe() for run in list(execution.runs.values())]
        found = sort(found, call.parameters, {"": "StartTime"})
        return turn_page(found, call.parameters, "PipelineExecutionSteps")

    def list_parameters(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        _, execution = self._execution(call.parameters["PipelineExecutionArn"])
        given = [
            {"Name": name, "Value": value if isinstance(value, str) else json.dumps(value)}
            for name, value in execution.parameters.items()
        ]
        return turn_page(given, call.parameters, "PipelineParameters")
