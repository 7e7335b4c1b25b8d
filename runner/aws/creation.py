"""What SageMaker is told of a version: the arguments of CreateModelPackage, within the service's limits."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.card import card
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
    new: NewVersion, made: Package, *, bucket: Bucket, image: str, registry: str, source: str
) -> dict[str, Any]:
    """A pending version in the group of its name; the same registry, name and run give the same token.

    With it, a call that is made twice gives the same version. `registry` says whose version it is, `source` is the
    address of the run's folder. Tags are the group's: the service takes none of a version's own.
    """
    archive = bucket.address(archive_key(made))
    container = {
        "Image": image,
        "ModelDataUrl": archive,
        "Environment": ENVIRONMENT,
    }
    sources = {
        name: {
            "ContentType": "application/json",
            "ContentDigest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "S3Uri": bucket.address(report_key(new, name)),
        }
        for name, content in reports(new, made).items()
    }
    measured = {"ModelQuality": {"Statistics": sources[QUALITY]}}
    if EXPLAINED in sources:
        measured["Explainability"] = {"Report": sources[EXPLAINED]}
    # not SourceUri, which is for the ARN of a model to clone
    origin = {"CommitId": new.commit or "", "GeneratedBy": source}
    said = {
        "runner-run": new.run,
        "runner-registry": registry,
        "runner-facts": facts_sha256(new),
        "runner-model": new.sha256,
        "runner-archive": made.sha256,
        "runner-created-by": new.created_by,
        "runner-commit": new.commit or "",
        "runner-notebooks": source,
    }
    made_of: dict[str, Any] = {
        "ModelPackageGroupName": new.name,
        "ModelPackageDescription": description(new),
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": CONTENT_TYPES,
            "SupportedResponseMIMETypes": CONTENT_TYPES,
        },
        "ModelMetrics": measured,
        "ModelCard": {"ModelCardContent": card(new, archive=archive), "ModelCardStatus": "PendingReview"},
        "CustomerMetadataProperties": {key: value(text) for key, text in said.items() if text},
        "ClientToken": hashlib.sha256(f"{registry}\n{new.name}\n{new.run}".encode()).hexdigest()[:36],
    }
    if any(origin.values()):
        made_of["MetadataProperties"] = {key: line(text) for key, text in origin.items() if text}
    return made_of


def archive_key(made: Package) -> str:
    return f"models/{made.sha256}/model.tar.gz"


def reports(new: NewVersion, made: Package) -> dict[str, bytes]:
    """What the service calls a model's metrics, by the name of the file."""
    found = {QUALITY: evaluation(new.metrics, objective=made.objective)}
    if made.contributions:
        found[EXPLAINED] = explanation(made.contributions)
    return found


def report_key(new: NewVersion, name: str) -> str:
    return f"models/{new.sha256}/evaluations/{new.run}/{name}"


def description(new: NewVersion) -> str:
    end = f"(run {new.run})"
    return f"{line(new.description)[: LONGEST_LINE - len(end) - 1]} {end}".strip()


def line(text: str) -> str:
    """The text as one line of at most 1,024 characters, without what cannot be printed or takes two UTF-16 units."""
    plain = "".join(" " if unicodedata.category(one)[0] == "C" or one > "\uffff" else one for one in text)
    return " ".join(plain.split())[:LONGEST_LINE]


def value(text: str) -> str:
    """The text as a value of a package's metadata: at most 256 characters, those that it may have."""
    return NOT_IN_A_VALUE.sub("_", text)[:LONGEST_VALUE]
