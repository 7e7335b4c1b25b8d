"""Calls are recorded, and go wrong where a test asks for it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError

from . import CLIENT_KEY, SmallSageMaker
from .trying import (
    BUCKET,
    ONE_ATTEMPT,
    ask,
    await_end,
    code_of,
    list_keys,
    put,
    read_log,
    run_job,
    says,
    wait_for,
)


def test_calls_are_recorded_with_their_parameters(cloud: SmallSageMaker, s3: Any, sagemaker: Any) -> None:
    put(s3, "recorded/a b.txt")
    with pytest.raises(ClientError):
        s3.put_object(Bucket=BUCKET, Key="recorded/a b.txt", Body=b"", IfNoneMatch="*")
    s3.list_objects_v2(Bucket=BUCKET, Prefix="recorded/")
    with pytest.raises(ClientError):
        sagemaker.describe_processing_job(ProcessingJobName="nobody")
    cloud.client("iam").list_roles()
    found = [(call.service, call.action, call.status) for call in cloud.calls]
    assert found == [
        ("s3", "PutObject", 200),
        ("s3", "PutObject", 412),
        ("s3", "ListObjectsV2", 200),
        ("sagemaker", "DescribeProcessingJob", 400),
        ("iam", "ListRoles", 200),
    ]
    calls = cloud.calls
    assert calls[0].parameters["Bucket"] == BUCKET
    assert calls[0].parameters["Key"] == "recorded/a b.txt"
    assert calls[1].parameters["IfNoneMatch"] == "*"
    assert calls[2].parameters["Prefix"] == "recorded/"
    assert calls[3].parameters == {"ProcessingJobName": "nobody"}
    assert calls[3].error == "ValidationException"
    assert {call.access_key for call in calls} == {CLIENT_KEY}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("ThrottlingException", 400),
        ("InternalServerError", 500),
        ("ExpiredTokenException", 400),
        ("AccessDeniedException", 403),
        ("ResourceLimitExceeded", 400),
    ],
)
def test_calls_fail_as_often_as_asked(cloud: SmallSageMaker, sagemaker: Any, error: str, status: int) -> None:
    number = cloud.faults.add("ListProcessingJobs", error, times=2, skip=1)
    sagemaker.list_processing_jobs()
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            sagemaker.list_processing_jobs()
        assert code_of(caught) == error
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    sagemaker.list_processing_jobs()
    assert cloud.faults.hits(number) == 2


def test_s3_and_iam_fail_in_their_own_words(cloud: SmallSageMaker, s3: Any) -> None:
    cloud.faults.add("PutObject", "ThrottlingException")
    cloud.faults.add("ListRoles", "AccessDeniedException")
    with pytest.raises(ClientError) as caught:
        put(s3, "words")
    assert code_of(caught) == "SlowDown"
    with pytest.raises(ClientError) as caught:
        cloud.client("iam", config=ONE_ATTEMPT).list_roles()
    assert code_of(caught) == "AccessDenied"


def test_a_fault_hits_only_what_it_matches(cloud: SmallSageMaker, s3: Any) -> None:
    cloud.faults.add("PutObject", "InternalServerError", match={"Key": "hit/"})
    put(s3, "missed/a")
    with pytest.raises(ClientError):
        put(s3, "hit/a")


def test_a_lost_reply_leaves_the_work_done(cloud: SmallSageMaker, sagemaker: Any, s3: Any) -> None:
    cloud.faults.add("CreateProcessingJob", "LostReply")
    cloud.faults.add("PutObject", "LostReply")
    with pytest.raises(HTTPClientError):
        sagemaker.create_processing_job(**ask("lost-reply"))
    assert await_end(sagemaker, "lost-reply")["ProcessingJobStatus"] == "Completed"
    with pytest.raises(HTTPClientError):
        put(s3, "lost-reply")
    assert list_keys(s3, "lost-reply") == ["lost-reply"]


def test_a_rate_is_throttled_above_its_limit(cloud: SmallSageMaker, sagemaker: Any) -> None:
    cloud.faults.rate(["ListProcessingJobs"], per_second=2)
    codes = []
    for _ in range(6):
        try:
            sagemaker.list_processing_jobs()
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])
    assert set(codes) == {"ThrottlingException"}
    time.sleep(1.01)
    sagemaker.list_processing_jobs()


def test_downloads_are_cut_short(cloud: SmallSageMaker, s3: Any) -> None:
    put(s3, "cut", "0123456789")
    cloud.faults.add("GetObject", "Cut")
    with pytest.raises(ResponseStreamingError):
        s3.get_object(Bucket=BUCKET, Key="cut")["Body"].read()
    plain = cloud.client("s3", config=Config(response_checksum_validation="when_required"))
    cloud.faults.add("GetObject", "Truncated")
    assert plain.get_object(Bucket=BUCKET, Key="cut")["Body"].read() == b"01234"


@pytest.mark.soak
def test_logs_come_late(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    cloud.faults.delay_logs(3.0, name_contains="late")
    assert run_job(sagemaker, "late-logs", "echo hello")["ProcessingJobStatus"] == "Completed"
    with pytest.raises(ClientError) as caught:
        read_log(logs, "late-logs")
    assert code_of(caught) == "ResourceNotFoundException"
    wait_for(lambda: says(logs, "late-logs", "hello"))


def test_jobs_fail_for_reasons_of_the_service(cloud: SmallSageMaker, sagemaker: Any) -> None:
    cloud.faults.job("unlucky", "InternalServerError: We encountered an internal error. Please try again.")
    cloud.faults.job("midway", "CapacityError: Unable to provision requested ML compute capacity.", after_s=0.2)
    found = run_job(sagemaker, "unlucky-1")
    assert found["FailureReason"].startswith("InternalServerError")
    assert "ProcessingStartTime" not in found
    assert run_job(sagemaker, "unlucky-2")["ProcessingJobStatus"] == "Completed"
    found = run_job(sagemaker, "midway", "sleep 600")
    assert found["FailureReason"].startswith("CapacityError")
    assert "ProcessingStartTime" in found
