"""A step as a CreateProcessingJob request: pure, so that equal steps give equal requests.

    <bucket>/<prefix>bundles/<sha256>/                 runner, lock and bootstrap        → input/bundle
    <bucket>/<prefix>steps/<sha256>/                   the notebook and its modules      → input/step
    <bucket>/<prefix>runs/<run>/<step>/attempts/<n>/
        job/job.json, job/place.json                   what to do, and where that is     → input/job
        checkpoints/…, starts/<hex>/…                  of a training job (`training.py`)
        request.json                                   what the job was made with, for who goes on with the run
        out/…, executed.ipynb, result.json             what came of it
    <bucket>/<prefix>inputs/<sha256>/…                 files that came from a client

All that comes of a job it puts there itself: whether the service uploads anything for a container that failed is not
documented, and an image's user may not write the folders that it uploads. The output that a request has is where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runner.aws.settings import LONGEST_S, Settings
from runner.errors import UsageError
from runner.paths import AnyPath, FileName, OptionalPath
from runner.records import FORMAT, Record, StepJob

INPUT, OUTPUT = "/opt/ml/processing/input", "/opt/ml/processing/output"
MODULE = "runner.aws.processing.inside"
# the service's limits (botocore: ProcessingInputs, ProcessingJobName, Tags)
MOST_INPUTS, LONGEST_NAME, MOST_TAGS = 10, 63, 50
OWN_INPUTS = 3  # bundle, step, job
AFTER_STEP_S = 900  # beyond the step's own limit: starting, the environment, putting results away
HASH_TAG = "runner:request"


class JobPlace(Record, frozen=True, kw_only=True):
    """place.json: where a job is, for itself. `key` is the attempt's prefix in the bucket, ending in `/`."""

    format: int = FORMAT
    job: str
    bucket: str
    key: str
    region: str
    image: str
    instance: str
    code: str  # the hash of the step's files, which lie in input/step
    notebook_folder: AnyPath  # relative to the project, the kernel's working folder
    files: dict[
        FileName, OptionalPath
    ]  # input -> the file's name in its folder; "" where the folder itself is the input
    secrets: str  # what the names of secrets in Secrets Manager begin with
    kms_key: str | None = None  # encrypts what the job writes
    attempt: str | None = None  # the key of result.json, where that is not `key`


@dataclass(frozen=True)
class JobAddresses:
    """Where a job finds what it needs, as s3:// prefixes; `inputs` by the name of the parameter."""

    bundle: str
    step: str
    attempt: str
    inputs: dict[str, str]


def job_name(project: str, run: str, step: str, attempt: int) -> str:
    """`<project>-<run>-<step>-<n>`, in the characters and the length that the service allows.

    Where that changes it, with a part of its hash, so that `a_b` and `a-b` have two names.
    """
    whole = f"{project}-{run}-{step}"
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in whole).strip("-")
    end = f"-{attempt}"
    if plain != whole or len(plain) + len(end) > LONGEST_NAME:
        digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
        plain = f"{plain[: LONGEST_NAME - len(end) - 9].rstrip('-')}-{digest}"
    return plain + end


def attempt_key(run: str, step: str, attempt: int) -> str:
    return f"runs/{run}/{step}/attempts/{attempt}/"


