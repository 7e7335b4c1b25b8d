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
from runner.aws.session import ABSENT, AwsError, Session
from runner.aws.settings import OWN, Settings, settings
from runner.pipeline.plan import Plan
from runner.run.store import Store

LARGEST_BYTES = 100_000  # of a definition in the request itself; a larger one goes by way of the bucket


@dataclass(frozen=True)
class PushOutcome:
    """What a push came to, or would come to: "created", "updated" or "unchanged", and the Pipeline's ARN."""

    name: str
    what: str
    arn: str = ""  # "" where there is none yet


def show(plan: Plan, store: Store, *, profile: str | None) -> dict[str, Any]:
    """The definition that a push would make; nothing is uploaded and nobody asked."""
    chosen = settings(plan.pipeline)
    session = Session(chosen.region, anonymous=True)
    bucket = DryRunBucket(session, chosen.bucket, chosen.prefix)
    return definition(put_files(plan, bucket, store=store, profile=profile), region=session.region)


def push(plan: Plan, store: Store, *, profile: str | None, dry_run: bool = False) -> PushOutcome:
    """Put there what the jobs need, and make the Pipeline, or the one that is there equal; what is equal is left alone."""
    chosen, name = settings(plan.pipeline), plan.pipeline.name
    session = Session(chosen.region, kms_key=chosen.kms_key)
    _check_images(session, plan)
    bucket = (DryRunBucket if dry_run else Bucket)(session, chosen.bucket, chosen.prefix)
    made = definition(put_files(plan, bucket, store=store, profile=profile), region=session.region)
    pipelines = Pipelines(session, name)
    found = pipelines.describe()
    tags = [{"Key": key, "Value": value} for key, value in {**chosen.tags, "runner:project": name}.items()]
    if found is None:
        if dry_run:
            return PushOutcome(name, "created")
        reply = pipelines.call("create_pipeline", **_arguments(made, bucket, chosen), Tags=tags)
        return PushOutcome(name, "created", str(reply["PipelineArn"]))
    arn = str(found["PipelineArn"])
    equal = json.loads(found["PipelineDefinition"]) == made and found["RoleArn"] == chosen.role
    if not dry_run:
        there = {tag["Key"]: tag["Value"] for tag in pipelines.tags(arn)}
        if any(there.get(tag["Key"]) != tag["Value"] for tag in tags):
            session.call("sagemaker", "add_tags", about=f"pipeline {name}", ResourceArn=arn, Tags=tags)
        if not equal:
            pipelines.call("update_pipeline", **_arguments(made, bucket, chosen))
    return PushOutcome(name, "unchanged" if equal else "updated", arn)


def _check_images(session: Session, plan: Plan) -> None:
    """Raises UsageError for an image of one's own that is not there."""
    common, name = settings(plan.pipeline), plan.pipeline.name
    if common.serving_image == OWN:
        serving(session, name, common, plan.root, OWN, what="[sagemaker] serving_image")
    for chosen in (common, *(settings(plan.pipeline, step.name) for step in active(plan))):
        for_jobs(session, name, chosen, plan.root)


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
