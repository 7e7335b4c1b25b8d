"""A container sees what a container sees."""

from __future__ import annotations

import contextlib
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from . import JOB_KEY, Image, NotPermittedError, SmallSageMaker
from .images import User
from .trying import BUCKET, EVERYTHING, give, put, read_log, run_job


def test_a_container_sees_its_own_files_and_nothing_of_this_machine(sagemaker: Any, logs: Any, tmp_path: Path) -> None:
    seen = f"ls -A /tmp {tmp_path.parent} {Path(__file__).parent}; ls /opt; touch /usr/x; touch /tmp/x && ls /tmp"
    run_job(sagemaker, "sees", seen)
    said = read_log(logs, "sees")
    assert [line for line in said if "No such file" in line and "tests" in line]
    assert "ml" in said
    assert any("Read-only file system" in line for line in said)
    assert said[-1] == "x"
    assert not Path("/opt/ml").exists()


def test_a_container_has_a_host_file_and_a_job_file(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "configured", "cat /opt/ml/config/resourceconfig.json; echo; cat /opt/ml/config/proc*.json")
    host, job = [json.loads(line) for line in read_log(logs, "configured")]
    assert host["current_host"] == "algo-1"
    assert job["ProcessingJobName"] == "configured"


def test_a_container_has_the_environment_it_was_given_and_no_more(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "environment", "env | sort", Environment={"MINE": "1"})
    names = {line.partition("=")[0] for line in read_log(logs, "environment")} - {"_", "SHLVL", "PWD"}
    assert names == {
        "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL", "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY", "HOME", "LANG", "MINE", "PATH", "PROCESSING_JOB_ARN",
    }  # fmt: skip


def test_a_container_reaches_the_services_and_nothing_else(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        script = (
            'python -c \'import boto3; print(len(boto3.client("s3").list_buckets()["Buckets"]))\'; '
            f"(echo > /dev/tcp/127.0.0.1/{other.server_port}) 2>&1 | grep -q refused && echo refused; "
            "(echo > /dev/tcp/1.1.1.1/80) 2>&1 | grep -q unreachable && echo unreachable"
        )
        run_job(sagemaker, "network", script)
    assert read_log(logs, "network") == ["1", "refused", "unreachable"]
    assert [call.action for call in cloud.calls if call.access_key == JOB_KEY] == ["ListBuckets"]


def test_processes_a_container_leaves_behind_end_with_it(sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "leaves", "setsid sleep 98765 & sleep 0.1; echo done")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    assert not [line for line in found if b"sleep\x0098765" in line]


def test_the_images_programs_come_first(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    run_job(sagemaker, "programs", "python -c 'import sys; print(sys.prefix)'; python -c 'import runner'")
    said = read_log(logs, "programs")
    assert said[0] == sys.prefix
    assert "No module named 'runner'" in said[-1]


def test_a_container_runs_as_the_user_of_its_image_and_opt_ml_is_roots() -> None:
    script = (
        "id -u; echo $HOME; for d in /opt/ml/processing/input/in /opt/ml/output /opt/ml/processing $HOME /usr /tmp; do "
        "touch $d/x 2>/dev/null && echo $d; done; sudo -n id -u 2>/dev/null || echo no sudo"
    )
    told: dict[str, list[str]] = {
        "root": ["0", "/root", "/opt/ml/processing/input/in", "/opt/ml/output", "/opt/ml/processing", "/root", "/tmp"],
        "1000": ["1000", "/", "/tmp", "no sudo"],
        "sagemaker-user": ["1000", "/home/sagemaker-user", "/home/sagemaker-user", "/tmp", "0"],
    }
    users: tuple[User, ...] = ("root", "1000", "sagemaker-user")
    try:
        made = SmallSageMaker({user: Image(sys.prefix, user=user) for user in users}, grace_s=0.3, poll_s=0.05)
    except NotPermittedError as error:
        pytest.skip(f"{error}; .ci/run, as root, has all of it")
    with made as cloud:
        cloud.grant("jobs", EVERYTHING)
        s3, sagemaker = cloud.client("s3"), cloud.client("sagemaker")
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": cloud.region})
        given = give(put(s3, "in/a"))
        for user in users:
            run_job(
                sagemaker,
                user,
                AppSpecification={"ImageUri": user, "ContainerEntrypoint": ["bash", "-c", script]},
                ProcessingInputs=given,
            )
        said = {user: read_log(cloud.client("logs"), user) for user in users}
    assert {**said, "root": said["root"][:7]} == told
