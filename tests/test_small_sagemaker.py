"""The small SageMaker starts, is reached and ends. What it promises in between is tested in its own folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from small_sagemaker import Image, SmallSageMaker
from small_sagemaker.trying import (
    EVERYTHING,
    ONE_ATTEMPT,
    ROLE,
    ask,
    run_job,
    wait_for,
)

Start = Callable[..., SmallSageMaker]


@pytest.fixture
def start() -> Start:
    def started(*arguments: Any, **named: Any) -> SmallSageMaker:
        made = SmallSageMaker(*arguments, **named)
        made.grant("jobs", EVERYTHING)
        return made

    return started


def find_processes(piece: bytes) -> list[bytes]:
    """The command lines that hold this piece."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return [line for line in found if piece in line]


def test_each_server_starts_empty_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    image = tmp_path / "image" / "bin"
    image.mkdir(parents=True)
    (image / "hello").write_text("#!/bin/sh\nsleep 600\n")
    (image / "hello").chmod(0o755)
    with start({"known": Image(str(image.parent))}, roles=[ROLE]) as cloud:
        assert cloud.client("s3").list_buckets()["Buckets"] == []
        assert cloud.jobs() == []
        sagemaker = cloud.client("sagemaker")
        assert "Cannot pull image" in run_job(sagemaker, "unknown-image")["FailureReason"]
        request = ask("known-image", AppSpecification={"ImageUri": "known", "ContainerEntrypoint": ["hello"]})
        with pytest.raises(ClientError, match="Could not assume role"):
            sagemaker.create_processing_job(**{**request, "RoleArn": f"{ROLE}-2"})
        sagemaker.create_processing_job(**request)
        wait_for(lambda: cloud.jobs()[-1].get("ProcessingStartTime"))
    assert not [path for path in tmp_path.iterdir() if path.name != "image"]
    assert not find_processes(str(image / "hello").encode())


def test_other_processes_use_it_by_their_environment(start: Start) -> None:
    script = "import boto3; print(boto3.client('sts').get_caller_identity()['Account'])"
    with start() as cloud:
        environment = {"PATH": os.environ["PATH"], **cloud.environment}
        said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert said.stdout == "123456789012\n", said.stderr


@pytest.mark.soak
def test_a_server_whose_test_is_killed_ends_its_jobs(tmp_path: Path, start: Start) -> None:
    with start():  # where that is not permitted, this skips
        pass
    script = f"""
import sys, tempfile, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
tempfile.tempdir = {str(tmp_path)!r}
from small_sagemaker import SmallSageMaker
from small_sagemaker.trying import EVERYTHING, ask
cloud = SmallSageMaker()
cloud.grant("jobs", EVERYTHING)
cloud.client("sagemaker").create_processing_job(**ask("left", "sleep 76543"))
while "ProcessingStartTime" not in cloud.jobs()[0]:
    time.sleep(0.05)
print("runs", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        process.kill()
    wait_for(lambda: not list(tmp_path.iterdir()))
    assert not find_processes(b"sleep\x0076543")


def test_what_goes_wrong_in_the_double_itself_is_told(start: Start) -> None:
    broken = start()

    def break_it() -> None:
        with broken as cloud:
            cloud.faults.add("ListBuckets", delay_s="no number")  # type: ignore[arg-type]
            with pytest.raises(ClientError):
                cloud.client("s3", config=ONE_ATTEMPT).list_buckets()

    with pytest.raises(RuntimeError, match="double itself"):
        break_it()


def test_a_test_says_what_serves_an_endpoint(start: Start) -> None:
    asked = []

    def serve(endpoint: dict[str, Any]) -> str | None:
        asked.append(endpoint)
        if endpoint["EndpointName"] == "bad":
            raise ValueError("no such model")
        return "http://127.0.0.1:9"

    variant = {"VariantName": "all", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    with start(on_endpoint=serve) as cloud:
        sagemaker = cloud.client("sagemaker")
        sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "i"})
        sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
        for name, status in (("good", "InService"), ("bad", "Failed")):
            sagemaker.create_endpoint(EndpointName=name, EndpointConfigName="c")
            found = wait_for(partial(find_ended, sagemaker, name))
            assert found["EndpointStatus"] == status
        assert found["FailureReason"] == "ValueError: no such model"
    assert [endpoint["Models"][0]["Containers"][0]["Image"] for endpoint in asked] == ["i", "i"]


def find_ended(sagemaker: Any, name: str) -> dict[str, Any] | None:
    found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=name)
    return None if found["EndpointStatus"] == "Creating" else found
