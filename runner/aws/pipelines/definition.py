"""pipeline.toml as a SageMaker Pipeline: its definition, made with the SageMaker SDK, and its push.

    pin ─► the notebooks' steps ─► gate ─► gate-passed ─┬─► the steps that need the verdict
                                                        └─► gate-failed, with the reasons

A step is cached by what it is started with: its image, environment and inputs. So these hold addresses made of content,
the parameters it takes and the hashes that `pin` found, and nothing that differs from one execution to the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.pipelines.parameters import INSTANCE, SMALL_INSTANCE, active
from runner.aws.pipelines.pushed import (
    CONDITION,
    FAIL,
    GATE,
    PIN,
    PINS,
    Laid,
    Rehearsal,
    gated_steps,
    is_pinned,
    lay,
    pin_key,
)
from runner.aws.processing._run import PLAIN
from runner.aws.processing.request import HASH_TAG, INPUT, MOST_INPUTS, OUTPUT, Addresses, request
from runner.aws.session import ABSENT, AwsError, Session
from runner.errors import UsageError
from runner.pipeline.file import VERDICT
from runner.pipeline.plan import Plan, PlannedStep
from runner.pipeline.remote import Settings, settings
from runner.records import StepJob
from runner.run.orchestrate import VERDICT_FILE
from runner.run.store import Store

MODULE = "runner.aws.pipelines.pipeline_job"
MOST_VALUES = 100  # of a job's environment (botocore: ProcessingEnvironmentMap)
SMALL_TIMEOUT_S = 1800  # of the pin and the gate
EXPIRES = "P365D"
LARGEST_BYTES = 100_000  # of a definition in the request itself; a larger one goes by way of the bucket
# the parts of the SDK that a definition is made of; it has no types, and importing it takes seconds and a region
SDK = {
    "CacheConfig": "mlops.workflow.steps",
    "ConditionEquals": "core.workflow.conditions",
    "ConditionStep": "mlops.workflow.condition_step",
    "ExecutionVariables": "core.workflow.execution_variables",
    "FailStep": "mlops.workflow.fail_step",
    "Join": "core.workflow.functions",
    "JsonGet": "core.workflow.functions",
    "ParameterString": "core.workflow.parameters",
    "Pipeline": "mlops.workflow.pipeline",
    "PipelineSession": "core.workflow.pipeline_context",
    "ProcessingStep": "mlops.workflow.steps",
    "PropertyFile": "core.workflow.properties",
    "_StepArguments": "core.workflow.pipeline_context",
}
# instead of the person's own defaults, which would make the definition depend on who pushes
CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
MISSING = "The SageMaker SDK is not installed. Install it with `pip install 'sagemaker>=3.27,<4'` and try again."


@dataclass(frozen=True)
class Outcome:
    """What a push came to, or would come to: "created", "updated" or "unchanged", and the Pipeline's ARN."""

    name: str
    what: str
    arn: str = ""  # "" where there is none yet


def show(plan: Plan, store: Store, *, profile: str | None) -> dict[str, Any]:
    """The definition that a push would make; nothing is uploaded and nobody asked."""
    chosen = settings(plan.pipeline)
    session = Session(chosen.region, anonymous=True)
    bucket = Rehearsal(session, chosen.bucket, chosen.prefix)
    return definition(lay(plan, bucket, store=store, profile=profile), region=session.region)


def push(plan: Plan, store: Store, *, profile: str | None, dry_run: bool = False) -> Outcome:
    """Put there what the jobs need, and make the Pipeline, or the one that is there equal; what is equal is left alone."""
    chosen, name = settings(plan.pipeline), plan.pipeline.name
    session = Session(chosen.region, kms_key=chosen.kms_key)
    bucket = (Rehearsal if dry_run else Bucket)(session, chosen.bucket, chosen.prefix)
    made = definition(lay(plan, bucket, store=store, profile=profile), region=session.region)
    pipelines = Pipelines(session, name)
    found = pipelines.describe()
    tags = [{"Key": key, "Value": value} for key, value in {**chosen.tags, "runner:project": name}.items()]
    if found is None:
        if dry_run:
            return Outcome(name, "created")
        reply = pipelines.call("create_pipeline", **_arguments(made, bucket, chosen), Tags=tags)
        return Outcome(name, "created", str(reply["PipelineArn"]))
    arn = str(found["PipelineArn"])
    equal = json.loads(found["PipelineDefinition"]) == made and found["RoleArn"] == chosen.role
    if not dry_run:
        there = {tag["Key"]: tag["Value"] for tag in pipelines.tags(arn)}
        if any(there.get(tag["Key"]) != tag["Value"] for tag in tags):
            session.call("sagemaker", "add_tags", about=f"pipeline {name}", ResourceArn=arn, Tags=tags)
        if not equal:
            pipelines.call("update_pipeline", **_arguments(made, bucket, chosen))
    return Outcome(name, "unchanged" if equal else "updated", arn)


