"""A real job of ten minutes at most, as `runner doctor --probe` starts it: does the image do what steps need?

It starts as each step does: the bundle is put into the bucket, the bootstrap compares the image with the lock and makes
the environment, and this module, inside it, writes its result into the bucket with the rights of the jobs' role.
"""

from __future__ import annotations

import dataclasses
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
from runner.aws.processing.request import INPUT, OUTPUT, cluster, copied, job_name, network
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import Settings
from runner.records import Record
from runner.run.doctor import Check, failed, ok

INSTANCE = "ml.t3.medium"
LIMIT_S = 600  # it installs the lock, some 90 wheels on a slow disk; only the time that it takes is billed
MODULE = "runner.aws.probe"
POLL_S = 3.0
LAST_LINES = 3


class ProbeReport(Record, frozen=True, kw_only=True):
    """The job's environment, as it reports it."""

    python: str
    environment: str  # image: the image's own packages; lock: those installed from the lock
    packages: dict[str, str]
    work: str  # the folder that it wrote into
    user: int


def ceiling(aws: Settings, root: Path) -> str:
    """What the probe costs at most, in words; "" where the price is not known."""
    price = Prices.read(root / aws.prices if aws.prices else None).of(INSTANCE, LIMIT_S)
    return f"; it costs {price:.4f} USD at most" if price is not None else ""


def probe(session: Session, project: str, aws: Settings, *, root: Path) -> Check:
    """Start the job, wait for its end, and give its report. Raises AwsError where it cannot be started."""
    from runner.aws.processing.executor import put_runner

    bucket = Bucket(session, aws.bucket, aws.prefix)
    mark = secrets.token_hex(4)
    key = f"doctor/{mark}/found.json"
    name = job_name(project, "doctor", mark, 1)
    bundle = bucket.address(put_runner(aws, bucket, root=root))
    jobs = Jobs(session, poll_s=min(POLL_S, aws.poll_s))
    jobs.ensure(_request(name, aws, bundle, bucket.address(key), session.region))
    lines: list[str] = []
    ended = jobs.follow(name, detach=threading.Event(), log=jobs.log(name, lines.append))
    assert ended is not None
    content = bucket.get(key)
    for written in (key, f"doctor/{mark}/message"):
        bucket.delete(written)
    if ended.status != "Completed" or content is None:
        reason = ended.message or ended.reason or " ".join(lines[-LAST_LINES:]) or "it left no result"
        fix = "do what it says; its log is in CloudWatch, /aws/sagemaker/ProcessingJobs"
        return failed("versions", f"the job {name} ended {ended.status}: {reason}", fix, code=7)
    report = msgspec.json.decode(content, type=ProbeReport)
    kind = "the image's own packages" if report.environment == "image" else "an environment made from the lock"
    ran = f"the job {name} ran Python {report.python} with {kind} ({len(report.packages)} of them)"
    where = f"as user {report.user} in {report.work}"
    return ok("versions", f"{ran} {where}, read the bundle and wrote its answer; {ended.billed_s:.0f} s billed")


def _request(name: str, aws: Settings, bundle: str, answer: str, region: str) -> dict[str, Any]:
    target = {"S3Uri": answer.rpartition("/")[0], "LocalPath": OUTPUT, "S3UploadMode": "EndOfJob"}
    request: dict[str, Any] = {
        "ProcessingJobName": name,
        "RoleArn": aws.role,
        "AppSpecification": {
            "ImageUri": aws.image,
            "ContainerEntrypoint": ["python3", "-u", f"{INPUT}/bundle/_run.py"],
            "ContainerArguments": [MODULE, answer, region, *([aws.kms_key] if aws.kms_key else [])],
        },
        "ProcessingInputs": [copied("bundle", bundle)],
        "ProcessingOutputConfig": {"Outputs": [{"OutputName": "out", "S3Output": target}]},
        "ProcessingResources": {
            "ClusterConfig": cluster(dataclasses.replace(aws, instance=INSTANCE, instance_count=1))
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": LIMIT_S},
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(aws.tags.items())],
    }
    if aws.vpc is not None or aws.encrypt_traffic:
        request["NetworkConfig"] = network(aws)
    return request


def main(answer: str, region: str, kms_key: str | None = None) -> int:
    """Inside the job: put the versions at the address."""
    from runner.run.packages import versions

    report = ProbeReport(
        python=platform.python_version(),
        environment="image" if os.environ.get("RUNNER_ENVIRONMENT") == "image" else "lock",
        packages=versions(),
        work=os.environ.get("RUNNER_WORK", ""),
        user=os.getuid(),
    )
    name, key = split(answer)
    Bucket(Session(region, kms_key=kms_key), name).put(key, msgspec.json.encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
