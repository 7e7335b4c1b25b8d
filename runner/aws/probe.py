"""A real job of ten minutes at most, as `runner doctor --probe` starts it: does the image do what steps need?

It goes the way of every step: the bundle is put into the bucket, the bootstrap compares the image with the lock and
makes the environment, and this module, inside it, writes what it found back into the bucket as the jobs' role.
"""

from __future__ import annotations

import os
import platform
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.processing.jobs import Jobs
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import INPUT, OUTPUT, copied, job_name, network
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import Settings
from runner.records import Record
from runner.run.doctor import Check, failed, ok

INSTANCE = "ml.t3.medium"
LIMIT_S = 600  # it installs the lock, some 90 wheels on a slow disk; what is billed is what it takes
MODULE = "runner.aws.probe"
POLL_S = 3.0
LAST_LINES = 3


class Found(Record, frozen=True, kw_only=True):
    """What the job says of itself."""

    python: str
    environment: str  # image: the image's own packages; lock: those installed from the lock
    packages: dict[str, str]
    work: str  # the folder that it wrote into
    user: int


def ceiling(chosen: Settings, root: Path) -> str:
    """What the probe costs at most, in words; "" where the price is not known."""
    price = Prices.read(root / chosen.prices if chosen.prices else None).of(INSTANCE, LIMIT_S)
    return f"; it costs {price:.4f} USD at most" if price is not None else ""


def probe(session: Session, project: str, chosen: Settings, *, root: Path) -> Check:
    """Start the job, wait for its end, and say what it found. Raises AwsError where it cannot be started."""
    from runner.aws.processing.executor import put_runner

    bucket = Bucket(session, chosen.bucket, chosen.prefix)
    mark = secrets.token_hex(4)
    key = f"doctor/{mark}/found.json"
    name = job_name(project, "doctor", mark, 1)
    bundle = bucket.address(put_runner(chosen, bucket, root=root))
    jobs = Jobs(session, poll_s=min(POLL_S, chosen.poll_s))
    jobs.ensure(_request(name, chosen, bundle, bucket.address(key), session.region))
    lines: list[str] = []
    ended = jobs.follow(name, detach=threading.Event(), log=jobs.log(name, lines.append))
    assert ended is not None
    content = bucket.get(key)
    for left in (key, f"doctor/{mark}/message"):
        bucket.delete(left)
    if ended.status != "Completed" or content is None:
        told = ended.message or ended.reason or " ".join(lines[-LAST_LINES:]) or "it left no result"
        fix = "do what it says; its log is in CloudWatch, /aws/sagemaker/ProcessingJobs"
        return failed("versions", f"the job {name} ended {ended.status}: {told}", fix, code=7)
    found = msgspec.json.decode(content, type=Found)
    kind = "the image's own packages" if found.environment == "image" else "an environment made from the lock"
    said = f"the job {name} ran Python {found.python} with {kind} ({len(found.packages)} of them)"
    where = f"as user {found.user} in {found.work}"
    return ok("versions", f"{said} {where}, read the bundle and wrote its answer; {ended.billed_s:.0f} s billed")


def _request(name: str, chosen: Settings, bundle: str, answer: str, region: str) -> dict[str, Any]:
    target = {"S3Uri": answer.rpartition("/")[0], "LocalPath": OUTPUT, "S3UploadMode": "EndOfJob"}
    cluster: dict[str, Any] = {"InstanceCount": 1, "InstanceType": INSTANCE, "VolumeSizeInGB": chosen.volume_gb}
    made: dict[str, Any] = {
        "ProcessingJobName": name,
        "RoleArn": chosen.role,
        "AppSpecification": {
            "ImageUri": chosen.image,
            "ContainerEntrypoint": ["python3", "-u", f"{INPUT}/bundle/_run.py"],
            "ContainerArguments": [MODULE, answer, region, *([chosen.kms_key] if chosen.kms_key else [])],
        },
        "ProcessingInputs": [copied("bundle", bundle)],
        "ProcessingOutputConfig": {"Outputs": [{"OutputName": "out", "S3Output": target}]},
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": {"MaxRuntimeInSeconds": LIMIT_S},
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(chosen.tags.items())],
    }
    if chosen.kms_key:
        cluster["VolumeKmsKeyId"] = chosen.kms_key
    if chosen.vpc is not None or chosen.encrypt_traffic:
        made["NetworkConfig"] = network(chosen)
    return made


def main(answer: str, region: str, kms_key: str | None = None) -> int:
    """Inside the job: put the versions at the address."""
    from runner.run.packages import versions

    kind = "image" if os.environ.get("RUNNER_ENVIRONMENT") == "image" else "lock"
    found = Found(
        python=platform.python_version(),
        environment=kind,
        packages=versions(),
        work=os.environ.get("RUNNER_WORK", ""),
        user=os.getuid(),
    )
    name, key = split(answer)
    Bucket(Session(region, kms_key=kms_key), name).put(key, msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