def definition(laid: Laid, *, region: str) -> dict[str, Any]:
    """The Pipeline's definition; the same for the same content, wherever and whenever it is made.

    Raises UsageError where the SDK is not installed, or a step is beyond the service's limits.
    """
    with _sdk(region) as sdk:
        made: dict[str, Any] = json.loads(_Definition(laid, sdk).text())
    for unset in ("PipelineExperimentConfig", "MlflowConfig"):
        if made.get(unset) is None:
            made.pop(unset, None)
    _order(made["Steps"], [PIN, *(step.name for step in active(laid.plan)), GATE, CONDITION])
    return made


class _Definition:
    """The SDK's objects on their way to a definition; made anew for each."""

    def __init__(self, laid: Laid, sdk: SimpleNamespace) -> None:
        self.sdk = sdk
        self.laid = laid
        self.parameters = {
            parameter.key: self.sdk.ParameterString(name=parameter.name, default_value=parameter.default)
            for parameter in laid.pushed.parameters
        }
        self.pins = self.sdk.PropertyFile(name="pins", output_name="out", path=PINS)
        self.judged = self.sdk.PropertyFile(name="judged", output_name="out", path="gate.json")
        self.made: dict[str, Any] = {}

    def text(self) -> str:
        self._pin()
        gated = gated_steps(self.laid.plan)
        steps = active(self.laid.plan)
        top = [self.made[PIN], *(self._step(step, []) for step in steps if step.name not in gated)]
        if self.laid.pushed.judges:
            top += [self._gate(), self._condition([step for step in steps if step.name in gated])]
        pipeline = self.sdk.Pipeline(
            name=self.laid.plan.pipeline.name,
            parameters=list(self.parameters.values()),
            steps=top,
            sagemaker_session=self.sdk.PipelineSession(sagemaker_config=CONFIG),
            pipeline_experiment_config=None,
        )
        text: str = pipeline.definition()
        return text

    def _pin(self) -> None:
        environment = {
            "RUNNER_EXECUTION": self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ARN,
            "RUNNER_STARTED": self.sdk.ExecutionVariables.START_DATETIME,
        }
        for number, parameter in enumerate(self.laid.pushed.parameters, 1):
            environment[f"RUNNER_VALUE_{number}"] = self.parameters[parameter.key]
        self._small(PIN, environment, self.pins, cached=False)

    def _gate(self) -> Any:
        gated = gated_steps(self.laid.plan)
        judged = [step.name for step in active(self.laid.plan) if step.name not in gated]
        return self._small(GATE, self._results(judged), self.judged, cached=True)

    def _small(self, name: str, environment: dict[str, Any], file: Any, *, cached: bool) -> Any:
        job = StepJob(run="", step=name, notebook="", timeout_s=SMALL_TIMEOUT_S)
        chosen = settings(self.laid.plan.pipeline)
        return self._processing(job, chosen, [name], environment, [], [file], SMALL_INSTANCE, cached=cached)

    def _step(self, step: PlannedStep, before: Sequence[str]) -> Any:
        """`before` are the gated steps before it, which go one after the other."""
        name, specs, task = step.name, step.spec.inputs, self.laid.tasks[step.name]
        taken = {of: step.name + "." + of if of in step.spec.parameters else of for of in task.given}
        environment = {f"RUNNER_PARAMETER_{of}": self.parameters[key] for of, key in taken.items()}
        inputs = []
        for number, (of, spec) in enumerate(specs.items()):
            if is_pinned(spec):
                key = f"pins.{pin_key(self.laid.pushed, f'{name}.{of}')}"
                environment[f"RUNNER_PIN_{number}"] = self._text(PIN, self.pins, f"{key}.digest")
                address = self._text(PIN, self.pins, f"{key}.address")
            else:
                address = self._below(GATE, VERDICT_FILE) if spec.from_ == VERDICT else self._output(spec.from_)
            if spec.as_ == "path":
                inputs.append(self._input(f"in-{number}", address, f"in/{of}"))
        gated = gated_steps(self.laid.plan)
        if name in gated:
            environment |= self._results([*(other for other in self.laid.tasks if other not in gated), *before])
            environment["RUNNER_GATE"] = self._folder(GATE)
        chosen = settings(self.laid.plan.pipeline, name)
        instance = INSTANCE if step.spec.sagemaker.instance is None else f"{name}.{INSTANCE}"
        after = [*([] if step.needs else [PIN]), *step.spec.after, *before]
        return self._processing(task.job, chosen, after, environment, inputs, [], instance, cached=True)

    def _condition(self, gated: Sequence[PlannedStep]) -> Any:
        outcome, reasons = (self._get(GATE, self.judged, name) for name in ("outcome", "reasons"))
        said = self.sdk.Join(on=" ", values=["The gate's verdict is", outcome, "–", reasons])
        names = [step.name for step in gated]
        return self.sdk.ConditionStep(
            name=CONDITION,
            conditions=[self.sdk.ConditionEquals(left=outcome, right="pass")],
            if_steps=[self._step(step, names[:number]) for number, step in enumerate(gated)],
            else_steps=[self.sdk.FailStep(name=FAIL, error_message=said)],
        )

    def _processing(
        self,
        job: StepJob,
        chosen: Settings,
        after: Sequence[str],
        environment: dict[str, Any],
        inputs: list[dict[str, Any]],
        files: list[Any],
        instance: str,
        *,
        cached: bool,
    ) -> Any:
        name = job.step
        own = [self._input("bundle", self.laid.runners[name]), self._input("step", self.laid.bundles[name])]
        _refuse_beyond(name, len(own) + len(inputs), len(environment))
        at = Addresses(bundle="", step="", attempt="", inputs={})
        made = request("", job, chosen, at, project=self.laid.plan.pipeline.name)
        del made["ProcessingJobName"]
        made["Tags"] = [tag for tag in made["Tags"] if tag["Key"] not in (HASH_TAG, "runner:run")]
        arguments = [PLAIN, MODULE, name] if name in (PIN, GATE) else [MODULE, "step"]
        made["AppSpecification"]["ContainerArguments"] = arguments
        made["Environment"] = environment
        made["ProcessingInputs"] = own + inputs
        made["ProcessingResources"]["ClusterConfig"]["InstanceType"] = self.parameters[instance]
        place = self.sdk.Join(on="/", values=[self.laid.runs, self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ID, name])
        target = {"S3Uri": place, "LocalPath": OUTPUT, "S3UploadMode": "EndOfJob"}
        made["ProcessingOutputConfig"]["Outputs"] = [{"OutputName": "out", "S3Output": target}]
        if not environment:
            del made["Environment"]
        # what a Processor leaves in its session; one of our own would have to be told all this again
        processor = SimpleNamespace(sagemaker_session=SimpleNamespace(context=SimpleNamespace(args=made)))
        self.made[name] = self.sdk.ProcessingStep(
            name=name,
            step_args=self.sdk._StepArguments("run", lambda _: None, processor),
            depends_on=[self.made[other] for other in dict.fromkeys(after) if other in self.made],
            property_files=files,
            cache_config=self.sdk.CacheConfig(enable_caching=True, expire_after=EXPIRES) if cached else None,
        )
        return self.made[name]

    def _results(self, steps: Sequence[str]) -> dict[str, Any]:
        """Where the steps' folders are, as a job's environment: cached ones lie with an earlier execution."""
        return {f"RUNNER_RESULT_{number}": self._folder(step) for number, step in enumerate(steps, 1)}

    def _folder(self, step: str) -> Any:
        return self.made[step].properties.ProcessingOutputConfig.Outputs["out"].S3Output.S3Uri

    def _below(self, step: str, path: str) -> Any:
        return self.sdk.Join(on="/", values=[self._folder(step), path])

    def _output(self, source: str) -> Any:
        step, _, output = source.partition(".")
        return self._below(step, f"out/{self.laid.tasks[step].job.outputs[output]}")

    def _get(self, step: str, file: Any, path: str) -> Any:
        return self.sdk.JsonGet(step_name=step, property_file=file, json_path=path)

    def _text(self, step: str, file: Any, path: str) -> Any:
        """As `_get`, where an argument of a job is: there the service's schema has no Std:JsonGet but in a Std:Join."""
        return self.sdk.Join(values=[self._get(step, file, path)])

    def _input(self, name: str, address: Any, folder: str = "") -> dict[str, Any]:
        source = {
            "S3Uri": address,
            "LocalPath": f"{INPUT}/{folder or name}",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
        }
        return {"InputName": name, "S3Input": source}


