"""Versions of models, their approval, and the endpoints they are served from."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError

from . import SmallSageMaker
from .trying import (
    BUCKET,
    ONE_ATTEMPT,
    ROLE,
    code_of,
    put,
    wait_for,
)

AWS_IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-xgboost:3.2-0"


def make_package(sagemaker: Any, group: str, **more: Any) -> str:
    container = {"Image": AWS_IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    specification = {"Containers": [container], "SupportedContentTypes": [], "SupportedResponseMIMETypes": []}
    made = sagemaker.create_model_package(
        **{"ModelPackageGroupName": group, "InferenceSpecification": specification, **more}
    )
    return str(made["ModelPackageArn"])


def test_a_version_is_of_an_image_and_an_archive_that_are_there(cloud: SmallSageMaker, sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="there")
    own = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/serving"
    archive = f"s3://{BUCKET}/model.tar.gz"
    for image, data, said in (
        ("serving:1", archive, "Invalid image URI serving:1"),
        (f"{own}:1", archive, f"Requested image {own}:1 not found"),
        (AWS_IMAGE, f"s3://{BUCKET}/absent.tar.gz", "Could not find model data at .*absent.tar.gz"),
    ):
        containers = [{"Image": image, "ModelDataUrl": data}]
        specification = {
            "Containers": containers, "SupportedContentTypes": [], "SupportedResponseMIMETypes": []
        }  # fmt: skip
        with pytest.raises(ClientError, match=said):
            make_package(sagemaker, "there", InferenceSpecification=specification)
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"})
    cloud.client("ecr").create_repository(repositoryName="serving")
    cloud.client("ecr").put_image(repositoryName="serving", imageManifest=manifest, imageTag="1")
    specification["Containers"] = [{"Image": f"{own}:1", "ModelDataUrl": archive}]
    assert make_package(sagemaker, "there", InferenceSpecification=specification).endswith("/there/1")


def test_versions_are_numbered_and_keep_what_an_update_does_not_name(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="churn")
    arns = [make_package(sagemaker, "churn", CustomerMetadataProperties={"run": "1"}) for _ in range(3)]
    assert [arn.rpartition("/")[2] for arn in arns] == ["1", "2", "3"]
    sagemaker.update_model_package(ModelPackageArn=arns[1], ModelApprovalStatus="Approved", ApprovalDescription="good")
    sagemaker.update_model_package(ModelPackageArn=arns[1], CustomerMetadataProperties={"by": "me"})
    found = sagemaker.describe_model_package(ModelPackageName=arns[1])
    assert found["ModelApprovalStatus"] == "Approved"
    assert found["ApprovalDescription"] == "good"
    assert found["CustomerMetadataProperties"] == {"run": "1", "by": "me"}
    listed = sagemaker.list_model_packages(ModelPackageGroupName="churn", ModelApprovalStatus="Approved")
    assert [item["ModelPackageVersion"] for item in listed["ModelPackageSummaryList"]] == [2]


def test_one_token_makes_one_version(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="tokens")
    first = make_package(sagemaker, "tokens", ClientToken="t" * 36)
    assert make_package(sagemaker, "tokens", ClientToken="t" * 36) == first
    with pytest.raises(ClientError) as caught:
        make_package(sagemaker, "tokens", ClientToken="t" * 36, ModelPackageDescription="other")
    assert code_of(caught) == "ConflictException"


def test_groups_and_versions_are_deleted_and_numbers_never_come_back(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="gone", Tags=[{"Key": "k", "Value": "v"}])
    arn = make_package(sagemaker, "gone")
    with pytest.raises(ClientError, match="not empty"):
        sagemaker.delete_model_package_group(ModelPackageGroupName="gone")
    sagemaker.delete_model_package(ModelPackageName=arn)
    assert make_package(sagemaker, "gone").endswith("/2")
    sagemaker.delete_model_package(ModelPackageName=arn.replace("/1", "/2"))
    sagemaker.delete_model_package_group(ModelPackageGroupName="gone")
    with pytest.raises(ClientError, match="does not exist"):
        sagemaker.describe_model_package_group(ModelPackageGroupName="gone")


def test_approval_tells_the_event_bus(cloud: SmallSageMaker, sagemaker: Any, logs: Any) -> None:
    logs.create_log_group(logGroupName="/events/approvals")
    events = cloud.client("events")
    pattern = {"source": ["aws.sagemaker"], "detail": {"ModelApprovalStatus": ["Approved"]}}
    events.put_rule(Name="approved", EventPattern=json.dumps(pattern))
    arn = f"arn:aws:logs:{cloud.region}:123456789012:log-group:/events/approvals"
    events.put_targets(Rule="approved", Targets=[{"Id": "1", "Arn": arn}])
    sagemaker.create_model_package_group(ModelPackageGroupName="told")
    package = make_package(sagemaker, "told")
    sagemaker.update_model_package(ModelPackageArn=package, ModelApprovalStatus="Approved")
    (event,) = logs.filter_log_events(logGroupName="/events/approvals")["events"]
    assert json.loads(event["message"])["detail"]["ModelPackageArn"] == package


class Scorer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = self.path == "/invocations" and self.headers["Content-Type"] == "text/csv"
        answer = body.upper() if good else b"no such type"
        self.send_response(200 if good else 415)
        self.send_header("Content-Type", self.headers.get("Accept") or "text/plain")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def scorer() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Scorer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def make_config(sagemaker: Any, name: str, model: str) -> None:
    variant = {"VariantName": "all", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def await_endpoint(sagemaker: Any, name: str) -> dict[str, Any]:
    def look() -> Any:
        found = sagemaker.describe_endpoint(EndpointName=name)
        return found if found["EndpointStatus"] not in ("Creating", "Updating") else None

    found: dict[str, Any] = wait_for(look)
    return found


def test_an_endpoint_is_created_invoked_updated_and_may_fail(
    cloud: SmallSageMaker, sagemaker: Any, s3: Any, scorer: str
) -> None:
    container = {"Image": "i", "ModelDataUrl": f"s3://{BUCKET}/deployed.tar.gz"}
    model = {"ModelName": "m", "ExecutionRoleArn": ROLE, "PrimaryContainer": container}
    with pytest.raises(ClientError, match="Could not find model data"):
        sagemaker.create_model(**model)
    put(s3, "deployed.tar.gz")
    sagemaker.create_model(**model)
    make_config(sagemaker, "one", "m")
    make_config(sagemaker, "two", "m")
    sagemaker.create_endpoint(EndpointName="live", EndpointConfigName="one")
    assert await_endpoint(sagemaker, "live")["EndpointStatus"] == "InService"

    runtime = cloud.client("sagemaker-runtime", config=ONE_ATTEMPT)
    cloud.serve_endpoint("live", scorer)
    reply = runtime.invoke_endpoint(EndpointName="live", Body=b"a,b", ContentType="text/csv", Accept="text/x")
    assert reply["Body"].read() == b"A,B"
    assert (reply["ContentType"], reply["InvokedProductionVariant"]) == ("text/x", "all")
    with pytest.raises(ClientError) as caught:
        runtime.invoke_endpoint(EndpointName="live", Body=b"{}", ContentType="application/json")
    assert code_of(caught) == "ModelError"
    assert caught.value.response["OriginalStatusCode"] == 415
    assert caught.value.response["OriginalMessage"] == "no such type"

    cloud.fail_endpoint("live", "The container did not answer /ping")
    sagemaker.update_endpoint(EndpointName="live", EndpointConfigName="two")
    found = await_endpoint(sagemaker, "live")
    assert (found["EndpointStatus"], found["EndpointConfigName"]) == ("InService", "one")
    assert "ping" in found["FailureReason"]
    sagemaker.update_endpoint(EndpointName="live", EndpointConfigName="two")
    found = await_endpoint(sagemaker, "live")
    assert found["EndpointConfigName"] == "two"
    assert "FailureReason" not in found
    sagemaker.delete_endpoint(EndpointName="live")


def test_a_version_is_deployed_only_when_it_is_approved(sagemaker: Any) -> None:
    sagemaker.create_model_package_group(ModelPackageGroupName="careful")
    package = make_package(sagemaker, "careful")
    wanted = {"ModelName": "careful", "ExecutionRoleArn": ROLE, "Containers": [{"ModelPackageName": package}]}
    with pytest.raises(ClientError, match="not in Approved status"):
        sagemaker.create_model(**wanted)
    sagemaker.update_model_package(ModelPackageArn=package, ModelApprovalStatus="Approved")
    sagemaker.create_model(**wanted)
