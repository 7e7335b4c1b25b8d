"""A version as a Model and an EndpointConfig. Pure: equal requests have equal names, and a name keeps its meaning.

<project>-<name>-<version>-<hash>   of a model and of a configuration: the hash is over all that it is made of
<project>-<target>                  the endpoint, which goes from one configuration to the next
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from runner.aws.package import ENVIRONMENT, ModelSource
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import LONGEST_NAME
from runner.aws.settings import Settings
from runner.errors import PipelineError, Refused, counted
from runner.model.versions import ModelVersion
from runner.records import SageMakerTargetSpec

VARIANT = "all"
INSTANCE, INSTANCES = "ml.m5.large", 1
SERVERLESS_GB_HOUR = 0.072  # US dollars for one request at a time and 1 GB: list price of us-east-1


@dataclass(frozen=True)
class EndpointRequest:
    """The arguments of CreateModel and CreateEndpointConfig."""

    model: dict[str, Any]
    config: dict[str, Any]

    @property
    def model_name(self) -> str:
        return str(self.model["ModelName"])

    @property
    def config_name(self) -> str:
        return str(self.config["EndpointConfigName"])


def endpoint_request(
    project: str,
    target: str,
    spec: SageMakerTargetSpec,
    version: ModelVersion,
    source: ModelSource,
    aws: Settings,
    *,
    capture_to: str,
) -> EndpointRequest:
    """Raises PipelineError where a serverless endpoint cannot have what is asked for."""
    own_tags = spec.tags if spec.tags is not None else aws.tags
    tags = tag_list({**own_tags, "runner:project": project, "runner:model": version.label})
    vpc = spec.vpc or aws.vpc
    if spec.serverless is not None and vpc is not None:
        raise PipelineError(f"targets.{target}: a serverless endpoint has no vpc. Name an instance instead.")
    # by the hash an instance that comes up later, when more are needed, knows an archive that was swapped meanwhile
    variables = {"RUNNER_MODEL": version.label, "RUNNER_SHA256": version.sha256, "RUNNER_UNKNOWN": spec.unknown}
    # all of it: a package's own environment need not reach a model that has one beside it
    container: dict[str, Any] = {"Environment": {**ENVIRONMENT, **variables}}
    if source.package:
        container["ModelPackageName"] = source.package
    else:
        container |= {"Image": source.image, "ModelDataUrl": source.archive}
    model: dict[str, Any] = {"PrimaryContainer": container, "ExecutionRoleArn": spec.role or aws.role}
    if vpc is not None:
        model["VpcConfig"] = {"Subnets": vpc.subnets, "SecurityGroupIds": vpc.security_groups}
    model["ModelName"] = _name(project, version, model, source.archive_sha256)
    config = _config(spec, model["ModelName"], kms_key=spec.kms_key or aws.kms_key, capture_to=capture_to)
    config["EndpointConfigName"] = _name(project, version, config, target)
    return EndpointRequest({**model, "Tags": tags}, {**config, "Tags": tags})


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """The tags as AWS takes them, in order of their keys."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def endpoint_name(project: str, target: str, spec: SageMakerTargetSpec) -> str:
    return spec.endpoint if spec.endpoint is not None else _short(f"{project}-{target.replace('_', '-')}", "")


def machines(spec: SageMakerTargetSpec) -> str:
    """The machines it runs on, in words."""
    if spec.serverless is not None:
        requests = counted(spec.serverless.concurrency, "request")
        return f"serverless, {spec.serverless.memory_mb} MB, at most {requests} at a time"
    count, instance = spec.instance_count or INSTANCES, spec.instance or INSTANCE
    if spec.scaling is not None:
        return f"{spec.scaling.min} to {spec.scaling.max} × {instance}"
    return f"{count} × {instance}"


def ceiling(spec: SageMakerTargetSpec, prices: Prices) -> str:
    """The most it costs in an hour, in words."""
    if spec.serverless is not None:
        most = spec.serverless.concurrency * spec.serverless.memory_mb / 1024 * SERVERLESS_GB_HOUR
        return f"at most {most:.2f} USD an hour while requests come without a pause, nothing while none do"
    count = spec.scaling.max if spec.scaling is not None else spec.instance_count or INSTANCES
    price = prices.of(spec.instance or INSTANCE, 3600)
    if price is None:
        return f"the price of {spec.instance} is not known ({prices.source})"
    return f"at most {price * count:.2f} USD an hour ({prices.source}), twice that while versions change"


def check_equal(about: str, requested: Any, existing: Any) -> None:
    """Raises Refused where what exists was not made of this request; the service adds fields of its own."""
    if isinstance(requested, dict) and isinstance(existing, dict):
        for key, value in requested.items():
            if key not in ("Tags", "Environment"):
                check_equal(about, value, existing.get(key))
    elif isinstance(requested, list) and isinstance(existing, list) and len(requested) == len(existing):
        for item, existing_item in zip(requested, existing, strict=True):
            check_equal(about, item, existing_item)
    elif requested != existing:
        raise Refused(f"{about} is there and was made otherwise ({existing!r} instead of {requested!r}). Remove it.")


def _config(spec: SageMakerTargetSpec, model: str, *, kms_key: str | None, capture_to: str) -> dict[str, Any]:
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model, "InitialVariantWeight": 1.0}
    if spec.serverless is not None:
        memory, most = spec.serverless.memory_mb, spec.serverless.concurrency
        variant["ServerlessConfig"] = {"MemorySizeInMB": memory, "MaxConcurrency": most}
        return {"ProductionVariants": [variant]}
    least = spec.scaling.min if spec.scaling is not None else INSTANCES
    count = max(spec.instance_count or 0, least)
    variant |= {"InstanceType": spec.instance or INSTANCE, "InitialInstanceCount": count}
    encryption = {"KmsKeyId": kms_key} if kms_key else {}
    config: dict[str, Any] = {"ProductionVariants": [variant], **encryption}
    if spec.capture is not None and spec.capture.percent:
        config["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": spec.capture.percent,
            "DestinationS3Uri": spec.capture.to or capture_to,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {
                "CsvContentTypes": ["text/csv"],
                "JsonContentTypes": ["application/json", "application/jsonlines"],
            },
            **encryption,
        }
    return config


def _name(project: str, version: ModelVersion, request: dict[str, Any], more: str) -> str:
    digest = hashlib.sha256(json.dumps([request, more], sort_keys=True).encode()).hexdigest()[:8]
    return _short(f"{project}-{version.name}-{version.version}", f"-{digest}")


def _short(name: str, end: str) -> str:
    """In the length that the service allows; a hash stands for what is cut."""
    if len(name) + len(end) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - len(end) - 9].rstrip('-')}-{digest}"
    return name + end
