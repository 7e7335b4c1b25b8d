"""A step as a CreateProcessingJob request; equal steps give equal requests.

    <bucket>/<prefix>bundles/<sha256>/                 runner, lock and bootstrap        → input/bundle
    <bucket>/<prefix>steps/<sha256>/                   the notebook and its modules      → input/step
    <bucket>/<prefix>runs/<run>/<step>/attempts/<n>/
        job/job.json, job/place.json                   what to do, and where that is     → input/job
        checkpoints/…, starts/<hex>/…                  of a training job (`training.py`)
        request.json                                   what created the job, for resuming the run elsewhere
        out/…, executed.ipynb, result.json             its results
        keys.tar.gz                                    of a mapped step, instead of executed.ipynb (`keys.py`)
    <bucket>/<prefix>inputs/<sha256>/…                 files from a client

The job itself uploads its results: it is not documented that the service uploads anything for a failed container, and
an image's user may not write the folders that the service uploads. The output in a request only names the address.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from runner.aws.settings import LONGEST_S, Settings
from runner.errors import UsageError
from runner.paths import AnyPath, FileName, OptionalPath
from runner.records import FORMAT, Record, StepJob, StepKey, StepSpec

INPUT, OUTPUT = "/opt/ml/processing/input", "/opt/ml/processing/output"
MODULE = "runner.aws.processing.inside"
# the service's limits (botocore: ProcessingInputs, ProcessingJobName, Tags)
MOST_INPUTS, LONGEST_NAME, MOST_TAGS = 10, 63, 50
OWN_INPUTS = 3  # bundle, step, job
AFTER_STEP_S = 900  # beyond the step's own limit: starting, the environment, putting results away
HASH_TAG = "runner:request"


class JobKeys(Record, frozen=True, kw_only=True):
    """Of a job that executes a mapped step: its keys, which stand in the step key, and how many have to succeed."""

    parameter: str
    step_key: StepKey
    share: float
    small_mb: float  # outputs up to this size come back with the keys' notebooks


class JobPlace(Record, frozen=True, kw_only=True):
    """place.json: where a job is, for itself. `key` is the attempt's prefix in the bucket, ending in `/`."""

    format: int = FORMAT
    job: str
    bucket: str
    key: str
    region: str
    image: str
    instance: str
    machines: int = 1
    code: str  # the hash of the step's files, which lie in input/step
    notebook_folder: AnyPath  # relative to the project, the kernel's working folder
    files: dict[FileName, OptionalPath]  # input -> the file's name in its folder; "" for an input that is a folder
    secrets: str  # prefix of the names of secrets in Secrets Manager
    kms_key: str | None = None  # encrypts what the job writes
    attempt: str | None = None  # the key of result.json, where that is not `key`
    keys: JobKeys | None = None  # of a mapped step


@dataclass(frozen=True)
class JobAddresses:
    """The s3:// prefixes of a job; `inputs` by the name of the parameter."""

    bundle: str
    step: str
    attempt: str
    inputs: dict[str, str]

    @property
    def numbered(self) -> dict[str, str]:
        """The inputs' addresses by their names in the job, which are numbers in the order of the parameters' names."""
        return {input_name(number): self.inputs[name] for number, name in enumerate(sorted(self.inputs))}


