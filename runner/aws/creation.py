"""A version as SageMaker's registry has it: the arguments of CreateModelPackage, within the service's limits."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.card import card, printable
from runner.aws.evaluation import evaluation, explanation
from runner.aws.history import facts_sha256
from runner.aws.package import ENVIRONMENT, Package
from runner.model.versions import NewVersion

# lengths and characters: botocore's model of CreateModelPackage
LONGEST_LINE, LONGEST_VALUE = 1024, 256
NOT_IN_A_VALUE = re.compile(r"[^\w .:/=+@-]")
OURS = re.compile(r"\(run \S+\)\Z")  # the end of the description of every package of ours; a listing shows it
QUALITY, EXPLAINED = "evaluation.json", "explainability.json"
CONTENT_TYPES = ["text/csv", "application/json", "application/jsonlines"]


def creation(
    new: NewVersion, archive: Package, *, bucket: Bucket, image: str, registry: str, source: str
) -> dict[str, Any]:
    """A pending version in the group of its name; the same registry, name and run give the same token.

    With it, a call that is made twice gives the same version. `registry` says whose version it is, `source` is the
    address of the run's folder. Tags are the group's: the service takes none of a version's own.
    """
    address = bucket.address(archive_key(archive))
    container = {"Image": image, "ModelDataUrl": address, "Environment": ENVIRONMENT}
    sources = {
        name: {
            "ContentType": "application/json",
            "ContentDigest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "S3Uri": bucket.address(report_key(new, name)),
        }
        for name, content in reports(new, archive).items()
    }
    metrics = {"ModelQuality": {"Statistics": sources[QUALITY]}}
    if EXPLAINED in sources:
        metrics["Explainability"] = {"Report": sources[EXPLAINED]}
    # not SourceUri, which is for the ARN of a model to clone
    origin = {"CommitId": new.commit or "", "GeneratedBy": source}
    metadata = {
        "runner-run": new.run,
        "runner-registry": registry,
        "runner-facts": facts_sha256(new),
        "runner-model": new.sha256,
        "runner-archive": archive.sha256,
        "runner-created-by": new.created_by,
        "runner-commit": new.commit or "",
        "runner-notebooks": source,
    }
    end = f"(run {new.run})"
    request: dict[str, Any] = {
        "ModelPackageGroupName": new.name,
        "ModelPackageDescription": f"{line(new.description)[: LONGEST_LINE - len(end) - 1]} {end}".strip(),
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": CONTENT_TYPES,
            "SupportedResponseMIMETypes": CONTENT_TYPES,
        },
        "ModelMetrics": metrics,
        "ModelCard": {"ModelCardContent": card(new, archive=address), "ModelCardStatus": "PendingReview"},
        "CustomerMetadataProperties": {key: value(text) for key, text in metadata.items() if text},
        "ClientToken": hashlib.sha256(f"{registry}\n{new.name}\n{new.run}".encode()).hexdigest()[:36],
    }
    if properties := {key: line(text) for key, text in origin.items() if text}:
        request["MetadataProperties"] = properties
    return request


def archive_key(archive: Package) -> str:
    return f"models/{archive.sha256}/model.tar.gz"


def reports(new: NewVersion, archive: Package) -> dict[str, bytes]:
    """The files that the service calls a model's metrics, by name."""
    files = {QUALITY: evaluation(new.metrics, objective=archive.objective)}
    if archive.contributions:
        files[EXPLAINED] = explanation(archive.contributions)
    return files


def report_key(new: NewVersion, name: str) -> str:
    return f"models/{new.sha256}/evaluations/{new.run}/{name}"


def line(text: str) -> str:
    """The text as one line of at most 1,024 characters, all `printable`."""
    return " ".join(printable(text).split())[:LONGEST_LINE]


def value(text: str) -> str:
    """The text as a value of a package's metadata: at most 256 characters, those that it may have."""
    return NOT_IN_A_VALUE.sub("_", text)[:LONGEST_VALUE]
