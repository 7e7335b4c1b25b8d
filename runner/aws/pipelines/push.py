"""The SageMaker Pipeline shown as a push would make it, and pushed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.own_image import for_jobs, serving
from runner.aws.pipelines.definition import definition
from runner.aws.pipelines.parameters import active
from runner.aws.pipelines.pushed import DryRunBucket, put_files
from runner.aws.pipelines.refusals import refuse
from runner.aws.session import ABSENT, AwsError, Session
from runner.aws.settings import OWN, Settings, settings
from runner.pipeline.mapping import refuse_pushed
from runner.pipeline.plan import Plan
from runner.records import Pipeline
from runner.run.store import Store

LARGEST_BYTES = 100_000  # of a definition in the request itself; a larger one goes through the bucket


@dataclass(frozen=True)
class PushOutcome:
    """The result of a push, or of a dry run of one: "created", "updated" or "unchanged", and the Pipeline's ARN."""

    name: str
    what: str
    arn: str = ""  # "" where there is none yet


def show(plan: Plan, store: Store, *, profile: str | None, watched: Pipeline | None = None) -> dict[str, Any]:
    """The definition that a push would make; nothing is uploaded and no service called.

    `watched` is the pipeline that has the targets, where that is another one. Raises PipelineError as `refuse` does.
    """
    defaults = settings(plan.pipeline)
    session = Session(defaults.region, anonymous=True)
    bucket = DryRunBucket(session, defaults.bucket, defaults.prefix)
    refuse(plan, watched)
    assets = put_files(plan, bucket, store=store, profile=profile, watched=watched)
    return definition(assets, region=session.region)


def push(
    plan: Plan, store: Store, *, profile: str | None, watched: Pipeline | None = None, dry_run: bool = False
) -> PushOutcome:
    """Upload what the jobs need, and create or update the Pipeline; an equal one is not updated. As `show` raises."""
    refuse_pushed(plan.pipeline)
    defaults, name = settings(plan.pipeline), plan.pipeline.name
    session = Session(defaults.region, kms_key=defaults.kms_key)
    _check_images(session, plan)
    bucket = (DryRunBucket if dry_run else Bucket)(session, defaults.bucket, defaults.prefix)
    refuse(plan, watched)
    assets = put_files(plan, bucket, store=store, profile=profile, watched=watched)
    wanted = definition(assets, region=session.region)
    service = PipelineService(session, name)
    current = service.describe()
    tags = [{"Key": key, "Value": value} for key, value in {**defaults.tags, "runner:project": name}.items()]
    if current is None:
        if dry_run:
            return PushOutcome(name, "created")
        reply = service.call("create_pipeline", **_arguments(wanted, bucket, defaults), Tags=tags)
        return PushOutcome(name, "created", str(reply["PipelineArn"]))
    arn = str(current["PipelineArn"])
    equal = json.loads(current["PipelineDefinition"]) == wanted and current["RoleArn"] == defaults.role
    if not dry_run:
        about = f"pipeline {name}"
        present = session.call("sagemaker", "list_tags", about=about, ResourceArn=arn)["Tags"]
        if any(tag not in present for tag in tags):
            session.call("sagemaker", "add_tags", about=about, ResourceArn=arn, Tags=tags)
        if not equal:
            service.call("update_pipeline", **_arguments(wanted, bucket, defaults))
    return PushOutcome(name, "unchanged" if equal else "updated", arn)


def _check_images(session: Session, plan: Plan) -> None:
    """Raises UsageError for an image of one's own that does not exist."""
    defaults, name = settings(plan.pipeline), plan.pipeline.name
    if defaults.serving_image == OWN:
        serving(session, name, defaults, plan.root, OWN, what="[sagemaker] serving_image")
    for job_settings in (defaults, *(settings(plan.pipeline, step.name) for step in active(plan))):
        for_jobs(session, name, job_settings, plan.root)


class PipelineService:
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

    def call(self, action: str, **arguments: Any) -> dict[str, Any]:
        about = f"pipeline {self.name}"
        return self.session.call("sagemaker", action, about=about, PipelineName=self.name, **arguments)


def _arguments(wanted: dict[str, Any], bucket: Bucket, defaults: Settings) -> dict[str, Any]:
    text = json.dumps(wanted)
    if len(text.encode()) < LARGEST_BYTES:
        return {"RoleArn": defaults.role, "PipelineDefinition": text}
    key = f"pipelines/{hashlib.sha256(text.encode()).hexdigest()}.json"
    bucket.put(key, text.encode())
    location = {"Bucket": bucket.name, "ObjectKey": bucket.prefix + key}
    return {"RoleArn": defaults.role, "PipelineDefinitionS3Location": location}