def job_name(project: str, run: str, step: str, attempt: int) -> str:
    """`<project>-<run>-<step>-<n>`, in the characters and the length that the service allows; a changed one has a part
    of its hash, so that `a_b` and `a-b` have two names."""
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
    timeouts_s: Collection[float | None] = (),
) -> dict[str, Any]:
    """The arguments of create_processing_job. `timeouts_s` are those of all steps that may share it.

    Raises UsageError where the step exceeds the service's limits.
    """
    refuse_inputs(job.step, len(at.inputs), MOST_INPUTS - OWN_INPUTS, "processing")
    target = {"S3Uri": f"{at.attempt}out/", "LocalPath": f"{OUTPUT}/out", "S3UploadMode": "EndOfJob"}
    arguments: dict[str, Any] = {
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
            *(copied(name, address) for name, address in at.numbered.items()),
        ],
        "ProcessingOutputConfig": {"Outputs": [{"OutputName": "out", "S3Output": target}]},
        "ProcessingResources": {"ClusterConfig": cluster(settings)},
        "StoppingCondition": {"MaxRuntimeInSeconds": limit_s(timeouts_s or [job.timeout_s], settings)},
        "Environment": {"RUNNER_JOB": name},
        "Tags": tags(settings, project=project, run=job.run, step=job.step),
    }
    if settings.kms_key:
        arguments["ProcessingOutputConfig"]["KmsKeyId"] = settings.kms_key
    if settings.vpc is not None or settings.encrypt_traffic:
        arguments["NetworkConfig"] = network(settings)
    return with_hash(arguments)


def with_hash(arguments: dict[str, Any]) -> dict[str, Any]:
    """The request with the tag that tells it from another one of its name."""
    return {**arguments, "Tags": [*arguments["Tags"], {"Key": HASH_TAG, "Value": digest(arguments)}]}


def input_name(number: int) -> str:
    """The name in the job of one of the step's inputs, in the order of the parameters' names."""
    return f"in-{number}"


def refuse_inputs(step: str, inputs: int, most: int, kind: str) -> None:
    """Raises UsageError where the job would have more than `most` inputs."""
    if inputs > most:
        raise UsageError(
            f"Step {step} has {inputs} inputs to copy; a {kind} job takes {most}. "
            'Write files that belong together into one output folder, or pass addresses with `as = "uri"`.'
        )


def limit_s(timeouts_s: Iterable[float | None], settings: Settings) -> int:
    """Seconds that a job may run: the time limits of its steps (None for the settings' own), and for start and end."""
    return min(sum(int(settings.timeout_s if own is None else own) for own in timeouts_s) + AFTER_STEP_S, LONGEST_S)


def job_timeout_s(step: StepSpec) -> float | None:
    """The step's share of its job's time limit, None for the settings' own. A mapped step's limit is of each key."""
    return None if step.map else step.timeout_s


def digest(arguments: dict[str, Any]) -> str:
    """The hash of a request without its own tag."""
    others = [tag for tag in arguments["Tags"] if tag["Key"] != HASH_TAG]
    return hashlib.sha256(json.dumps({**arguments, "Tags": others}, sort_keys=True).encode()).hexdigest()


def network(settings: Settings) -> dict[str, Any]:
    """NetworkConfig of a processing job; a training job has its members among its arguments."""
    encryption: dict[str, Any] = {"EnableInterContainerTrafficEncryption": settings.encrypt_traffic}
    if settings.vpc is None:
        return encryption
    vpc = {"Subnets": settings.vpc.subnets, "SecurityGroupIds": settings.vpc.security_groups}
    return {**encryption, "VpcConfig": vpc}


def cluster(settings: Settings) -> dict[str, Any]:
    machine = {"InstanceCount": settings.instance_count, "InstanceType": settings.instance}
    machine["VolumeSizeInGB"] = settings.volume_gb
    return {**machine, "VolumeKmsKeyId": settings.kms_key} if settings.kms_key else machine


def copied(name: str, address: Any, folder: str = "") -> dict[str, Any]:
    """A job's input, copied from the address to `folder`, else `name`, below input/. A Pipeline's address may be an
    expression."""
    target = f"{INPUT}/{folder or name}"
    source = {"S3Uri": address, "LocalPath": target, "S3DataType": "S3Prefix", "S3InputMode": "File"}
    return {"InputName": name, "S3Input": source}


def tags(settings: Settings, **facts: str) -> list[dict[str, str]]:
    values = {**settings.tags, **{f"runner:{key}": value for key, value in facts.items()}}
    if len(values) >= MOST_TAGS:
        raise UsageError(f"[sagemaker] tags has {len(settings.tags)}; {MOST_TAGS - len(facts) - 1} is the most.")
    return [{"Key": key, "Value": value} for key, value in sorted(values.items())]
