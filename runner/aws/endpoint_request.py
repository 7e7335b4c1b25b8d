"""A version as a Model and an EndpointConfig: pure, so that equal wishes give equal names, and a name never changes its
meaning.

<project>-<name>-<version>-<hash>   of a model and of a configuration: the hash is over all that it is made of
<project>-<target>                  the endpoint, which goes from one configuration to the next
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from runner.aws.package import ENVIRONMENT
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import LONGEST_NAME
from runner.aws.settings import Settings
from runner.errors import PipelineError, Refused, counted
from runner.model.versions import ModelVersion
from runner.records import Target

VARIANT = "all"
INSTANCE, INSTANCES = "ml.m5.large", 1
SERVERLESS_GB_HOUR = 0.072  # US dollars for one request at a time and 1 GB: list price of us-east-1
SCALE_OUT_S, SCALE_IN_S = 60, 300
DIMENSION = "sagemaker:variant:DesiredInstanceCount"


@dataclass(frozen=True)
class Source:
    """Where the model's archive is, and the package it belongs to, "" without one."""

    archive: str
    archive_sha256: str
    package: str
    image: str


@dataclass(frozen=True)
class Wish:
    """The arguments of CreateModel and CreateEndpointConfig."""

    model: dict[str, Any]
    config: dict[str, Any]

    @property
    def model_name(self) -> str:
        return str(self.model["ModelName"])

    @property
    def config_name(self) -> str:
        return str(self.config["EndpointConfigName"])


def wish(
    project: str, target: str, spec: Target, version: ModelVersion, source: Source, chosen: Settings, *, capture_to: str
) -> Wish:
    """Raises PipelineError where a serverless endpoint cannot have what is asked for."""
    label = version.label
    tags = [
        {"Key": key, "Value": value}
        for key, value in sorted(
            {
                **(spec.tags if spec.tags is not None else chosen.tags),
                "runner:project": project,
                "runner:model": label,
            }.items()
        )
    ]
    vpc = spec.vpc or chosen.vpc
    if spec.serverless is not None and (vpc is not None or spec.capture is not None):
        what = "capture" if spec.capture is not None else "vpc"
        raise PipelineError(f"targets.{target}: a serverless endpoint has no {what}. Name an instance instead.")
    # by the hash an instance that comes up later, when more are needed, knows an archive that was swapped meanwhile
    told = {"RUNNER_MODEL": label, "RUNNER_SHA256": version.sha256, "RUNNER_UNKNOWN": spec.unknown}
    # all of it: a package's own environment need not reach a model that has one beside it
    container: dict[str, Any] = {"Environment": {**ENVIRONMENT, **told}}
    if source.package:
        container["ModelPackageName"] = source.package
    else:
        container |= {"Image": source.image, "ModelDataUrl": source.archive}
    model: dict[str, Any] = {"PrimaryContainer": container, "ExecutionRoleArn": spec.role or chosen.role}
    if vpc is not None:
        model["VpcConfig"] = {"Subnets": vpc.subnets, "SecurityGroupIds": vpc.security_groups}
    model["ModelName"] = _name(project, version, model, source.archive_sha256)
    config = _config(spec, model["ModelName"], kms_key=spec.kms_key or chosen.kms_key, capture_to=capture_to)
    config["EndpointConfigName"] = _name(project, version, config, target)
    return Wish({**model, "Tags": tags}, {**config, "Tags": tags})


def endpoint_name(project: str, target: str, spec: Target) -> str:
    if spec.endpoint is not None:
        return spec.endpoint
    return _short(f"{project}-{target.replace('_', '-')}", "")


def scaling(endpoint: str, spec: Target) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The arguments of RegisterScalableTarget and PutScalingPolicy, None where the number of instances stays."""
    if spec.scaling is None:
        return None
    what = {"ServiceNamespace": "sagemaker", "ResourceId": resource(endpoint), "ScalableDimension": DIMENSION}
    policy = {
        "PolicyName": f"{endpoint}-requests",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": spec.scaling.requests_per_minute,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            "ScaleInCooldown": SCALE_IN_S,
            "ScaleOutCooldown": SCALE_OUT_S,
        },
    }
    return {**what, "MinCapacity": spec.scaling.min, "MaxCapacity": spec.scaling.max}, {**what, **policy}


def resource(endpoint: str) -> str:
    return f"endpoint/{endpoint}/variant/{VARIANT}"


def machines(spec: Target) -> str:
    """What it runs on, in words."""
    if spec.serverless is not None:
        return f"serverless, {spec.serverless.memory_mb} MB, at most {counted(spec.serverless.concurrency, 'request')} at a time"
    count, instance = spec.instance_count or INSTANCES, spec.instance or INSTANCE
    if spec.scaling is not None:
        return f"{spec.scaling.min} to {spec.scaling.max} × {instance}"
    return f"{count} × {instance}"


def ceiling(spec: Target, prices: Prices) -> str:
    """The most it costs in an hour, in words."""
    if spec.serverless is not None:
        most = spec.serverless.concurrency * spec.serverless.memory_mb / 1024 * SERVERLESS_GB_HOUR
        return f"at most {most:.2f} USD an hour while requests come without a pause, nothing while none do"
    count = spec.scaling.max if spec.scaling is not None else spec.instance_count or INSTANCES
    price = prices.of(spec.instance or INSTANCE, 3600)
    if price is None:
        return f"the price of {spec.instance} is not known ({prices.source})"
    return f"at most {price * count:.2f} USD an hour ({prices.source}), twice that while versions change"


def same(about: str, wanted: Any, found: Any) -> None:
    """Raises Refused where what is there was not made of this; the service adds fields of its own."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            if key not in ("Tags", "Environment"):
                same(about, value, found.get(key))
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for one, other in zip(wanted, found, strict=True):
            same(about, one, other)
    elif wanted != found:
        raise Refused(f"{about} is there and was made otherwise ({found!r} instead of {wanted!r}). Remove it.")


def _config(spec: Target, model: str, *, kms_key: str | None, capture_to: str) -> dict[str, Any]:
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model, "InitialVariantWeight": 1.0}
    if spec.serverless is not None:
        memory, most = spec.serverless.memory_mb, spec.serverless.concurrency
        variant["ServerlessConfig"] = {"MemorySizeInMB": memory, "MaxConcurrency": most}
        return {"ProductionVariants": [variant]}
    first = spec.scaling.min if spec.scaling is not None else INSTANCES
    variant |= {
        "InstanceType": spec.instance or INSTANCE,
        "InitialInstanceCount": max(spec.instance_count or 0, first),
    }
    made: dict[str, Any] = {"ProductionVariants": [variant]}
    if kms_key:
        made["KmsKeyId"] = kms_key
    if spec.capture is not None and spec.capture.percent:
        made["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": spec.capture.percent,
            "DestinationS3Uri": spec.capture.to or capture_to,
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {
                "CsvContentTypes": ["text/csv"],
                "JsonContentTypes": ["application/json", "application/jsonlines"],
            },
            **({"KmsKeyId": kms_key} if kms_key else {}),
        }
    return made


def _name(project: str, version: ModelVersion, made: dict[str, Any], more: str) -> str:
    digest = hashlib.sha256(json.dumps([made, more], sort_keys=True).encode()).hexdigest()[:8]
    return _short(f"{project}-{version.name}-{version.version}", f"-{digest}")


def _short(name: str, end: str) -> str:
    """In the length that the service allows; what is cut is told apart by a hash."""
    if len(name) + len(end) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - len(end) - 9].rstrip('-')}-{digest}"
    return name + end
