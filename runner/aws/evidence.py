"""What earlier executions and versions tell of AWS that no document does, as checks of `runner doctor`."""

from __future__ import annotations

from runner.aws.bucket import Bucket
from runner.aws.pipelines.executions import look
from runner.aws.session import DENIED, AwsError, Session
from runner.aws.settings import Settings, settings
from runner.errors import UsageError, counted
from runner.records import Pipeline
from runner.run.doctor import Check, failed, ok, unknown
from runner.run.store import Store


def events(session: Session, spec: Pipeline, chosen: Settings) -> Check:
    """Whether the policies let an event be added, and once only. Writes nothing: one that is there is offered again."""
    if spec.model is None or spec.model.registry != "sagemaker":
        return ok("events", "nothing to ask: versions are not kept in SageMaker")
    bucket, key = Bucket(session, chosen.bucket, chosen.prefix), f"registry/{spec.model.name}/events/000001.json"
    first = bucket.get(key)
    if first is None:
        return unknown("events", f"{spec.model.name} has no version yet, whose first event could be asked with")
    try:
        bucket.put(key, first, once=True)
    except AwsError as error:
        if error.code not in DENIED:
            raise
        said = f"no event may be added below {bucket.address(key).rpartition('/')[0]}/ by this caller"
        fix = "attach a policy of infra/policies.yaml; where it is attached, take the condition s3:if-none-match out"
        return failed("events", said, fix, code=error.exit_code)
    return ok("events", "one may be added to the history, and none be replaced")


def executions(session: Session, spec: Pipeline) -> Check:
    """What became of the latest execution: whether files of its steps were found, and how many steps were cached."""
    try:
        found = look(session, spec.name)
    except UsageError as error:
        return ok("executions", f"nothing to ask: {error}")
    lost = [step for step in found.steps if step.status == "Failed" and step.kind == "ProcessingJob" and not step.job]
    said = f"execution {found.id} is {found.status}"
    if lost:
        reasons = "; ".join(f"{step.name}: {step.reason}" for step in lost)
        return failed("executions", f"{said}, and no job was started for {reasons}", "say so in an issue", code=7)
    cached = sum(bool(step.cached_from) for step in found.steps)
    return ok("executions", f"{said}; {counted(len(found.steps), 'step')}, {cached} of them cached")


def training(session: Session, store: Store) -> Check:
    """What the service says of the latest training job that a run in the store had: its starts, and its page's metrics."""
    for run in store.runs():
        manifest = store.manifest(run) if store.begun(run) else None
        for state in reversed(manifest.steps if manifest is not None and manifest.on == "sagemaker" else []):
            remote = state.result.remote if state.result is not None else None
            if manifest is None or remote is None or not settings(manifest.pipeline, state.name).trains:
                continue
            about = f"training job {remote.name}"
            job = session.call("sagemaker", "describe_training_job", about=about, TrainingJobName=remote.name)
            starts = sum(entry["Status"] == "Training" for entry in job.get("SecondaryStatusTransitions", []))
            kept = job.get("CheckpointConfig", {}).get("S3Uri", "nowhere")
            return ok(
                "training",
                f"{about} is {job['TrainingJobStatus']} after {counted(starts, 'start')}; its page has "
                f"{counted(len(job.get('FinalMetricDataList', [])), 'metric')}, its checkpoints are in {kept}",
            )
    return unknown("training", "no run from here has had a training job yet")
