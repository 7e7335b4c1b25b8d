"""Training jobs move files and lines, begin again where their instance was taken away, and are refused for a reason."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from . import SmallSageMaker
from .conftest import SPOT_QUOTA
from .trying import BUCKET, ROLE, code_of, put, wait_for

GROUP = "/aws/sagemaker/TrainingJobs"
SPOT: dict[str, Any] = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
}


def train(name: str, script: str = "true", **more: Any) -> dict[str, Any]:
    """A CreateTrainingJob request that runs a line of shell."""
    made: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "any",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["bash", "-c", script],
        },
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/trained/{name}/"},
        "ResourceConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
    return {**made, **more}


def await_end(sagemaker: Any, name: str) -> dict[str, Any]:
    def look() -> Any:
        found = sagemaker.describe_training_job(TrainingJobName=name)
        return found if found["TrainingJobStatus"] not in ("InProgress", "Stopping") else None

    found: dict[str, Any] = wait_for(look)
    return found


def run(sagemaker: Any, name: str, script: str, **more: Any) -> dict[str, Any]:
    sagemaker.create_training_job(**train(name, script, **more))
    return await_end(sagemaker, name)


def entered(job: dict[str, Any]) -> list[str]:
    return [one["Status"] for one in job["SecondaryStatusTransitions"]]


def lines(logs: Any, name: str) -> list[list[str]]:
    """Of each start."""
    found = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
    return [
        [event["message"] for event in logs.get_log_events(logGroupName=GROUP, logStreamName=name)["events"]]
        for name in sorted(one["logStreamName"] for one in found)
    ]


def test_a_job_reads_its_channels_and_shows_its_last_metrics(sagemaker: Any, s3: Any, logs: Any) -> None:
    address = put(s3, "channel/a.csv", "1\n2\n")
    channel = {"ChannelName": "in-0", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": address}}}
    script = "wc -l < /opt/ml/input/data/in-0/a.csv; ls /opt/ml; echo loss=2; echo loss=1.5; echo $TRAINING_JOB_NAME $K"
    definitions = [{"Name": name, "Regex": f"{name}=([0-9.]+)"} for name in ("loss", "other")]
    algorithm = train("reads", script)["AlgorithmSpecification"]
    found = run(
        sagemaker,
        "reads",
        script,
        InputDataConfig=[channel],
        Environment={"K": "V"},
        AlgorithmSpecification={**algorithm, "MetricDefinitions": definitions},
        ResourceConfig={**train("reads")["ResourceConfig"], "KeepAlivePeriodInSeconds": 60},
    )
    assert lines(logs, "reads") == [["2", "checkpoints", "input", "model", "output", "loss=2", "loss=1.5", "reads V"]]
    assert {one["MetricName"]: one["Value"] for one in found["FinalMetricDataList"]} == {"loss": 1.5}
    assert entered(found) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert found["WarmPoolStatus"] == {"Status": "Available"}
    assert found["BillableTimeInSeconds"] == found["TrainingTimeInSeconds"] >= 1


def test_a_failure_is_told_in_the_container_s_words(sagemaker: Any) -> None:
    found = run(sagemaker, "fails", "echo -n why > /opt/ml/output/failure; exit 3")
    assert (found["TrainingJobStatus"], found["FailureReason"]) == ("Failed", "AlgorithmError: why, exit code: 3")
    assert "puts nothing of /opt/ml/model away" in run(sagemaker, "models", "touch /opt/ml/model/m")["FailureReason"]


COUNT = "cat /opt/ml/checkpoints/n; echo x >> /opt/ml/checkpoints/n; touch /tmp/here; ls /tmp; echo at it; "


def kept(name: str) -> dict[str, Any]:
    return {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/kept/{name}/"}}


def test_a_spot_instance_that_is_taken_away_leaves_its_checkpoints_and_nothing_else(
    cloud: SmallSageMaker, sagemaker: Any, logs: Any
) -> None:
    cloud.faults.interrupt("taken", "at it")
    cloud.faults.interrupt("taken", "at it", warned=True)
    cloud.faults.interrupt("taken")
    trap = 'trap "echo warned; exit 1" TERM; '
    wait = "if [ $(wc -l < /opt/ml/checkpoints/n) -lt 3 ]; then sleep 60 & wait; fi"
    found = run(sagemaker, "taken", trap + COUNT + wait, **SPOT, **kept("taken"))
    assert found["TrainingJobStatus"] == "Completed"
    assert (entered(found).count("Training"), entered(found).count("Interrupted")) == (4, 3)
    first, second, third, fourth = lines(logs, "taken")
    assert first[-2:] == ["here", "at it"]
    assert second == ["x", "here", "at it", "warned"]
    assert (third, fourth) == (["x", "x", "here", "at it"], ["x", "x", "x", "here", "at it"])
    assert found["BillableTimeInSeconds"] <= found["TrainingTimeInSeconds"]


def test_an_instance_at_the_usual_price_is_not_taken_away(cloud: SmallSageMaker, sagemaker: Any) -> None:
    cloud.faults.interrupt("stays")
    assert entered(run(sagemaker, "stays", "true")).count("Training") == 1


@pytest.mark.soak
def test_limits_and_a_stop_end_a_job_in_their_own_words(cloud: SmallSageMaker, sagemaker: Any) -> None:
    found = run(sagemaker, "long", "sleep 60", StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (found["TrainingJobStatus"], found["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    limits = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}
    cloud.faults.interrupt("waits", "at it", times=99)
    found = run(sagemaker, "waits", "echo at it; sleep 60", **{**SPOT, "StoppingCondition": limits})
    assert (found["TrainingJobStatus"], found["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    sagemaker.create_training_job(**train("stopped", "sleep 60"))
    wait_for(lambda: sagemaker.describe_training_job(TrainingJobName="stopped")["SecondaryStatus"] == "Training")
    sagemaker.stop_training_job(TrainingJobName="stopped")
    assert await_end(sagemaker, "stopped")["SecondaryStatus"] == "Stopped"


LIMIT = {"MaxRuntimeInSeconds": 60}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"StoppingCondition": {**LIMIT, "MaxWaitTimeInSeconds": 90}}, "only supported when EnableManagedSpotTraining"),
    ({"EnableManagedSpotTraining": True}, "Invalid MaxWaitTimeInSeconds"),
    ({**SPOT, "ResourceConfig": {"KeepAlivePeriodInSeconds": 9}}, "KeepAlivePeriodInSeconds is not supported"),
    ({"ResourceConfig": {"KeepAlivePeriodInSeconds": 3601}}, "at most 3600"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 3_000_000}}, "at most 2419200"),
    ({"HyperParameters": {"a": "b"}}, "knows no HyperParameters"),
    ({"Environment": {str(number): "" for number in range(101)}}, "environment"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_the_service_refuses_is_refused(sagemaker: Any, more: dict[str, Any], said: str) -> None:
    request = train("refused")
    resources = {**request["ResourceConfig"], **more.get("ResourceConfig", {})}
    with pytest.raises(ClientError, match=said) as caught:
        sagemaker.create_training_job(**{**request, **more, "ResourceConfig": resources})
    assert code_of(caught) == "ValidationException"


def test_a_name_is_taken_once_and_a_quota_counts(sagemaker: Any) -> None:
    sagemaker.create_training_job(**train("once"))
    with pytest.raises(ClientError) as caught:
        sagemaker.create_training_job(**train("once"))
    assert code_of(caught) == "ResourceInUse"
    resources = {**train("q")["ResourceConfig"], "InstanceType": SPOT_QUOTA.partition(" ")[0]}
    with pytest.raises(ClientError, match=SPOT_QUOTA):
        sagemaker.create_training_job(**train("scarce", **SPOT, ResourceConfig=resources))
    assert run(sagemaker, "plenty", "true", ResourceConfig=resources)["TrainingJobStatus"] == "Completed"
