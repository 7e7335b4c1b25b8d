"""pipeline.toml as a SageMaker Pipeline: its definition, made with the SageMaker SDK.

    the notebooks' steps ─► gate-passed ─┬─► the steps that need the verdict
                                         └─► gate-failed, with the reasons

Which of the jobs make the pins and judge the gate, `shares.py` says. The service caches a job by what it is started with:
its image, environment and inputs. So these hold addresses made of content, the parameters it takes and the hashes that
the pins have, and nothing that differs from one execution to the next. What makes the pins cannot be cached so; it looks
for an earlier result itself (`step_sequence.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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
    GateRules,
    PushedFiles,
    is_pinned,
    pin_key,
    step_key,
)
from runner.aws.pipelines.sdk import CONFIG, loaded, step_arguments
from runner.aws.pipelines.step_groups import StepGroup
from runner.aws.processing._run import PLAIN
from runner.aws.processing.request import HASH_TAG, MOST_INPUTS, OUTPUT, JobAddresses, copied, limit_s, request
from runner.aws.settings import Settings, settings
from runner.errors import UsageError
from runner.pipeline.file import VERDICT
from runner.records import StepJob, encode
from runner.run.orchestrate import VERDICT_FILE

MODULE = "runner.aws.pipelines.pipeline_job"
MOST_VALUES = 100  # of a job's environment (botocore: ProcessingEnvironmentMap)
SMALL_TIMEOUT_S = 1800  # of a gate with a job of its own
LONGEST_DISPLAY_NAME = 64  # and of the characters of a name, by the published schema
EXPIRES = "P365D"
PROJECT_TAG = "sagemaker:project-"  # what the SDK adds in a clone that Studio has made, and nowhere else


def definition(laid: PushedFiles, *, region: str) -> dict[str, Any]:
    """The Pipeline's definition; the same for the same content, wherever and whenever it is made.

    Raises UsageError where the SDK is not installed, or a step is beyond the service's limits.
    """
    with loaded(region) as sdk:
        made: dict[str, Any] = json.loads(_Definition(laid, sdk, region).text())
    _clean(made["Steps"])
    for unset in ("PipelineExperimentConfig", "MlflowConfig"):
        if made.get(unset) is None:
            made.pop(unset, None)
    _order(made["Steps"], [*(share.name for share in laid.step_groups if not share.gated), GATE, CONDITION])
    return made


class _Definition:
    """The SDK's objects on their way to a definition; made anew for each."""

    def __init__(self, laid: PushedFiles, sdk: SimpleNamespace, region: str) -> None:
        import boto3

        self.sdk, self.laid, self.region = sdk, laid, region
        self.session = sdk.PipelineSession(boto_session=boto3.Session(region_name=region), sagemaker_config=CONFIG)
        self.parameters = {
            parameter.key: self.sdk.ParameterString(name=parameter.name, default_value=parameter.default)
            for parameter in laid.pushed.parameters
        }
        self.left = self.sdk.PropertyFile(name="left", output_name="out", path=LEFT)
        self.share_of = {name: share for share in laid.step_groups for name in share.names}
        self.gated = [step.name for step in laid.pushed.steps if step.gated]
        judge = laid.pushed.judge
        self.judging = self.share_of[judge].name if judge else GATE
        self.made: dict[str, Any] = {}

    def text(self) -> str:
        top = [self._job(share, []) for share in self.laid.step_groups if not share.gated]
        if self.laid.pushed.judges:
            top += [self._gate()] if self.judging == GATE else []
            top.append(self._condition([share for share in self.laid.step_groups if share.gated]))
        pipeline = self.sdk.Pipeline(
            name=self.laid.plan.pipeline.name,
            parameters=list(self.parameters.values()),
            steps=top,
            sagemaker_session=self.session,
            pipeline_experiment_config=None,
        )
        text: str = pipeline.definition()
        return text

    def _settings(self, step: str | None) -> Settings:
        plan = self.laid.plan
        return named(plan.pipeline.name, settings(plan.pipeline, step), self.region, plan.root)

    def _gate(self) -> Any:
        """The gate in a job of its own."""
        judged = [step.name for step in self.laid.pushed.steps if not step.gated]
        job = StepJob(run="", step=GATE, notebook="", timeout_s=SMALL_TIMEOUT_S)
        made = self._request(GATE, job, self._settings(None), SMALL_INSTANCE)
        made["AppSpecification"]["ContainerArguments"] = [PLAIN, MODULE, GATE]
        made["ProcessingInputs"] = self._own(GATE, "step")
        return self._processing(GATE, made, self._results(judged), [self.share_of[name].name for name in judged])

    def _job(self, share: StepGroup, before: Sequence[str]) -> Any:
        """`before` are the gated steps before it, which go one after the other."""
        environment = self._started() if share.first else {}
        inputs, results = [], set(before)
        for number, step in enumerate(share.steps, 1):
            own = f"{number}_" if len(share.steps) > 1 else ""
            if own:
                environment[f"RUNNER_STEP_{number}"] = self._key(step.name)
            if not share.first:  # it has all of them
                for of in self.laid.tasks[step.name].given:
                    key = parameter_key(step.name, step.spec, of)
                    environment[f"RUNNER_PARAMETER_{own}{of}"] = self.parameters[key]
            for place, (of, spec) in enumerate(step.spec.inputs.items()):
                pin = self._pin(share, f"{step.name}.{of}") if is_pinned(spec) and not share.first else None
                if pin is not None:
                    environment[f"RUNNER_PIN_{own}{place}"] = self._text(*pin, "digest")
                elif not is_pinned(spec) and spec.from_ != VERDICT:
                    results.add(spec.from_.partition(".")[0])
                if not share.fetches and spec.as_ == "path":
                    address = self._text(*pin, "address") if pin is not None else self._made(spec.from_)
                    inputs.append(copied(f"in-{place}", address, f"in/{of}"))
            if step.name in self.gated:
                results |= {other.name for other in self.laid.pushed.steps if not other.gated}
        if share.judges:
            rules = self.laid.plan.pipeline.gate
            results |= {rule.metric.partition(".")[0] for rule in rules}
            results |= {rule.when.partition(".")[0] for rule in rules if rule.when}
            environment["RUNNER_RULES"] = hashlib.sha256(encode(GateRules(rules=rules))).hexdigest()
        elif any(name in self.gated for name in share.names):
            environment["RUNNER_GATE"] = self._properties(self.judging)
        environment |= self._results([name for name in self.share_of if name in results and name not in share.names])
        # what waits for the gate waits for all that comes before it
        after = [self.share_of[name].name for name in before] if share.gated else self._needed(share)
        return self._processing(share.name, self._of_share(share, inputs), environment, after, share)

    def _of_share(self, share: StepGroup, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        step = share.steps[0]
        chosen = self._settings(share.name)
        instance = INSTANCE if step.spec.sagemaker.instance is None else f"{share.name}.{INSTANCE}"
        made = self._request(share.name, self.laid.tasks[share.name].job, chosen, instance)
        limit = limit_s([self.laid.tasks[name].job.timeout_s for name in share.names], chosen)
        made["StoppingCondition"]["MaxRuntimeInSeconds"] = limit
        made["AppSpecification"]["ContainerArguments"] = [*[PLAIN] * share.looks, MODULE, STEPS, *share.names]
        made["ProcessingInputs"] = self._own(share.name, *["step"] * (len(share.steps) == 1)) + inputs
        if share.first:
            made["ProcessingInputs"].append(copied("pushed", self.laid.bundles[PIN]))
        return made

    def _started(self) -> dict[str, Any]:
        """What the pins are made of."""
        environment = {
            "RUNNER_EXECUTION": self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ARN,
            "RUNNER_STARTED": self.sdk.ExecutionVariables.START_DATETIME,
        }
        for number, parameter in enumerate(self.laid.pushed.parameters, 1):
            environment[f"RUNNER_VALUE_{number}"] = self.parameters[parameter.key]
        return environment

    def _condition(self, gated: Sequence[StepGroup]) -> Any:
        outcome, reasons = (self._get(self.judging, name) for name in ("outcome", "reasons"))
        said = self.sdk.Join(on=" ", values=["The gate's verdict is", outcome, "–", reasons])
        before = [[name for share in gated[:number] for name in share.names] for number in range(len(gated))]
        return self.sdk.ConditionStep(
            name=CONDITION,
            conditions=[self.sdk.ConditionEquals(left=outcome, right="pass")],
            if_steps=[self._job(share, names) for share, names in zip(gated, before, strict=True)],
            else_steps=[self.sdk.FailStep(name=FAIL, error_message=said)],
            depends_on=[self.made[self.judging]],
        )

    def _request(self, name: str, job: StepJob, chosen: Settings, instance: str) -> dict[str, Any]:
        at = JobAddresses(bundle="", step="", attempt="", inputs={})
        made = request("", job, chosen, at, project=self.laid.plan.pipeline.name)
        del made["ProcessingJobName"], made["Environment"]
        made["Tags"] = [tag for tag in made["Tags"] if tag["Key"] not in (HASH_TAG, "runner:run")]
        made["ProcessingResources"]["ClusterConfig"]["InstanceType"] = self.parameters[instance]
        place = self.sdk.Join(on="/", values=[self.laid.runs, self.sdk.ExecutionVariables.PIPELINE_EXECUTION_ID, name])
        target = {"S3Uri": place, "LocalPath": OUTPUT, "S3UploadMode": "EndOfJob"}
        made["ProcessingOutputConfig"]["Outputs"] = [{"OutputName": "out", "S3Output": target}]
        return made

    def _own(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        return [copied("bundle", self.laid.runners[name]), *(copied(kind, self.laid.bundles[name]) for kind in kinds)]

    def _processing(
        self,
        name: str,
        made: dict[str, Any],
        environment: dict[str, Any],
        after: Sequence[str],
        share: StepGroup | None = None,
    ) -> Any:
        _refuse_beyond(name, len(made["ProcessingInputs"]), len(environment))
        if environment:
            made["Environment"] = environment
        cached = share is None or not share.first
        several = share is not None and len(share.steps) > 1
        self.made[name] = self.sdk.ProcessingStep(
            name=name,
            display_name="-".join(share.names)[:LONGEST_DISPLAY_NAME] if share is not None and several else None,
            step_args=step_arguments(self.sdk, self.session, made),
            depends_on=[self.made[other] for other in dict.fromkeys(after)],
            property_files=[self.left] if share is None or share.looks else [],
            cache_config=self.sdk.CacheConfig(enable_caching=True, expire_after=EXPIRES) if cached else None,
        )
        return self.made[name]

    def _needed(self, share: StepGroup) -> list[str]:
        """The jobs that this one waits for, that which has its pins included."""
        found = [self.share_of[need].name for step in share.steps for need in step.needs]
        pinning = [] if share.first else [self._pinning(share)]
        return [name for name in (*found, *pinning) if name != share.name]

    def _pinning(self, share: StepGroup) -> str:
        """The first of all jobs before this one."""
        while not share.first:
            before = [self.share_of[need] for step in share.steps for need in step.needs]
            others = [other for other in before if other.name != share.name]
            share = others[0] if others else next(other for other in self.laid.step_groups if other.first)
        return share.name

    def _results(self, steps: Sequence[str]) -> dict[str, Any]:
        """Where the steps' folders are, as a job's environment: cached ones lie with an earlier execution."""
        return {f"RUNNER_RESULT_{number}": self._folder(step) for number, step in enumerate(steps, 1)}

    def _folder(self, step: str) -> Any:
        share = self.share_of[step]
        if share.looks:
            return self._text(share.name, f"at.{step_key(self.laid.pushed, step)}")
        return self._properties(share.name)

    def _properties(self, job: str) -> Any:
        return self.made[job].properties.ProcessingOutputConfig.Outputs["out"].S3Output.S3Uri

    def _made(self, source: str) -> Any:
        """The address of what was made in the execution: a step's output, or the verdict."""
        if source == VERDICT:
            return self.sdk.Join(on="/", values=[self._properties(self.judging), VERDICT_FILE])
        step, _, output = source.partition(".")
        path = f"out/{self.laid.tasks[step].job.outputs[output]}"
        share = self.share_of[step]
        whole = self._get(share.name, f"at.{step_key(self.laid.pushed, step)}") if share.looks else self._folder(step)
        return self.sdk.Join(on="/", values=[whole, path])

    def _pin(self, share: StepGroup, of: str) -> tuple[str, str]:
        """The job that has the pin and where in its file."""
        return self._pinning(share), f"pins.{pin_key(self.laid.pushed, of)}"

    def _key(self, step: str) -> str:
        return next(pushed.key for pushed in self.laid.pushed.steps if pushed.name == step)

    def _get(self, job: str, *path: str) -> Any:
        return self.sdk.JsonGet(step_name=job, property_file=self.left, json_path=".".join(path))

    def _text(self, job: str, *path: str) -> Any:
        """As `_get`, where an argument of a job is: there the service's schema has no Std:JsonGet but in a Std:Join."""
        return self.sdk.Join(values=[self._get(job, *path)])


def _refuse_beyond(step: str, inputs: int, values: int) -> None:
    if inputs > MOST_INPUTS:
        raise UsageError(
            f"Step {step} has {inputs - 2} inputs to copy; a processing job takes {MOST_INPUTS - 2}. Write files that "
            'belong together into one output folder, or pass addresses with `as = "uri"`.'
        )
    if values > MOST_VALUES:
        raise UsageError(f"Step {step} takes {values} values; a processing job's environment has {MOST_VALUES}.")


def _clean(steps: list[dict[str, Any]]) -> None:
    """Take out what depends on the folder that is pushed from, which would make every step run again."""
    for step in steps:
        arguments = step["Arguments"]
        if "Tags" in arguments:
            arguments["Tags"] = [tag for tag in arguments["Tags"] if not tag["Key"].startswith(PROJECT_TAG)]
        _clean(arguments.get("IfSteps", []))


def _order(steps: list[dict[str, Any]], names: Sequence[str]) -> None:
    """The SDK goes through sets, whose order differs from one process to the next."""
    steps.sort(key=lambda step: names.index(step["Name"]) if step["Name"] in names else len(names))
    for step in steps:
        if "DependsOn" in step:
            step["DependsOn"].sort()
        _order(step["Arguments"].get("IfSteps", []), names)
