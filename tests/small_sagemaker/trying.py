"""Short requests, waits and looks, for tests that run jobs on the double."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from botocore.config import Config
from botocore.exceptions import ClientError

from .transfer import LOG_GROUP

BUCKET = "ml-bucket"
ROLE = "arn:aws:iam::123456789012:role/jobs"
EVERYTHING = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]  # for ROLE, where rights are not the question
ONE_ATTEMPT = Config(retries={"total_max_attempts": 1})


def ask(name: str, script: str = "true", *, machines: int = 1, **more: Any) -> dict[str, Any]:
    """A CreateProcessingJob request that runs a line of shell."""
    return {
        "ProcessingJobName": name,
        "RoleArn": ROLE,
        "AppSpecification": {"ImageUri": "any", "ContainerEntrypoint": ["bash", "-c", script]},
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": machines, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 30}
        },
        **more,
    }


def give(uri: str, name: str = "in") -> list[dict[str, Any]]:
    place = {"S3Uri": uri, "LocalPath": f"/opt/ml/processing/input/{name}"}
    return [{"InputName": name, "S3Input": {**place, "S3DataType": "S3Prefix", "S3InputMode": "File"}}]


def take(uri: str, mode: str = "Continuous", name: str = "out") -> dict[str, Any]:
    place = {"S3Uri": uri, "LocalPath": f"/opt/ml/processing/output/{name}", "S3UploadMode": mode}
    return {"Outputs": [{"OutputName": name, "S3Output": place}]}


def wait_for(look: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.03)
    return found


def await_end(sagemaker: Any, name: str) -> dict[str, Any]:
    def look() -> Any:
        found = sagemaker.describe_processing_job(ProcessingJobName=name)
        return found if found["ProcessingJobStatus"] not in ("InProgress", "Stopping") else None

    found: dict[str, Any] = wait_for(look)
    return found


def run_job(sagemaker: Any, name: str, script: str = "true", **more: Any) -> dict[str, Any]:
    sagemaker.create_processing_job(**ask(name, script, **more))
    return await_end(sagemaker, name)


def read_log(logs: Any, name: str, host: str = "") -> list[str]:
    streams = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{name}/{host}")["logStreams"]
    (stream,) = [item["logStreamName"] for item in streams]
    events = logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True)["events"]
    return [event["message"] for event in events]


def list_keys(s3: Any, prefix: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def put(s3: Any, key: str, body: str = "x") -> str:
    s3.put_object(Bucket=BUCKET, Key=key, Body=body.encode())
    return f"s3://{BUCKET}/{key}"


def code_of(caught: Any) -> str:
    """The error code in what pytest.raises(ClientError) has caught."""
    return str(caught.value.response["Error"]["Code"])


def says(logs: Any, name: str, line: str) -> bool:
    try:
        return line in read_log(logs, name)
    except (ClientError, ValueError):
        return False