class Pipelines:
    """The calls about one Pipeline."""

    def __init__(self, session: Session, name: str) -> None:
        self.session, self.name = session, name

    def describe(self) -> dict[str, Any] | None:
        """None where there is no such Pipeline."""
        try:
            return self.call("describe_pipeline")
        except AwsError as error:
            if error.code in ABSENT:
                return None
            raise

    def tags(self, arn: str) -> list[dict[str, str]]:
        found = self.session.call("sagemaker", "list_tags", about=f"pipeline {self.name}", ResourceArn=arn)
        tags: list[dict[str, str]] = found["Tags"]
        return tags

    def call(self, action: str, **arguments: Any) -> dict[str, Any]:
        about = f"pipeline {self.name}"
        return self.session.call("sagemaker", action, about=about, PipelineName=self.name, **arguments)


def _arguments(made: dict[str, Any], bucket: Bucket, chosen: Settings) -> dict[str, Any]:
    text = json.dumps(made)
    if len(text.encode()) < LARGEST_BYTES:
        return {"RoleArn": chosen.role, "PipelineDefinition": text}
    key = f"pipelines/{hashlib.sha256(text.encode()).hexdigest()}.json"
    bucket.put(key, text.encode())
    return {
        "RoleArn": chosen.role,
        "PipelineDefinitionS3Location": {"Bucket": bucket.name, "ObjectKey": bucket.prefix + key},
    }


