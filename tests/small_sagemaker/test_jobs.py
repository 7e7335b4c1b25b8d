"""Processing jobs move files and lines, end for a reason, and are refused for one."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import LARGE, SCARCE
from .transfer import LOG_GROUP
from .trying import (
    BUCKET,
    ask,
    await_end,
    code_of,
    give,
    list_keys,
    put,
    read_log,
    run_job,
    says,
    take,
    wait_for,
)


def test_a_job_reads_its_inputs_runs_and_stores_its_outputs(sagemaker: Any, s3: Any, logs: Any) -> None:
    put(s3, "in/data/a.csv", "1\n2\n")
    script = "wc -l < /opt/ml/processing/input/in/a.csv | tee /opt/ml/processing/output/out/n; echo bad >&2"
    found = run_job(
        sagemaker,
        "moves",
        script,
        ProcessingInputs=give(f"s3://{BUCKET}/in/data/"),
        ProcessingOutputConfig=take(f"s3://{BUCKET}/out/moves", "EndOfJob"),
        Environment={"K": "V"},
    )
    assert found["ProcessingJobStatus"] == "Completed"
    assert s3.get_object(Bucket=BUCKET, Key="out/moves/n")["Body"].read() == b"2\n"
    assert read_log(logs, "moves") == ["2", "bad"]
    assert found["Environment"] == {"K": "V"}
    assert found["ProcessingResources"]["ClusterConfig"]["InstanceType"] == "ml.m5.large"
    assert found["ProcessingInputs"][0]["S3Input"]["S3Uri"].endswith("in/data/")
    assert found["CreationTime"] <= found["ProcessingStartTime"] <= found["ProcessingEndTime"]


def test_a_prefix_is_a_string_and_may_end_in_half_a_name(sagemaker: Any, s3: Any, logs: Any) -> None:
    put(s3, "half/data1/a")
    put(s3, "half/data2")
    run_job(
        sagemaker,
        "half-names",
        "cd /opt/ml/processing/input/in && find . -type f | sort",
        ProcessingInputs=give(f"s3://{BUCKET}/half/da"),
    )
    assert read_log(logs, "half-names") == ["./data1/a", "./data2"]


def test_a_job_without_objects_under_its_input_fails(sagemaker: Any) -> None:
    found = run_job(sagemaker, "no-input", ProcessingInputs=give(f"s3://{BUCKET}/absent/"))
    assert found["ProcessingJobStatus"] == "Failed"
    assert found["FailureReason"].startswith("ClientError: Data download failed:No S3 objects found")


def test_a_failed_container_stores_only_what_is_continuous(sagemaker: Any, s3: Any) -> None:
    for mode in ("Continuous", "EndOfJob"):
        found = run_job(
            sagemaker,
            f"fails-{mode}",
            "echo 1 > /opt/ml/processing/output/out/part; echo why > /opt/ml/output/message; exit 3",
            ProcessingOutputConfig=take(f"s3://{BUCKET}/out/fails-{mode}", mode),
        )
        assert found["ProcessingJobStatus"] == "Failed"
        assert found["FailureReason"] == "AlgorithmError: See job logs for more information, exit code: 3"
        assert found["ExitMessage"] == "why\n"
    assert list_keys(s3, "out/fails-") == ["out/fails-Continuous/part"]


def test_continuous_outputs_appear_while_the_job_runs(sagemaker: Any, s3: Any) -> None:
    place = take(f"s3://{BUCKET}/out/goes-on")
    script = "echo 1 > /opt/ml/processing/output/out/first; trap 'exit 0' TERM; sleep 60 & wait"
    sagemaker.create_processing_job(**ask("goes-on", script, ProcessingOutputConfig=place))
    wait_for(lambda: list_keys(s3, "out/goes-on"))
    assert sagemaker.describe_processing_job(ProcessingJobName="goes-on")["ProcessingJobStatus"] == "InProgress"
    sagemaker.stop_processing_job(ProcessingJobName="goes-on")
    assert await_end(sagemaker, "goes-on")["ProcessingJobStatus"] == "Stopped"


def test_an_exit_message_that_is_not_utf8_fails_the_job(sagemaker: Any) -> None:
    found = run_job(sagemaker, "bad-message", r"printf '\xff\xfe' > /opt/ml/output/message")
    assert found["ProcessingJobStatus"] == "Failed"


def test_an_exit_message_holds_a_kilobyte(sagemaker: Any) -> None:
    found = run_job(sagemaker, "long-message", "head -c 5000 /dev/zero | tr '\\0' x > /opt/ml/output/message")
    assert found["ExitMessage"] == "x" * 1024


def test_stopping_sends_a_signal_and_then_kills(sagemaker: Any, logs: Any) -> None:
    sagemaker.create_processing_job(**ask("polite", "trap 'echo term; exit 0' TERM; echo on; sleep 60 & wait"))
    sagemaker.create_processing_job(**ask("deaf", "trap '' TERM; echo on; sleep 60; sleep 60"))
    for name in ("polite", "deaf"):
        wait_for(partial(says, logs, name, "on"))
        sagemaker.stop_processing_job(ProcessingJobName=name)
    for name in ("polite", "deaf"):
        found = await_end(sagemaker, name)
        assert found["ProcessingJobStatus"] == "Stopped"
        assert "FailureReason" not in found
    assert "term" in read_log(logs, "polite")


def test_a_job_over_its_time_is_stopped(sagemaker: Any) -> None:
    found = run_job(sagemaker, "too-long", "sleep 60", StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert found["ProcessingJobStatus"] == "Stopped"
    assert "FailureReason" not in found


def test_a_name_is_given_once(sagemaker: Any) -> None:
    run_job(sagemaker, "only-once")
    with pytest.raises(ClientError) as caught:
        sagemaker.create_processing_job(**ask("only-once"))
    assert code_of(caught) == "ResourceInUse"


def test_the_name_of_a_deleted_job_is_free_and_its_log_stays(sagemaker: Any, logs: Any) -> None:
    sagemaker.create_processing_job(**ask("passing", "echo first; sleep 600"))
    wait_for(partial(says, logs, "passing", "first"))
    with pytest.raises(ClientError) as caught:
        sagemaker.delete_processing_job(ProcessingJobName="passing")
    assert code_of(caught) == "ResourceInUse"
    sagemaker.stop_processing_job(ProcessingJobName="passing")
    await_end(sagemaker, "passing")
    sagemaker.delete_processing_job(ProcessingJobName="passing")
    for action in (sagemaker.describe_processing_job, sagemaker.delete_processing_job):
        with pytest.raises(ClientError, match="Could not find"):
            action(ProcessingJobName="passing")
    time.sleep(1)  # a stream is named by the second
    run_job(sagemaker, "passing", "echo second")
    found = logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix="passing/")["logStreams"]
    assert len(found) == 2


def test_jobs_are_listed_by_a_piece_of_their_name_and_page_by_page(sagemaker: Any) -> None:
    for number in range(3):
        sagemaker.create_processing_job(**ask(f"listed-{number}"))
    pages = sagemaker.get_paginator("list_processing_jobs").paginate(
        NameContains="listed-", SortOrder="Ascending", PaginationConfig={"PageSize": 2}
    )
    found = [item["ProcessingJobName"] for page in pages for item in page["ProcessingJobSummaries"]]
    assert found == ["listed-0", "listed-1", "listed-2"]


def test_tags_are_kept_and_changed(sagemaker: Any) -> None:
    made = sagemaker.create_processing_job(**ask("tagged", Tags=[{"Key": "run", "Value": "1"}]))
    arn = made["ProcessingJobArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "hash", "Value": "2"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["run"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "hash", "Value": "2"}]


def test_unknown_jobs_are_refused(sagemaker: Any) -> None:
    for ask_for in (sagemaker.describe_processing_job, sagemaker.stop_processing_job):
        with pytest.raises(ClientError) as caught:
            ask_for(ProcessingJobName="nobody")
        assert code_of(caught) == "ValidationException"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ProcessingJobName": "x" * 64}, "processingJobName"),
        ({"ProcessingJobName": "under_score"}, "regular expression"),
        ({"Environment": {"K": "v" * 257}}, "environment.K.member"),
        ({"Environment": {f"K{number}": "" for number in range(101)}}, "environment"),
        ({"ProcessingInputs": [item for n in range(11) for item in give("s3://b/k", f"i{n}")]}, "processingInputs"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 777601}}, "maxRuntimeInSeconds"),
        ({"AppSpecification": {"ImageUri": "i", "ContainerEntrypoint": ["a\nb"]}}, "containerEntrypoint.1.member"),
        ({"RoleArn": "arn:aws:iam::12:role/no-such-account"}, "roleArn"),
        ({"Tags": [{"Key": "k", "Value": "semi;colon"}]}, "tags.1.member.value"),
        ({"ProcessingInputs": give("s3://b/k") * 2}, "unique"),
    ],
)
def test_requests_over_a_limit_are_refused_by_the_name_of_the_field(
    sagemaker: Any, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ClientError, match=field) as caught:
        sagemaker.create_processing_job(**{**ask("limits"), **change})
    assert code_of(caught) == "ValidationException"


def test_an_instance_type_without_quota_is_refused(sagemaker: Any) -> None:
    cluster = {"InstanceCount": 1, "InstanceType": LARGE, "VolumeSizeInGB": 30}
    with pytest.raises(ClientError, match=LARGE) as caught:
        sagemaker.create_processing_job(**ask("quota", ProcessingResources={"ClusterConfig": cluster}))
    assert code_of(caught) == "ResourceLimitExceeded"


def test_a_quota_counts_what_runs(sagemaker: Any) -> None:
    def ask_scarce(name: str, count: int) -> dict[str, Any]:
        cluster = {"InstanceCount": count, "InstanceType": SCARCE, "VolumeSizeInGB": 30}
        return ask(name, "sleep 600", ProcessingResources={"ClusterConfig": cluster})

    sagemaker.create_processing_job(**ask_scarce("scarce-1", 1))
    with pytest.raises(ClientError, match="utilization of 1 Instances and a request delta of 2"):
        sagemaker.create_processing_job(**ask_scarce("scarce-2", 2))
    sagemaker.stop_processing_job(ProcessingJobName="scarce-1")
    await_end(sagemaker, "scarce-1")
    sagemaker.create_processing_job(**ask_scarce("scarce-2", 2))
    sagemaker.stop_processing_job(ProcessingJobName="scarce-2")


def test_a_job_that_has_ended_is_not_stopped(sagemaker: Any) -> None:
    run_job(sagemaker, "ended")
    with pytest.raises(ClientError, match="in status Completed"):
        sagemaker.stop_processing_job(ProcessingJobName="ended")


def test_links_and_pipes_are_not_stored(sagemaker: Any, s3: Any) -> None:
    script = "cd /opt/ml/processing/output/out; ln -s /etc/hostname link; mkfifo pipe; echo 1 > file"
    run_job(sagemaker, "odd-files", script, ProcessingOutputConfig=take(f"s3://{BUCKET}/out/odd"))
    assert list_keys(s3, "out/odd") == ["out/odd/file"]