def request(
    name: str,
    job: StepJob,
    settings: Settings,
    at: JobAddresses,
    *,
    project: str,
    module: str = MODULE,
    timeouts_s: Iterable[float | None] | None = None,
) -> dict[str, Any]:
    """The arguments of create_processing_job. `timeouts_s` are those of all steps that may share it.

    Raises UsageError where the step is beyond the service's limits.
    """
    refuse_inputs(job.step, len(at.inputs), MOST_INPUTS - OWN_INPUTS, "processing")
    made: dict[str, Any] = {
        "ProcessingJobName": name,
        "RoleArn": settings.role,
        "AppSpecification": {
            "ImageUri": settings.image,
            "ContainerEntrypoint": ["python3", "-u", f"{INPUT}/bundle/_run.py"],
            "ContainerArguments": [module],
        },
        "ProcessingInputs": [
            copied("bundle", at.bundle),
            copied("step", at.step),
            copied("job", f"{at.attempt}job/"),
            *(copied(input_name(number), address) for number, (_, address) in enumerate(sorted(at.inputs.items()))),
        ],
        "ProcessingOutputConfig": {"Outputs": [_output(at.attempt)]},
        "ProcessingResources": {"ClusterConfig": cluster(settings)},
        "StoppingCondition": {
            "MaxRuntimeInSeconds": limit_s([job.timeout_s] if timeouts_s is None else timeouts_s, settings)
        },
        "Environment": {"RUNNER_JOB": name},
        "Tags": tags(settings, project=project, run=job.run, step=job.step),
    }
    if settings.kms_key:
        made["ProcessingOutputConfig"]["KmsKeyId"] = settings.kms_key
    if settings.vpc is not None or settings.encrypt_traffic:
        made["NetworkConfig"] = network(settings)
    return sealed(made)


def sealed(made: dict[str, Any]) -> dict[str, Any]:
    """The request with what tells it from another one of its name."""
    return {**made, "Tags": [*made["Tags"], {"Key": HASH_TAG, "Value": digest(made)}]}


def input_name(number: int) -> str:
    """Of the step's inputs, in the order of their names."""
    return f"in-{number}"


def refuse_inputs(step: str, inputs: int, most: int, kind: str) -> None:
    """Raises UsageError where there are more than such a job takes."""
    if inputs > most:
        raise UsageError(
            f"Step {step} has {inputs} inputs to copy; a {kind} job takes {most}. "
            'Write files that belong together into one output folder, or pass addresses with `as = "uri"`.'
        )


def limit_s(timeouts_s: Iterable[float | None], settings: Settings) -> int:
    """How long a job may run: the own times of its steps, None where they name none, and what comes before and after."""
    return min(sum(int(settings.timeout_s if own is None else own) for own in timeouts_s) + AFTER_STEP_S, LONGEST_S)


def digest(made: dict[str, Any]) -> str:
    """What tells two requests of one name apart; over everything but its own tag."""
    others = [tag for tag in made["Tags"] if tag["Key"] != HASH_TAG]
    return hashlib.sha256(json.dumps({**made, "Tags": others}, sort_keys=True).encode()).hexdigest()


def network(settings: Settings) -> dict[str, Any]:
    """NetworkConfig of a processing job; a training job has its members beside all others."""
    made: dict[str, Any] = {"EnableInterContainerTrafficEncryption": settings.encrypt_traffic}
    if settings.vpc is not None:
        made["VpcConfig"] = {"Subnets": settings.vpc.subnets, "SecurityGroupIds": settings.vpc.security_groups}
    return made


def cluster(settings: Settings) -> dict[str, Any]:
    made: dict[str, Any] = {
        "InstanceCount": 1,
        "InstanceType": settings.instance,
        "VolumeSizeInGB": settings.volume_gb,
    }
    return {**made, "VolumeKmsKeyId": settings.kms_key} if settings.kms_key else made


def copied(name: str, address: Any, folder: str = "") -> dict[str, Any]:
    """A job's input: what lies at the address is copied to `folder`, else `name`, below input/. A Pipeline's address may be
    an expression."""
    source = {
        "S3Uri": address,
        "LocalPath": f"{INPUT}/{folder or name}",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
    }
    return {"InputName": name, "S3Input": source}


def _output(attempt: str) -> dict[str, Any]:
    target = {"S3Uri": f"{attempt}out/", "LocalPath": f"{OUTPUT}/out", "S3UploadMode": "EndOfJob"}
    return {"OutputName": "out", "S3Output": target}


def tags(settings: Settings, **facts: str) -> list[dict[str, str]]:
    made = {**settings.tags, **{f"runner:{key}": value for key, value in facts.items()}}
    if len(made) >= MOST_TAGS:
        raise UsageError(f"[sagemaker] tags has {len(settings.tags)}; {MOST_TAGS - len(facts) - 1} is the most.")
    return [{"Key": key, "Value": value} for key, value in sorted(made.items())]