def _refuse_beyond(step: str, inputs: int, values: int) -> None:
    if inputs > MOST_INPUTS:
        raise UsageError(
            f"Step {step} has {inputs - 2} inputs to copy; a processing job takes {MOST_INPUTS - 2}. Write files that "
            'belong together into one output folder, or pass addresses with `as = "uri"`.'
        )
    if values > MOST_VALUES:
        raise UsageError(f"Step {step} takes {values} values; a processing job's environment has {MOST_VALUES}.")


def _order(steps: list[dict[str, Any]], names: Sequence[str]) -> None:
    """The SDK goes through sets, whose order differs from one process to the next."""
    steps.sort(key=lambda step: names.index(step["Name"]) if step["Name"] in names else len(names))
    for step in steps:
        if "DependsOn" in step:
            step["DependsOn"].sort()
        _order(step["Arguments"].get("IfSteps", []), names)


@contextlib.contextmanager
def _sdk(region: str) -> Iterator[SimpleNamespace]:
    """The SDK's parts, without its warnings, its look at the role, and its need of a region in the environment."""
    needed = {"AWS_DEFAULT_REGION": region, "SAGEMAKER_VALIDATE_ROLE": "false"}
    before = {name: os.environ.get(name) for name in needed}
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    os.environ.update(needed)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                parts = {name: importlib.import_module(f"sagemaker.{module}") for name, module in SDK.items()}
            except ImportError as error:
                raise UsageError(MISSING) from error
            yield SimpleNamespace(**{name: getattr(module, name) for name, module in parts.items()})
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)  # the SDK would have everything of everybody on stderr
        root.handlers[:] = handlers
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
