"""Versions at an endpoint of the small SageMaker: brought up beside the old one, asked for their sample, kept or taken back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from account import identities, key
from botocore.exceptions import ClientError
from cloud import BUCKET, RemoteProject
from small_sagemaker import SmallSageMaker
from small_sagemaker.faults import LOST_REPLY
from small_sagemaker.trying import ONE_ATTEMPT
from support.commands import Done
from support.machines import Machines
from support.models import records, trained
from support.projects import ROOT
from support.serving_image import aws_image

import runner.model
from runner.aws.endpoint import SageMakerTarget
from runner.aws.endpoint_request import endpoint_name
from runner.aws.own_image import own_image
from runner.aws.package import ENVIRONMENT
from runner.aws.registered_archive import check_archive
from runner.aws.registry import SageMakerRegistry
from runner.aws.settings import settings
from runner.content import artifact
from runner.errors import Refused, Tampered
from runner.failpoint import VARIABLE
from runner.manifest import RunManifest
from runner.model import deployment
from runner.model.deployment import FAILPOINTS
from runner.model.events import verify_chain
from runner.model.folder import load as load_model
from runner.model.registry import LocalRegistry
from runner.model.registry_rules import Person
from runner.model.served import before, recorded
from runner.model.versions import NewVersion
from runner.pipeline.file import load
from runner.project import Project
from runner.records import SageMakerTargetSpec, Verdict, encode, utc_text
from runner.run import provenance
from runner.serve.openapi import record_schema

MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"})
RUN = "20261122-1016{:02d}-7f3a"
MODEL = "steps/train/out/model"
TOML = """
name = "{project}"
[steps.train]
notebook = "train.ipynb"
outputs = {{ model = "model/" }}
[model]
name = "{project}"
from = "train.model"
registry = "{registry}"
[targets.staging]
kind = "sagemaker"
{staging}
"""
SETTINGS = """
[sagemaker]
bucket = "work"
prefix = "{project}"
role = "arn:aws:iam::123456789012:role/PROJECT-jobs"
image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/own:1"
poll_s = 0.1
tags = {{ team = "growth" }}
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(tmp_path_factory.mktemp("machines"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cloud(machines: Machines) -> Iterator[SmallSageMaker]:
    with SmallSageMaker(on_endpoint=machines) as made, pytest.MonkeyPatch.context() as patch:
        # who registers, decides and deploys in this process; its commands are the deployer's
        for variable, value in {**made.environment, **key("owner")}.items():
            patch.setenv(variable, value)
        made.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": made.region})
        machines.cloud = made
        yield made


@dataclass(frozen=True)
class Place(RemoteProject):
    """Three versions of the project's model in SageMaker's registry, of which the first two are approved."""

    name: str = ""
    machines: Any = None

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.toml"

    @property
    def registry(self) -> Any:
        return Project(self.file).registry

    @property
    def story(self) -> list[tuple[int, str]]:
        events = self.registry.events(self.name)
        assert verify_chain(events) is None
        return [(event.version, event.kind) for event in events if "target" in event.data]

    @property
    def sagemaker(self) -> Any:
        return self.cloud.client("sagemaker")

    @property
    def endpoint(self) -> str:
        return f"{self.name}-staging"

    def found(self) -> dict[str, Any] | None:
        named = self.sagemaker.list_endpoints(NameContains=self.endpoint)["Endpoints"]
        made: dict[str, Any] | None = self.sagemaker.describe_endpoint(EndpointName=self.endpoint) if named else None
        return made

    def deploy(self, version: int, *more: str) -> Done:
        return self.here("deploy", self.label(version), "--to", "staging", *more)

    def scored(self) -> str:
        """Which version answers."""
        sample = json.loads((self.folder / "runs" / RUN.format(2) / MODEL / "signature.json").read_text())
        reply = self.cloud.client("sagemaker-runtime").invoke_endpoint(
            EndpointName=self.endpoint,
            Body=json.dumps([sample["sample_request"]]),
            ContentType="application/json",
            Accept="application/json",
        )
        made: str = json.loads(reply["Body"].read())["model"]
        return made

    def label(self, version: int) -> str:
        return f"{self.name}/{version}"

    def hold(self, version: int) -> threading.Event:
        """Keeps the version's machines from coming up until the event is set."""
        made = self.machines.held[self.label(version)] = threading.Event()
        return made

    def calls(self) -> list[str]:
        """The service's actions that change something, in order."""
        changing = ("Create", "Update", "Delete", "Put", "Register", "Deregister", "AddTags")
        return [call.action for call in self.cloud.calls if call.action.startswith(changing)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three model folders that score differently."""
    made, raw = tmp_path_factory.mktemp("folders"), records()
    for number in (1, 2, 3):
        folder = made / str(number)
        runner.model.save(folder, trained(raw, eta=0.1 * number), raw, target="left", positive="yes")
    return made


@pytest.fixture
def make(cloud: SmallSageMaker, machines: Machines, folders: Path, tmp_path: Path) -> Callable[..., Place]:
    def make(staging: str = "", *, registry: str = "sagemaker", folder: str = "project", versions: int = 3) -> Place:
        name = f"t{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
        made = Place(tmp_path / folder, cloud, SETTINGS.format(project=name), name=name, machines=machines)
        made.folder.mkdir()
        made.toml(TOML.format(project=name, staging=staging, registry=registry))
        for number in range(1, versions + 1):
            target = made.folder / "runs" / RUN.format(number) / MODEL
            shutil.copytree(folders / str(number), target)
            fact = artifact(target, name=MODEL)
            made.registry.register(
                NewVersion(name=name, run=RUN.format(number), sha256=fact.sha256, artifact=fact, created_by="ana@desk")
            )
            if number < 3:
                made.registry.decide(name, number, "approved", who="ben@desk", why="reviewed")
        machines.wrong.clear()
        machines.broken.clear()
        machines.held.clear()
        machines.image = None
        cloud.forget_calls()
        return made

    return make


@pytest.mark.soak
def test_a_version_is_deployed_updated_rolled_back_and_removed(make: Callable[..., Place]) -> None:
    place = make()
    done = place.deploy(1, "--reason", "ticket 41")
    assert done.code == 0, done.err
    assert f"staging serves {place.label(1)} at arn:aws:sagemaker:" in done.out
    assert place.scored() == place.label(1)
    first = place.found()
    assert first is not None
    config = first["EndpointConfigName"]
    assert config.startswith(f"{place.name}-{place.name}-1-")
    described = place.sagemaker.describe_endpoint_config(EndpointConfigName=config)
    (variant,) = described["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.large", 1)
    model = place.sagemaker.describe_model(ModelName=variant["ModelName"])
    assert model["PrimaryContainer"]["ModelPackageName"].endswith(f"model-package/{place.name}/1")
    assert model["ExecutionRoleArn"] == f"arn:aws:iam::123456789012:role/{place.name}-jobs"
    tags = place.sagemaker.list_tags(ResourceArn=first["EndpointArn"])["Tags"]
    assert {"Key": "team", "Value": "growth"} in tags

    done = place.deploy(2)
    assert (done.code, f"instead of {place.label(1)}" in done.out) == (0, True)
    assert place.scored() == place.label(2)
    place.cloud.forget_calls()
    assert place.here("rollback", "staging").code == 0
    assert place.scored() == place.label(1)
    assert place.found()["EndpointConfigName"] == config  # type: ignore[index]
    (row,) = place.here("deployments", "--json").json
    assert (row["model"], row["health"], row["event"]) == (place.label(1), "serving", "rolled back")
    served = place.here("history", place.name, "--at", row["since"], "--target", "staging", "--json").json
    assert served["served"]["version"] == 1

    assert place.here("undeploy", "staging").code == 0
    assert place.found() is None
    assert place.here("deployments", "--json").json[0]["model"] is None
    assert place.story == [
        (1, "deployment begun"),
        (1, "deployed"),
        (2, "deployment begun"),
        (2, "deployed"),
        (1, "deployment begun"),
        (1, "rolled back"),
        (1, "removed"),
    ]


@pytest.mark.soak
def test_a_deployment_to_awss_own_image_serves_and_refuses_as_documented(make: Callable[..., Place]) -> None:
    place = make(versions=2)
    place.machines.image = aws_image()
    done = place.deploy(1)
    assert done.code == 0, done.err
    assert place.scored() == place.label(1)
    runtime = place.cloud.client("sagemaker-runtime", config=ONE_ATTEMPT)

    def refused(body: bytes) -> dict[str, Any]:
        with pytest.raises(ClientError) as caught:
            runtime.invoke_endpoint(EndpointName=place.endpoint, Body=body, ContentType="text/csv")
        made: dict[str, Any] = caught.value.response
        return made

    asked = refused(b"1,2,iron,1")
    assert (asked["Error"]["Code"], asked["OriginalStatusCode"]) == ("ModelError", 400)
    assert json.loads(asked["OriginalMessage"])["column"] == "plan"
    assert refused(b"x" * 6_300_000)["ResponseMetadata"]["HTTPStatusCode"] == 413  # by the service itself
    assert place.here("undeploy", "staging").code == 0


@pytest.mark.soak
def test_an_endpoint_is_made_as_the_target_asks(make: Callable[..., Place]) -> None:
    place = make(
        'instance = "ml.m5.xlarge"\ninstance_count = 2\nkms_key = "arn:aws:kms:eu-west-1:123456789012:key/1"\n'
        'vpc = { subnets = ["subnet-1"], security_groups = ["sg-1"] }\ntags = { cost = "7" }\n'
        'capture = { percent = 80 }\nscaling = { min = 2, max = 5, requests_per_minute = 300 }\nunknown = "missing"'
    )
    done = place.deploy(1)
    assert done.code == 0, done.err
    config = place.sagemaker.describe_endpoint_config(EndpointConfigName=place.found()["EndpointConfigName"])  # type: ignore[index]
    (variant,) = config["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.xlarge", 2)
    assert config["KmsKeyId"].endswith("key/1")
    capture = config["DataCaptureConfig"]
    assert capture["DestinationS3Uri"] == f"s3://{BUCKET}/{place.name}/captured/staging/"
    assert (capture["EnableCapture"], capture["InitialSamplingPercentage"]) == (True, 80)
    asked = [call.parameters for call in place.cloud.calls if call.action == "CreateModel"]
    assert asked[0]["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert asked[0]["PrimaryContainer"]["Environment"] == {
        **ENVIRONMENT,
        "RUNNER_MODEL": place.label(1),
        "RUNNER_SHA256": place.registry.get(place.name, 1).sha256,
        "RUNNER_UNKNOWN": "missing",
    }
    assert {"Key": "cost", "Value": "7"} in asked[0]["Tags"]
    scaling = place.cloud.client("application-autoscaling")
    (found,) = scaling.describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[f"endpoint/{place.endpoint}/variant/all"]
    )["ScalableTargets"]
    assert (found["MinCapacity"], found["MaxCapacity"]) == (2, 5)
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker", ResourceId=found["ResourceId"])[
        "ScalingPolicies"
    ]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 300
    assert place.deploy(2).code == 0
    (asked_to,) = [call.parameters for call in place.cloud.calls if call.action == "UpdateEndpoint"]
    assert asked_to["RetainAllVariantProperties"] is True

    text = place.file.read_text()
    place.file.write_text(text.replace("scaling = ", "# "))
    assert place.deploy(1).code == 0
    left = scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[found["ResourceId"]])
    assert left["ScalableTargets"] == []


@pytest.mark.soak
def test_an_image_of_ones_own_serves_what_is_deployed_by_the_deployer(make: Callable[..., Place]) -> None:
    place = make('serving_image = "own"\nscaling = { min = 1, max = 2, requests_per_minute = 300 }')
    (place.folder / "infra").mkdir()
    shutil.copyfile(ROOT / "infra" / "Dockerfile", place.folder / "infra" / "Dockerfile")
    done = place.deploy(1)
    assert (done.code, f"there is no repository {place.name}-image; deploy infra/image.yaml" in done.err) == (2, True)
    image = own_image(place.name, settings(load(place.file)), place.cloud.region, place.folder)
    ecr = place.cloud.client("ecr")
    ecr.create_repository(repositoryName=image.name)
    ecr.put_image(repositoryName=image.name, imageManifest=MANIFEST, imageTag=image.server)
    for version in (1, 1, 2):
        assert place.deploy(version).code == 0
    models = [one["ModelName"] for one in place.sagemaker.list_models()["Models"]]
    served = [
        place.sagemaker.describe_model(ModelName=name)["PrimaryContainer"]
        for name in models
        if name.startswith(f"{place.name}-")  # moto lists all of them
    ]
    assert {one["Image"] for one in served} == {image.address(image.server)}
    assert place.here("rollback", "staging").code == 0
    place.machines.wrong.add(place.label(2))
    assert place.deploy(2).code == 8
    assert place.here("deployments").code == 0
    assert place.here("undeploy", "staging").code == 0


@pytest.mark.soak
def test_sagemaker_is_told_where_a_version_serves_and_its_refusal_is_a_warning(make: Callable[..., Place]) -> None:
    place = make()

    def stages() -> list[str]:
        arn = f"arn:aws:sagemaker:{place.cloud.region}:123456789012:model-package/{place.name}/"
        found = [place.sagemaker.describe_model_package(ModelPackageName=f"{arn}{number}") for number in (1, 2)]
        return [f"{one['Stage']} {one['StageStatus']}" for one in (each.get("ModelLifeCycle") for each in found) if one]

    done = place.deploy(1, "--reason", "the first")
    assert (done.code, stages(), "SageMaker was not told" in done.err) == (0, ["Staging Serving"], False)
    assert place.deploy(2).code == 0
    assert stages() == ["Staging Retired", "Staging Serving"]
    _, statements = identities(Project=place.name, Bucket=BUCKET, Prefix=place.name, Model=place.name)["deployer"]
    less = [one for one in statements if one["Sid"] != "DeployerPolicy TellStage"]
    place.cloud.grant("dee", less)
    place.extra.update(key("dee"))
    done = place.runner("rollback", "staging")
    assert (done.code, stages()) == (0, ["Staging Retired", "Staging Serving"])
    said = f"SageMaker was not told that {place.label(1)} is serving at stage Staging: sagemaker:UpdateModelPackage"
    assert done.err.count("SageMaker was not told") == done.err.count(said) == 1
    place.extra.clear()
    assert place.here("undeploy", "staging").code == 0
    assert stages() == ["Staging Retired", "Staging Serving"]  # 1 has retired; nothing was told of 2


@pytest.mark.soak
def test_a_serverless_endpoint_has_memory_and_concurrency(make: Callable[..., Place]) -> None:
    place = make("serverless = { memory_mb = 3072, concurrency = 9 }")
    done = place.deploy(1, "--dry-run")
    assert "at most 1.94 USD an hour" in done.out
    assert place.deploy(1).code == 0
    asked = [call.parameters for call in place.cloud.calls if call.action == "CreateEndpointConfig"]
    assert asked[0]["ProductionVariants"][0]["ServerlessConfig"] == {"MemorySizeInMB": 3072, "MaxConcurrency": 9}
    assert "InstanceType" not in asked[0]["ProductionVariants"][0]


@pytest.mark.soak
def test_scaling_is_ended_and_made_anew_where_the_instance_type_changes(make: Callable[..., Place]) -> None:
    """SageMaker updates no endpoint to another type while it is registered for scaling."""
    place = make('instance = "ml.m5.large"\nscaling = { min = 1, max = 2 }')
    scaling = place.cloud.client("application-autoscaling")

    def most() -> list[int]:
        found = scaling.describe_scalable_targets(
            ServiceNamespace="sagemaker", ResourceIds=[f"endpoint/{place.endpoint}/variant/all"]
        )
        return [one["MaxCapacity"] for one in found["ScalableTargets"]]

    assert place.deploy(1).code == 0
    text = place.file.read_text()
    place.file.write_text(text.replace('"ml.m5.large"', '"ml.m5.xlarge"').replace("max = 2", "max = 3"))
    place.cloud.forget_calls()
    place.machines.wrong.add(place.label(2))
    goes_on(place, place.deploy(2), "to its sample record")
    changes = ["DeregisterScalableTarget", "UpdateEndpoint"]
    last = ["RegisterScalableTarget", "PutScalingPolicy"]
    assert [one for one in place.calls() if one in (*changes, *last)] == [*changes, "UpdateEndpoint", *last]
    place.machines.wrong.clear()
    place.cloud.forget_calls()
    done = place.deploy(2)
    assert done.code == 0, done.err
    assert [one for one in place.calls() if one in (*changes, *last)] == [*changes, *last]
    assert (place.scored(), most()) == (place.label(2), [3])


@pytest.mark.soak
def test_a_change_of_kind_is_refused_before_anything_is_touched(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    text = place.file.read_text()
    place.file.write_text(text.replace("[sagemaker]", "[targets.staging.serverless]\n[sagemaker]"))
    place.cloud.forget_calls()
    for more in ((), ("--dry-run",)):
        goes_on(place, place.deploy(2, *more), "is one of instances", "runner undeploy staging")
    assert place.calls() == []
    assert place.story == [(1, "deployment begun"), (1, "deployed")]
    assert place.here("undeploy", "staging").code == 0
    assert place.deploy(2).code == 0
    assert place.scored() == place.label(2)


@pytest.mark.soak
def test_what_nothing_uses_any_more_is_removed_and_what_a_rollback_needs_stays(make: Callable[..., Place]) -> None:
    place = make('[targets.production]\nkind = "sagemaker"')
    place.registry.decide(place.name, 3, "approved", who="ben@desk", why="reviewed")

    def left() -> tuple[list[str], list[str]]:
        """Versions with a model, and with a configuration, of all targets."""
        models = [one["ModelName"] for one in place.sagemaker.list_models()["Models"]]
        configs = [one["EndpointConfigName"] for one in place.sagemaker.list_endpoint_configs()["EndpointConfigs"]]
        mine = ([name for name in some if name.startswith(f"{place.name}-")] for some in (models, configs))
        of_models, of_configs = (sorted(name.split("-")[2] for name in some) for some in mine)
        return of_models, of_configs

    assert place.deploy(1).code == 0
    assert place.here("deploy", place.label(1), "--to", "production").code == 0
    assert left() == (["1"], ["1", "1"])
    assert place.deploy(2).code == 0
    assert left() == (["1", "2"], ["1", "1", "2"])
    assert place.deploy(3).code == 0
    assert left() == (["1", "2", "3"], ["1", "2", "3"])  # production has version 1 still
    assert place.here("rollback", "staging").code == 0
    assert place.here("rollback", "staging").code == 0
    assert place.scored() == place.label(1)
    assert left() == (["1", "2"], ["1", "1", "2"])
    assert place.here("undeploy", "staging").code == 0
    assert left() == (["1"], ["1"])
    assert place.here("undeploy", "production").code == 0
    assert left() == ([], [])


def test_a_dry_run_says_what_it_costs_and_changes_nothing(make: Callable[..., Place]) -> None:
    place = make('instance = "ml.m5.xlarge"\nscaling = { min = 1, max = 4 }')
    done = place.deploy(1, "--dry-run")
    assert done.code == 0, done.err
    assert "1 to 4 × ml.m5.xlarge" in done.out
    assert "at most 0.92 USD an hour" in done.out
    assert f"create the endpoint {place.endpoint}" in done.out
    assert place.calls() == []
    assert place.story == []


# What goes wrong


def goes_on(place: Place, done: Done, *words: str) -> None:
    assert done.code == 8, done.err
    for word in words:
        assert word in done.err
    assert place.scored() == place.label(1)
    assert place.here("deployments", "--json").json[0]["model"] == place.label(1)


@pytest.mark.soak
def test_a_version_that_answers_otherwise_is_taken_back(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    place.machines.wrong.add(place.label(2))
    goes_on(place, place.deploy(2), "answers b'0.123\\n' to its sample record", f"{place.label(1)} goes on")
    assert place.story[2:] == [(2, "deployment begun"), (2, "deployment failed")]
    place.machines.wrong.clear()
    assert place.deploy(2).code == 0


@pytest.mark.soak
def test_a_version_that_does_not_come_up_is_taken_back(make: Callable[..., Place]) -> None:
    place = make()
    place.machines.broken.add(place.label(1))
    done = place.deploy(1)
    assert (done.code, "it did not answer /ping" in done.err) == (8, True)
    assert place.found() is None  # nothing served before
    place.machines.broken.clear()
    assert place.deploy(1).code == 0
    place.machines.broken.add(place.label(2))
    goes_on(place, place.deploy(2), "it did not answer /ping")


def test_only_an_approved_version_is_deployed(make: Callable[..., Place]) -> None:
    place = make()
    done = place.deploy(3)
    assert (done.code, "is pending" in done.err) == (8, True)
    assert place.calls() == []


def swap(place: Place, version: int, data: bytes) -> None:
    found = place.registry.deployable(place.name, version)
    place.cloud.client("s3").put_object(Bucket=BUCKET, Key=found.archive.removeprefix(f"s3://{BUCKET}/"), Body=data)


def archive_of(place: Place, version: int) -> bytes:
    found = place.registry.deployable(place.name, version)
    key = found.archive.removeprefix(f"s3://{BUCKET}/")
    data: bytes = place.cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return data


@pytest.mark.soak
def test_a_swapped_archive_is_refused_before_anything_is_made(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    swap(place, 2, archive_of(place, 3))
    place.cloud.forget_calls()
    goes_on(place, place.deploy(2), "The model archive has the hash", "It was altered")
    assert place.calls() == []
    with pytest.raises(Tampered, match="altered"):  # what `runner approve` asks
        check_archive(place.registry, place.registry.get(place.name, 2))
    swap(place, 1, archive_of(place, 3))
    (row,) = place.here("deployments", "--json").json
    assert (row["health"], "was altered" in row["message"]) == ("unhealthy", True)


@pytest.mark.soak
def test_a_version_that_refuses_what_is_sent_is_deployed_only_where_that_is_allowed(
    make: Callable[..., Place], tmp_path: Path
) -> None:
    place = make()
    assert place.deploy(1).code == 0
    gateway = place.cloud.client("apigateway")
    api = gateway.create_rest_api(name="rest", description=f"predictions of {place.endpoint}")["id"]
    signature = load_model(place.folder / "runs" / RUN.format(1) / MODEL).signature
    schema = json.dumps(record_schema(signature))
    gateway.create_model(restApiId=api, name="Record", contentType="application/json", schema=schema)
    raw = records().assign(region=1.0)
    run = RUN.format(4)
    folder = place.folder / "runs" / run / MODEL
    folder.parent.mkdir(parents=True)
    runner.model.save(folder, trained(raw), raw, target="left", positive="yes")
    fact = artifact(folder, name=MODEL)
    place.registry.register(
        NewVersion(name=place.name, run=run, sha256=fact.sha256, artifact=fact, created_by="ana@desk")
    )
    place.registry.decide(place.name, 4, "approved", who="ben@desk", why="reviewed")
    shutil.rmtree(place.folder / "runs" / RUN.format(1))  # as on another machine: what served is in S3
    lost = {place.label(1): ["region: the column is needed now; requests without it get 400."]}
    for more in ((), ("--dry-run",)):
        done = place.deploy(4, *more)
        assert done.code == 8, done.err
        assert f"{place.label(1)} answers, which serves at staging:\n    {lost[place.label(1)][0]}" in done.err
        assert f"The REST API rest before staging has another schema than {place.label(4)}" in done.err
    assert place.scored() == place.label(1)
    done = place.deploy(4, "--allow-schema-change", "--json")
    assert (done.code, done.json["schema_change"]) == (0, lost), done.err
    begun, deployed = place.registry.events(place.name)[-2:]
    assert (begun.data["schema_change"], deployed.data["schema_change"]) == (lost, lost)
    assert place.here("rollback", "staging").code == 0
    assert place.scored() == place.label(1)


@pytest.mark.soak
def test_two_models_that_begin_at_one_endpoint_at_once_both_leave_it(make: Callable[..., Place]) -> None:
    """By the clock of one of them it was first, by that of the other it was not."""
    place = make()
    assert place.deploy(1).code == 0
    target: Any = Project(place.file).deployer("staging")
    other = LocalRegistry(place.folder / "other.db")
    found = place.registry.get(place.name, 1)
    facts = {name: getattr(found, name) for name in NewVersion.__struct_fields__}
    for name in (place.name, "other"):
        other.register(NewVersion(**{**facts, "name": name}))
    target.registry = other
    data = {"target": "staging", "deployment": "ab", "config": "c", "previous": "p", "process": "7@elsewhere"}
    other.record("other", 1, "deployment begun", who="cleo@elsewhere", why="", data=data)
    change = msgspec.structs.replace(recorded(place.registry, "staging"), id="cd", kind="deployed")
    with pytest.raises(Refused, match="other/1 is being deployed to staging by cleo@elsewhere"):
        target.deploy(change, found)
    assert [event.kind for event in other.events(place.name)][1:] == ["deployment begun", "deployment failed"]
    assert place.scored() == place.label(1)


@pytest.mark.soak
def test_a_version_whose_archive_was_swapped_is_not_approved(make: Callable[..., Place]) -> None:
    place = make()
    manifest = RunManifest(
        run=RUN.format(3),
        pipeline_file="pipeline.toml",
        pipeline=load(place.file),
        started_by="ana@desk",
        started="2026-11-22T10:16:03.000Z",
        status="succeeded",
        steps=[],
        verdict=Verdict(outcome="pass", rules=[], metrics={}),
        environment=provenance.environment(),
        runner_version="0",
    )
    (place.folder / "runs" / RUN.format(3) / "run.json").write_bytes(encode(manifest))
    sound = archive_of(place, 3)
    approve = ("approve", place.label(3), "--reason", "reviewed")
    swap(place, 3, archive_of(place, 2))
    done = place.here(*approve)
    assert (done.code, "It was altered" in done.err) == (8, True), done.err
    assert place.registry.get(place.name, 3).status == "pending"
    swap(place, 3, sound)
    assert place.here(*approve).code == 0


@pytest.mark.soak
def test_an_archive_swapped_while_it_is_deployed_is_taken_back(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    sound, up = archive_of(place, 2), place.hold(2)
    process = place.start("deploy", place.label(2), "--to", "staging")
    until = time.monotonic() + 90
    while (found := place.found()) is None or found["EndpointStatus"] != "Updating":
        assert time.monotonic() < until
        time.sleep(0.05)
    swap(place, 2, archive_of(place, 1))
    up.set()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "was altered" in err) == (8, True), err
    assert place.scored() == place.label(1)
    swap(place, 2, sound)


@pytest.mark.soak
def test_a_name_that_means_something_else_is_refused(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1, "--dry-run").code == 0
    name = next(word for word in place.deploy(1, "--dry-run").out.split() if word.startswith(f"{place.name}-"))
    container = {"Image": "other", "ModelDataUrl": place.registry.deployable(place.name, 2).archive}
    place.sagemaker.create_model(
        ModelName=name, PrimaryContainer=container, ExecutionRoleArn=f"arn:aws:iam::123456789012:role/{place.name}-jobs"
    )
    done = place.deploy(1)
    assert (done.code, "was made otherwise" in done.err) == (8, True)
    assert place.found() is None


@pytest.mark.soak
def test_a_lost_reply_makes_nothing_twice(make: Callable[..., Place]) -> None:
    place = make()
    for action in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint"):
        place.cloud.faults.add(action, LOST_REPLY)
    assert place.deploy(1).code == 0
    assert place.scored() == place.label(1)
    place.cloud.faults.clear()


# Deployments that die, and several at once


@pytest.mark.soak
def test_an_endpoint_that_somebody_else_made_meanwhile_is_left_to_them(make: Callable[..., Place]) -> None:
    place = make(versions=2)
    place.cloud.faults.add("CreateEndpoint", delay_s=3)
    process = place.start("deploy", place.label(1), "--to", "staging")
    until = time.monotonic() + 90
    while not [call for call in place.cloud.calls if call.action == "CreateEndpoint"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    (model,) = [call.parameters["ModelName"] for call in place.cloud.calls if call.action == "CreateModel"]
    variant = {"VariantName": "all", "ModelName": model, "InstanceType": "ml.m5.large"}
    place.sagemaker.create_endpoint_config(
        EndpointConfigName=f"{place.name}-theirs", ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )
    place.sagemaker.create_endpoint(EndpointName=place.endpoint, EndpointConfigName=f"{place.name}-theirs")
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "did not come up with" in err) == (8, True), err
    found = place.found()
    assert found is not None
    assert found["EndpointConfigName"] == f"{place.name}-theirs"


# one before the switch, which is taken back, and one after it, which is finished; the others come to the same


@pytest.mark.soak
@pytest.mark.parametrize("at", FAILPOINTS)
def test_a_deployment_killed_anywhere_is_finished_or_taken_back_by_the_next(
    make: Callable[..., Place], at: str
) -> None:
    place = make()
    assert place.deploy(1).code == 0
    killed = place.runner("deploy", place.label(2), "--to", "staging", env={VARIABLE: at})
    assert killed.code == -signal.SIGKILL
    switched = FAILPOINTS.index(at) >= FAILPOINTS.index("target switched")
    assert place.scored() == place.label(2 if switched else 1)
    done = place.deploy(2)
    assert done.code == 0, done.err
    assert place.scored() == place.label(2)
    ended = [kind for _, kind in place.story[2:]]
    assert ended == {
        "deployment checked": ["deployment begun", "deployed"],
        "target ready": ["deployment begun", "deployment failed", "deployment begun", "deployed"],
    }.get(at, ["deployment begun", "deployed", "deployment begun", "deployed"])


@pytest.mark.soak
def test_a_deployment_killed_while_machines_come_up_is_judged_by_the_next(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    up = place.hold(2)
    place.machines.wrong.add(place.label(2))
    process = place.start("deploy", place.label(2), "--to", "staging")
    until = time.monotonic() + 90
    while (found := place.found()) is None or found["EndpointStatus"] != "Updating":
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (row,) = place.here("deployments", "--json").json
    assert (row["health"], row["model"]) == ("changing", place.label(1))
    up.set()
    assert place.deploy(1).code == 0  # finishes the other one first, which means going back
    assert place.scored() == place.label(1)
    assert place.story[2:] == [
        (2, "deployment begun"),
        (2, "deployment failed"),
        (1, "deployment begun"),
        (1, "deployed"),
    ]


@pytest.mark.soak
def test_of_two_deployments_from_two_checkouts_one_is_refused(make: Callable[..., Place]) -> None:
    place = make()
    place.registry.decide(place.name, 3, "approved", who="ben@desk", why="reviewed")
    assert place.deploy(1).code == 0
    other = make(folder="checkout", versions=0)
    up = [place.hold(number) for number in (2, 3)]  # neither serves, so neither deployment ends before it is let
    started = [one.start("deploy", place.label(number), "--to", "staging") for number, one in ((2, place), (3, other))]
    until = time.monotonic() + 90
    while all(process.poll() is None for process in started):
        assert time.monotonic() < until
        time.sleep(0.05)
    for event in up:
        event.set()
    said = [process.communicate(timeout=100) for process in started]
    assert sorted(process.returncode for process in started) == [0, 8], said
    won = 2 if started[0].returncode == 0 else 3
    assert place.scored() == place.label(won)
    assert place.story[-1] == (won, "deployed") or place.story[-2] == (won, "deployed")
    assert len([1 for _, kind in place.story if kind == "deployed"]) == 2
    assert other.here("deployments", "--json").json[0]["model"] == place.label(won)


@pytest.mark.soak
def test_what_another_machine_began_is_left_to_it_until_it_is_silent(make: Callable[..., Place]) -> None:
    place = make()
    assert place.deploy(1).code == 0
    data = {
        "target": "staging",
        "deployment": "ab",
        "kind": "deployed",
        "config": "c",
        "previous": place.found()["EndpointConfigName"],  # type: ignore[index]
        "replaced": "",
        "process": "7@elsewhere",
    }
    place.registry.record(place.name, 2, "deployment begun", who="cleo@elsewhere", why="", data=data)
    done = place.deploy(2)
    assert (done.code, "is being deployed to staging by cleo@elsewhere since" in done.err) == (8, True)
    made: Any = Project(place.file).deployer("staging")
    assert isinstance(made, SageMakerTarget)
    made.quiet_s = 0.0
    deployment.deploy(place.registry, made, place.name, 2, by=Person("ana@desk"))
    assert place.scored() == place.label(2)
    assert place.story[2:] == [
        (2, "deployment begun"),
        (2, "deployment failed"),
        (2, "deployment begun"),
        (2, "deployed"),
    ]


# Beside the local registry


def test_a_version_of_the_local_registry_is_deployed_too(make: Callable[..., Place]) -> None:
    place = make(registry="local")
    assert not isinstance(place.registry, SageMakerRegistry)
    done = place.deploy(1)
    assert done.code == 0, done.err
    assert place.scored() == place.label(1)
    folder = place.folder / "runs" / RUN.format(2) / MODEL / "model.ubj"
    folder.chmod(0o644)
    folder.write_bytes(folder.read_bytes()[:-1] + b"x")
    goes_on(place, place.deploy(2), "was altered")


def test_names_fit_the_service() -> None:
    plain = SageMakerTargetSpec()
    assert endpoint_name("p", "my_target", plain) == "p-my-target"
    assert endpoint_name("p", "t", SageMakerTargetSpec(endpoint="own")) == "own"
    long = endpoint_name("p" * 63, "production", plain)
    assert len(long) == 63
    assert long != endpoint_name("p" * 63, "staging", plain)


@pytest.mark.soak
def test_what_an_endpoint_captures_is_read_as_what_is_captured_here(make: Callable[..., Place]) -> None:
    place = make("capture = { percent = 100 }", versions=2)
    began = f"{utc_text()[:19]}Z"  # the service says whole seconds
    assert place.deploy(1).code == 0
    runtime = place.cloud.client("sagemaker-runtime", config=ONE_ATTEMPT)
    rows = [[180.5, 3, "gold", True], [None, 4, "südost", False]]
    named = [dict(zip(("minutes", "calls", "plan", "roaming"), row, strict=True)) for row in rows]
    lines = "\n".join(map(json.dumps, named))
    table = "180.5,3,gold,true\n,4,südost,false\n"
    answers = []
    for number, (body, kind) in enumerate(
        [
            (table, "text/csv"),
            (f"minutes,calls,plan,roaming\n{table}", "text/csv; header=present"),
            (json.dumps({"instances": rows}), "application/json"),
            (lines, "application/jsonlines"),
            (lines, "application/x-ndjson"),  # which the configuration does not name: base64
        ]
    ):
        accept = ("text/csv", "application/json", "application/jsonlines")[number % 3]
        reply = runtime.invoke_endpoint(
            EndpointName=place.endpoint,
            Body=body.encode(),
            ContentType=kind,
            Accept=accept,
            InferenceId=f"asked-{number}",
        )
        answers.append(reply["Body"].read())
    # files are in order of their hours, and of what one second wrote in no order
    captured = sorted(Project(place.file).captured("staging", since=began), key=lambda one: one.id)
    # and not the sample, which the deployment has sent
    assert [one.id for one in captured] == [f"asked-{number}" for number in range(5)]
    scores = [float(line) for line in answers[0].splitlines()]
    for one in captured:
        assert (one.version, one.status, one.scores) == (place.label(1), 200, scores)
        assert [record["plan"] for record in one.records] == ["gold", "südost"]
    keys = place.cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=f"{place.name}/captured/staging/")["Contents"]
    path = re.compile(rf"{place.name}/captured/staging/{place.endpoint}/all/\d{{4}}/\d\d/\d\d/\d\d/\d\d-\d\d-.*jsonl")
    assert len([one for one in keys if path.fullmatch(one["Key"])]) == 6
    assert list(Project(place.file).captured("staging", until="2026-01-01T00:00Z")) == []
    (place.folder / "more.jsonl").write_text(lines)
    done = place.here("predict", place.label(1), "more.jsonl", "--capture", "staging")
    assert done.code == 0, done.err
    (beside,) = (one for one in Project(place.file).captured("staging") if one not in captured)
    assert (beside.version, beside.scores, len(beside.rows)) == (place.label(1), scores, 2)
    assert place.here("serve", place.label(1), "--capture", "staging").code == 2
    assert place.here("undeploy", "staging").code == 0


def test_serverless_takes_no_vpc(make: Callable[..., Place]) -> None:
    place = make('serverless = {}\nvpc = { subnets = ["subnet-1"], security_groups = ["sg-1"] }', versions=1)
    done = place.deploy(1)
    assert (done.code, "has no vpc" in done.err) == (2, True)
    with pytest.raises(Refused):
        before(place.registry, "staging")


@pytest.mark.soak
def test_a_version_whose_run_is_elsewhere_is_described_and_scores(make: Callable[..., Place]) -> None:
    """As in a build, which has the repository and no runs."""
    place = make(versions=1)
    elsewhere = make(folder="checkout", versions=0)
    raw = elsewhere.folder / "raw.csv"
    records(5).to_csv(raw, index=False)
    said = {one.folder: one.here("predict", place.label(1), str(raw)) for one in (place, elsewhere)}
    assert [done.code for done in said.values()] == [0, 0], said
    assert len({done.out for done in said.values()}) == 1
    done = elsewhere.here("rest", place.label(1), "--output", str(elsewhere.folder / "rest"))
    assert done.code == 0, done.err
    document = json.loads((elsewhere.folder / "rest" / "openapi.json").read_text())
    assert place.label(1) in json.dumps(document)
    assert elsewhere.here("runs", "--json").json == []
