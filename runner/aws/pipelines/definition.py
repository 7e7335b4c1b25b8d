"""The definition of a SageMaker Pipeline from pipeline.toml, made with the SageMaker SDK.

    the notebooks' steps ─► gate-passed ─┬─► the steps that need the verdict
                                         └─► gate-failed, with the reasons

`step_groups.py` says which jobs make the pins and judge the gate. The service caches a job by its image, environment
and inputs. So these hold addresses made of content, the job's parameters and the hashes of the pins, and nothing that
differs between executions. The job that makes the pins cannot be cached so; it looks for an earlier result itself
(`step_sequence.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from runner.aws.own_image import named
from runner.aws.pipelines.parameters import INSTANCE, SMALL_INSTANCE, parameter_key
from runner.aws.pipelines.pushed import (
    CONDITION,
    FAIL,
    GATE,
    LEFT,
    PIN,
    STEPS,
    PushedAssets,
    gate_rules,
    is_pinned,
    pin_key,
    step_key,
)
from runner.aws.pipelines.sdk import CONFIG, loaded, step_arguments
from runner.aws.pipelines.step_groups import StepGroup
from runner.aws.processing._run import PLAIN
from runner.aws.processing.request import HASH_TAG, MOST_INPUTS, OUTPUT, JobAddresses, copied, limit_s, refuse_inputs
from runner.aws.processing.request import request as processing_request
from runner.aws.settings import Settings, settings
from runner.errors import UsageError
from runner.pipeline.file import VERDICT
from runner.records import StepJob, encode
from runner.run.orchestrate import VERDICT_FILE

MODULE = "runner.aws.pipelines.pipeline_job"
MOST_VALUES = 100  # in a job's environment (botocore: ProcessingEnvironmentMap)
SMALL_TIMEOUT_S = 1800  # of a gate with a job of its own
LONGEST_DISPLAY_NAME = 64  # and of the characters of a name, by the published schema
EXPIRES = "P365D"
PROJECT_TAG = "sagemaker:project-"  # added by the SDK in a clone that Studio has made


def definition(assets: PushedAssets, *, region: str) -> dict[str, Any]:
    """The Pipeline's definition; equal for equal content, on any machine and at any time.

    Raises UsageError where the SDK is not installed, or a step exceeds the service's limits.
    """
    with loaded(region) as sdk:
        content: dict[str, Any] = json.loads(_Definition(assets, sdk, region).text())
    _clean(content["Steps"])
    for unset in ("PipelineExperimentConfig", "MlflowConfig"):
        if content.get(unset) is None:
            content.pop(unset, None)
    _order(content["Steps"], [*(group.name for group in assets.groups if not group.gated), GATE, CONDITION])
    return content


class _Definition:
    """The SDK's objects of one definition."""

    def __init__(self, assets: PushedAssets, sdk: SimpleNamespace, region: str) -> None:
        import boto3

        self.sdk, self.assets, self.pushed, self.region = sdk, assets, assets.pushed, region
        self.session = sdk.PipelineSession(boto_session=boto3.Session(region_name=region), sagemaker_config=CONFIG)
        self.parameters = {
            parameter.key: self.sdk.ParameterString(name=parameter.name, default_value=parameter.default)
            for parameter in self.pushed.parameters
        }
        self.report = self.sdk.PropertyFile(name="left", output_name="out", path=LEFT)
        self.group_of = {name: group for group in assets.groups for name in group.names}
        self.gated = [step.name for step in self.pushed.steps if step.gated]
        self.ungated = [step.name for step in self.pushed.steps if not step.gated]
        self.judging = self.group_of[self.pushed.judge].name if self.pushed.judge else GATE
        self.steps: dict[str, Any] = {}  # the Pipeline's, by name

    def text(self) -> str:
        top = [self._job(group, []) for group in self.assets.groups if not group.gated]
        if self.pushed.judges:
            top += [self._gate()] if self.judging == GATE else []
            top.append(self._condition([group for group in self.assets.groups if group.gated]))
        pipeline = self.sdk.Pipeline(
            name=self.assets.plan.pipeline.name,
            parameters=list(self.parameters.values()),
            steps=top,
            sagemaker_session=self.session,
            pipeline_experiment_config=None,
        )
        text: str = pipeline.definition()
        return text

    def _settings(self, step: str | None) -> Settings:
        plan = self.assets.plan
        return named(plan.pipeline.name, settings(plan.pipeline, step), self.region, plan.root)

    def _gate(self) -> Any:
        """The gate in a job of its own."""
        job = StepJob(run="", step=GATE, notebook="", timeout_s=SMALL_TIMEOUT_S)
        request = self._request(GATE, job, replace(self._settings(None), instance_count=1), SMALL_INSTANCE)
        request["AppSpecification"]["ContainerArguments"] = [PLAIN, MODULE, GATE]
        request["ProcessingInputs"] = self._own_inputs(GATE, "step")
        after = [self.group_of[name].name for name in self.ungated]
        return self._step(GATE, request, self._results(self.ungated), after)

    def _job(self, group: StepGroup, before: Sequence[str]) -> Any:
        """`before` are the gated steps before it, which are executed one after the other."""
        environment = self._pin_variables() if group.first else {}
        inputs, results = [], set(before)
        for number, step in enumerate(group.steps, 1):
            infix = f"{number}_" if len(group.steps) > 1 else ""
            if infix:
                keys = {pushed.name: pushed.key for pushed in self.pushed.steps}
                environment[f"RUNNER_STEP_{number}"] = keys[step.name]
            if not group.first:  # which has all of them
                for name in self.assets.tasks[step.name].given:
                    key = parameter_key(step.name, step.spec, name)
                    environment[f"RUNNER_PARAMETER_{infix}{name}"] = self.parameters[key]
            for place, (name, spec) in enumerate(step.spec.inputs.items()):
                pin = None
                if is_pinned(spec) and not group.first:
                    pin = self._pinning(group), f"pins.{pin_key(self.pushed, f'{step.name}.{name}')}"
                    environment[f"RUNNER_PIN_{infix}{place}"] = self._reported(*pin, "digest")
                elif not is_pinned(spec) and spec.from_ != VERDICT:
                    results.add(spec.from_.partition(".")[0])
                if not group.fetches and spec.as_ == "path":
                    address = self._reported(*pin, "address") if pin is not None else self._output(spec.from_)
                    inputs.append(copied(f"in-{place}", address, f"in/{name}"))
            if step.name in self.gated:
                results |= set(self.ungated)
        if group.judges:
            rules = self.assets.plan.pipeline.gate
            results |= {rule.metric.partition(".")[0] for rule in rules}
            results |= {rule.when.partition(".")[0] for rule in rules if rule.when}
            results |= set(self.ungated) if self.pushed.registers_itself else set()
            environment["RUNNER_RULES"] = hashlib.sha256(encode(gate_rules(self.assets.plan))).hexdigest()
        elif not set(self.gated).isdisjoint(group.names):
            environment["RUNNER_GATE"] = self._folder_of(self.judging)
        environment |= self._results([name for name in self.group_of if name in results and name not in group.names])
        # a job that waits for the gate waits for all jobs before the gate
        after = [self.group_of[name].name for name in before] if group.gated else self._needed(group)
        return self._step(group.name, self._group_request(group, inputs), environment, after, group)

    def _group_request(self, group: StepGroup, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        job_settings, tasks = self._settings(group.name), self.assets.tasks
        instance = INSTANCE if group.steps[0].spec.sagemaker.instance is None else f"{group.name}.{INSTANCE}"
        request = self._request(group.name, tasks[group.name].job, job_settings, instance)
        limit = limit_s([tasks[name].job.timeout_s for name in group.names], job_settings)
        request["StoppingCondition"]["MaxRuntimeInSeconds"] = limit
        # what a target has captured is read with the lock's packages
        plain = group.looks and not (group.first and self.pushed.windows)
        request["AppSpecification"]["ContainerArguments"] = [*[PLAIN] * plain, MODULE, STEPS, *group.names]
        request["ProcessingInputs"] = self._own_inputs(group.name, *["step"] * (len(group.steps) == 1)) + inputs
        if group.first:
            request["ProcessingInputs"].append(copied("pushed", self.assets.bundles[PIN]))
        return request

    def _pin_variables(self) -> dict[str, Any]:
        """The variables that the pins are made of."""
        variables = {
            "RUNNER_EXECUTION": self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ARN,
            "RUNNER_STARTED": self.sdk.ExecutionVariables.START_DATETIME,
        }
        for number, parameter in enumerate(self.pushed.parameters, 1):
            variables[f"RUNNER_VALUE_{number}"] = self.parameters[parameter.key]
        return variables

    def _condition(self, gated: Sequence[StepGroup]) -> Any:
        outcome, reasons = (self._from_report(self.judging, name) for name in ("outcome", "reasons"))
        message = self.sdk.Join(on=" ", values=["The gate's verdict is", outcome, "–", reasons])
        before = [[name for group in gated[:number] for name in group.names] for number in range(len(gated))]
        return self.sdk.ConditionStep(
            name=CONDITION,
            conditions=[self.sdk.ConditionEquals(left=outcome, right="pass")],
            if_steps=[self._job(group, names) for group, names in zip(gated, before, strict=True)],
            else_steps=[self.sdk.FailStep(name=FAIL, error_message=message)],
            depends_on=[self.steps[self.judging]],
        )

    def _request(self, name: str, job: StepJob, job_settings: Settings, instance: str) -> dict[str, Any]:
        addresses = JobAddresses(bundle="", step="", attempt="", inputs={})
        request = processing_request("", job, job_settings, addresses, project=self.assets.plan.pipeline.name)
        del request["ProcessingJobName"], request["Environment"]
        request["Tags"] = [tag for tag in request["Tags"] if tag["Key"] not in (HASH_TAG, "runner:run")]
        request["ProcessingResources"]["ClusterConfig"]["InstanceType"] = self.parameters[instance]
        execution = self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ID
        address = self.sdk.Join(on="/", values=[self.assets.runs, execution, name])
        target = {"S3Uri": address, "LocalPath": OUTPUT, "S3UploadMode": "EndOfJob"}
        request["ProcessingOutputConfig"]["Outputs"] = [{"OutputName": "out", "S3Output": target}]
        return request

    def _own_inputs(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        return [
            copied("bundle", self.assets.runners[name]),
            *(copied(kind, self.assets.bundles[name]) for kind in kinds),
        ]

    def _step(
        self,
        name: str,
        request: dict[str, Any],
        environment: dict[str, Any],
        after: Sequence[str],
        group: StepGroup | None = None,
    ) -> Any:
        refuse_inputs(name, len(request["ProcessingInputs"]) - 2, MOST_INPUTS - 2, "processing")
        if len(environment) > MOST_VALUES:
            raise UsageError(
                f"Step {name} takes {len(environment)} values; a processing job's environment has {MOST_VALUES}."
            )
        if environment:
            request["Environment"] = environment
        cached = group is None or not group.first
        several = group is not None and len(group.steps) > 1
        self.steps[name] = self.sdk.ProcessingStep(
            name=name,
            display_name="-".join(group.names)[:LONGEST_DISPLAY_NAME] if group is not None and several else None,
            step_args=step_arguments(self.sdk, self.session, request),
            depends_on=[self.steps[other] for other in dict.fromkeys(after)],
            property_files=[self.report] if group is None or group.looks else [],
            cache_config=self.sdk.CacheConfig(enable_caching=True, expire_after=EXPIRES) if cached else None,
        )
        return self.steps[name]

    def _needed(self, group: StepGroup) -> list[str]:
        """The jobs that this one waits for, with the one that has its pins."""
        needed = [self.group_of[need].name for step in group.steps for need in step.needs]
        pinning = [] if group.first else [self._pinning(group)]
        return [name for name in (*needed, *pinning) if name != group.name]

    def _pinning(self, group: StepGroup) -> str:
        """The first of all jobs before this one."""
        while not group.first:
            needed = (self.group_of[need] for step in group.steps for need in step.needs)
            others = (other for other in needed if other.name != group.name)
            group = next(others, None) or next(other for other in self.assets.groups if other.first)
        return group.name

    def _results(self, steps: Sequence[str]) -> dict[str, Any]:
        """The addresses of the steps' folders, as a job's environment: cached ones are in an earlier execution's."""
        return {f"RUNNER_RESULT_{number}": self._folder(step) for number, step in enumerate(steps, 1)}

    def _folder(self, step: str) -> Any:
        group = self.group_of[step]
        if group.looks:
            return self._reported(group.name, f"at.{step_key(self.pushed, step)}")
        return self._folder_of(group.name)

    def _folder_of(self, job: str) -> Any:
        return self.steps[job].properties.ProcessingOutputConfig.Outputs["out"].S3Output.S3Uri

    def _output(self, source: str) -> Any:
        """The address of a step's output, or of the verdict."""
        if source == VERDICT:
            return self.sdk.Join(on="/", values=[self._folder_of(self.judging), VERDICT_FILE])
        step, _, output = source.partition(".")
        group = self.group_of[step]
        # without the Std:Join of `_folder`, as it becomes part of another one
        key = f"at.{step_key(self.pushed, step)}"
        folder = self._from_report(group.name, key) if group.looks else self._folder_of(group.name)
        return self.sdk.Join(on="/", values=[folder, f"out/{self.assets.tasks[step].job.outputs[output]}"])

    def _from_report(self, job: str, *path: str) -> Any:
        return self.sdk.JsonGet(step_name=job, property_file=self.report, json_path=".".join(path))

    def _reported(self, job: str, *path: str) -> Any:
        """As `_from_report`, for an argument of a job: there the service's schema has Std:JsonGet only in Std:Join."""
        return self.sdk.Join(values=[self._from_report(job, *path)])


def _clean(steps: list[dict[str, Any]]) -> None:
    """Remove the tags that depend on the folder of the push: they would make every step run again."""
    for step in steps:
        arguments = step["Arguments"]
        if "Tags" in arguments:
            arguments["Tags"] = [tag for tag in arguments["Tags"] if not tag["Key"].startswith(PROJECT_TAG)]
        _clean(arguments.get("IfSteps", []))


def _order(steps: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Sort what the SDK takes from sets, whose order differs between processes."""
    steps.sort(key=lambda step: names.index(step["Name"]) if step["Name"] in names else len(names))
    for step in steps:
        if "DependsOn" in step:
            step["DependsOn"].sort()
        _order(step["Arguments"].get("IfSteps", []), names)
