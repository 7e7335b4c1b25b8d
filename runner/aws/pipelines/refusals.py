"""What of a pipeline.toml a SageMaker Pipeline cannot have, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator

from runner.aws.pipelines.parameters import active
from runner.aws.pipelines.pushed import CONDITION, FAIL, PIN
from runner.aws.pipelines.step_groups import gated_steps
from runner.aws.settings import settings
from runner.errors import PipelineError
from runner.pipeline.addresses import is_public, public
from runner.pipeline.file import APPROVED, AT_TARGET, is_address, nearest
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import Pipeline, SageMakerTargetSpec


def refuse(plan: Plan, watched: Pipeline | None) -> None:
    """Raises PipelineError with all that a SageMaker Pipeline cannot have.

    `watched` is the pipeline that has the targets, where that is another one.
    """
    model = plan.pipeline.model
    local = model is None or model.registry != "sagemaker"
    findings = [finding for step in active(plan) for finding in _findings(step, plan.pipeline, local=local)]
    for step in active(plan):
        findings += _target_findings(step, watched or plan.pipeline, plan.pipeline)
    if model is not None and local and (gated_steps(plan) or plan.registers_itself):
        findings.append(
            '[model] registry = "local" is on this machine, where no execution can register; write registry = '
            '"sagemaker".'
        )
    if findings:
        raise PipelineError(*findings)


def _findings(step: PlannedStep, pipeline: Pipeline, *, local: bool) -> Iterator[str]:
    where = f"steps.{step.name}"
    if step.name in (PIN, CONDITION, FAIL):
        yield f"{where}: in SageMaker `{step.name}` is a step of the Pipeline's own; rename it."
    if settings(pipeline, step.name).trains:
        yield (
            f"{where}: it is a training job, and in the Pipeline steps are processing jobs; write job = "
            '"processing" for it, in a profile for the Pipeline perhaps.'
        )
    if step.registers and not step.needs_verdict:
        yield (
            f"{where}: it registers, and the gate judges it; in SageMaker only a step after the gate can register. "
            "Call runner.model.register in a step of its own."
        )
    for name, spec in step.spec.inputs.items():
        if spec.from_.startswith(APPROVED) and local:
            yield (
                f"{where}.inputs.{name}: the approved version is looked up in SageMaker's registry when an execution "
                'starts; write [model] registry = "sagemaker".'
            )
        if is_address(spec.from_) and not is_public(spec.from_):
            yield (
                f"{where}.inputs.{name}: {public(spec.from_)} is signed or has a password, and a Pipeline's parameters "
                "are kept in the clear. `runner upload` the file and name its place in the bucket."
            )


def _target_findings(step: PlannedStep, watched: Pipeline, pipeline: Pipeline) -> Iterator[str]:
    """Why an execution cannot look up what the step takes of a target."""
    for name, spec in step.spec.inputs.items():
        if not spec.from_.startswith(AT_TARGET):
            continue
        where, target = f"steps.{step.name}.inputs.{name}", spec.from_.partition(":")[2]
        if target not in watched.targets:
            yield f"{where}: there is no target {target!r}{nearest(target, watched.targets)}"
        elif not isinstance(watched.targets[target], SageMakerTargetSpec):
            yield (
                f"{where}: {target} is on this machine, and an execution cannot look there: "
                f'`runner monitor {target}` can. Watch a target with kind = "sagemaker".'
            )
        if watched.model is None or watched.model.registry != "sagemaker":
            yield (
                f"{where}: which version serves is looked up in SageMaker's registry when an execution starts; write "
                'registry = "sagemaker" at [model] of the file that has the targets.'
            )
        own, other = settings(pipeline), settings(watched)
        if (own.bucket, own.prefix) != (other.bucket, other.prefix):
            yield (
                f"{where}: [sagemaker] names {own.bucket}/{own.prefix}, and what is watched lies in "
                f"{other.bucket}/{other.prefix}. Take bucket and prefix out, to have the same."
            )
