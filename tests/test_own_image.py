"""An image of one's own, from `runner image push` to jobs that install nothing and an endpoint that serves with it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cloud import BUCKET, RemoteProject, jobs, running
from iam import ACCOUNT, INFRA, REGION, Request, Stack, allowing, read_template, rights, unneeded
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from small_sagemaker.serving import ServingContainer, runner_image
from support.commands import Done
from support.models import records, saved
from support.projects import ROOT, parameters
from support.serving_image import ask, documented, status_of

import runner.model
from runner.aws.package import ENVIRONMENT, package
from runner.content import artifact

KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
STACK = {"Project": "tiny", "Bucket": BUCKET, "Prefix": "tiny", "KmsKeyArn": KEY}
NAME = "tiny-image"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{NAME}"
TOML = """
name = "tiny"
[steps.only]
notebook = "nb.ipynb"
outputs = { table = "t.txt" }
"""
SETTINGS = f"""
[sagemaker]
bucket = "{BUCKET}"
role = "arn:aws:iam::{ACCOUNT}:role/tiny-jobs"
image = "own"
python = "3.11"
poll_s = 0.1
kms_key = "{KEY}"
"""


@dataclass(frozen=True)
class Place(RemoteProject):
    """A project whose commands are made as `who`: "builder" has the policy for images, "caller" that for runs."""

    def as_(self, who: str, *arguments: str) -> Done:
        return replace(self, extra={"AWS_ACCESS_KEY_ID": f"{CLIENT_KEY}.{who}"}).here(*arguments)

    def push(self, *options: str, who: str = "builder") -> Done:
        return self.as_(who, "image", "push", *options)

    def tags(self) -> list[str]:
        found = self.cloud.client("ecr").describe_images(repositoryName=NAME)["imageDetails"]
        return sorted(tag for one in found for tag in one.get("imageTags", []))

    def builds(self) -> int:
        return sum(call.action == "StartBuild" for call in self.cloud.calls)


def create_project(cloud: SmallSageMaker, name: str = NAME, **changed: Any) -> None:
    """The CodeBuild project of infra/image.yaml, read from the template: moto's CloudFormation makes none."""
    stack = Stack(INFRA / "image.yaml", **STACK)
    wanted = stack.render(stack.template["Resources"]["Build"]["Properties"])
    source, environment = wanted["Source"], wanted["Environment"]
    assert [one["Name"] for one in environment["EnvironmentVariables"]] == ["REPOSITORY"]
    address = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name}"
    cloud.client("codebuild").delete_project(name=name)  # of the test before
    cloud.client("codebuild").create_project(
        name=name,
        serviceRole=f"arn:aws:iam::{ACCOUNT}:role/{name}",
        source={"type": source["Type"], "location": source["Location"], "buildspec": source["BuildSpec"]},
        artifacts={"type": "NO_ARTIFACTS"},
        environment={
            "type": environment["Type"],
            "image": environment["Image"],
            "computeType": environment["ComputeType"],
            "privilegedMode": environment["PrivilegedMode"],
            "environmentVariables": [{"name": "REPOSITORY", "value": address}],
            **changed,
        },
    )


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        policies = Stack(INFRA / "policies.yaml", **STACK, Model="tiny")
        made.grant("builder", policies.policy("ImagePolicy"), f"arn:aws:iam::{ACCOUNT}:user/builder")
        made.grant("caller", policies.policy("CallerPolicy"), f"arn:aws:iam::{ACCOUNT}:user/caller")
        made.grant("tiny-jobs", policies.policy("JobPolicy"))
        made.grant(NAME, rights("image.yaml", "BuildRole", **STACK))
        yield made


@pytest.fixture
def place(cloud: SmallSageMaker, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, cloud, settings=SETTINGS)
    made.write("nb.ipynb", parameters("table: str = 'work/t'"), "open(table, 'w').write('1')")
    made.toml(TOML)
    (tmp_path / "infra").mkdir()
    shutil.copyfile(ROOT / "infra/Dockerfile", tmp_path / "infra/Dockerfile")
    cloud.forget_calls()
    yield made
    for one in cloud.client("ecr").describe_repositories()["repositories"]:
        cloud.client("ecr").delete_repository(repositoryName=one["repositoryName"], force=True)


@pytest.fixture
def deployed(place: Place) -> Place:
    repository = read_template(INFRA / "image.yaml")["Resources"]["Repository"]["Properties"]
    place.cloud.client("ecr").create_repository(
        repositoryName=NAME, imageTagMutability=repository["ImageTagMutability"]
    )
    logs = place.cloud.client("logs")
    if not logs.describe_log_groups(logGroupNamePrefix=f"/aws/codebuild/{NAME}")["logGroups"]:
        logs.create_log_group(logGroupName=f"/aws/codebuild/{NAME}")
    create_project(place.cloud)
    return place


@pytest.mark.soak
def test_an_image_is_built_once_and_jobs_in_it_install_nothing(deployed: Place) -> None:
    place = deployed
    dry = place.push("--dry-run", "--json")
    (asked,) = dry.json["images"]
    assert (dry.code, asked["outcome"], place.builds()) == (0, "would build", 0)
    done = place.push()
    assert done.code == 0, done.err
    (address,) = asked["addresses"]
    assert done.out.split()[:2] == [address, "built"]
    assert re.fullmatch(rf"{re.escape(REGISTRY)}:[0-9a-f]{{16}}", address)
    again = place.push("--json")
    assert (again.json["images"][0]["outcome"], again.json["images"][0]["size_bytes"] > 0) == ("there", True)
    assert (place.builds(), place.tags()) == (1, [address.rpartition(":")[2]])
    # what is handed over has nothing of the data
    s3 = place.cloud.client("s3")
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET, Prefix="tiny/images/")["Contents"]]
    assert {key.rpartition("/")[2] for key in keys} == {"source.zip", "build.json"}
    # jobs
    ran = place.as_("caller", "run", "--on", "sagemaker")
    assert ran.code == 0, ran.err
    (job,) = place.cloud.jobs()
    assert job["AppSpecification"]["ImageUri"] == address
    log = next(place.folder.glob("runs/*/steps/only/job.log")).read_text()
    assert "image equals the lock, nothing installed" in log
    assert not [call for call in place.cloud.calls if "/wheels/" in str(call.parameters.get("Key", ""))]
    # another lock
    with (place.folder / "requirements.lock").open("a") as file:
        file.write("# one line more\n")
    place.write("nb.ipynb", parameters("table: str = 'work/t'"), "open(table, 'w').write('2')")  # or it is cached
    before = jobs(place.cloud)
    stale = place.as_("caller", "run", "--on", "sagemaker")
    assert stale.code == 2
    assert '[sagemaker] image = "own", and tiny-image has no image of this requirements.lock' in stale.err
    assert "was made of another one: `runner image push` builds it." in stale.err
    assert jobs(place.cloud) == before
    assert place.push().code == 0
    assert len(place.tags()) == 2


@pytest.mark.soak
def test_a_build_that_fails_leaves_with_the_end_of_its_log_and_the_next_is_another(deployed: Place) -> None:
    place = deployed
    create_project(place.cloud, privilegedMode=False)
    failed = place.push()
    assert failed.code == 7
    assert re.search(r"The build tiny-image:\S+ ended FAILED\. Error while executing command", failed.err)
    assert "Is the docker daemon running?" in failed.err  # the log's last line
    assert (failed.out, place.tags()) == ("", [])
    s3 = place.cloud.client("s3")
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="tiny/images/")["Contents"]
    for note in [one["Key"] for one in listed if one["Key"].endswith("build.json")]:
        s3.put_object(Bucket=BUCKET, Key=note, Body=b'{"id"')  # damaged: as if nobody had started one
    assert place.push().code == 7
    create_project(place.cloud)
    with (place.folder / "requirements.lock").open("a") as file:  # so that what is handed over was never there
        file.write("# another\n")
    assert place.push("--no-wait").code == 0
    assert place.push().code == 0
    assert place.builds() == 3  # the one that was started was followed
    # neither policy has anything that was not needed for that
    builder = Stack(INFRA / "policies.yaml", **STACK, Model="tiny").policy("ImagePolicy")
    assert unneeded(builder, place.cloud.asked("builder")) == []
    assert unneeded(rights("image.yaml", "BuildRole", **STACK), place.cloud.asked(NAME)) == []


@pytest.mark.soak
def test_two_who_build_the_same_at_once_both_get_it(deployed: Place) -> None:
    place = deployed
    file = place.folder / "pipeline.toml"
    file.write_text(file.read_text().replace('image = "own"', 'image = "own"\nserving_image = "own"'))
    first = place.push("--no-wait")
    assert "building" in first.out
    for one in place.cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="tiny/images/")["Contents"]:
        if one["Key"].endswith("build.json"):  # which the second has not seen
            place.cloud.client("s3").delete_object(Bucket=BUCKET, Key=one["Key"])
    second = place.push()
    assert (second.code, place.builds()) == (0, 2), second.err
    jobs_tag, server_tag = place.tags()
    assert server_tag.startswith(f"{jobs_tag}-")
    # a Pipeline has both: its jobs start the one, and what they register is served by the other
    assert place.as_("caller", "pipeline", "push").code == 0
    sagemaker, s3 = place.cloud.client("sagemaker"), place.cloud.client("s3")
    definition = json.loads(sagemaker.describe_pipeline(PipelineName="tiny")["PipelineDefinition"])
    images = {step["Arguments"]["AppSpecification"]["ImageUri"] for step in definition["Steps"]}
    assert images == {f"{REGISTRY}:{jobs_tag}"}
    listed = s3.list_objects_v2(Bucket=BUCKET, Prefix="tiny/steps/")["Contents"]
    (pushed,) = [one["Key"] for one in listed if one["Key"].endswith("/pipeline.json")]
    content = json.loads(s3.get_object(Bucket=BUCKET, Key=pushed)["Body"].read())
    assert content["serving_image"] == f"{REGISTRY}:{server_tag}"


@pytest.mark.soak
def test_what_is_missing_is_told_in_one_sentence_with_what_to_do(place: Place) -> None:
    """Nothing of infra/image.yaml, then no image, then one of another lock, told by whoever needs one."""
    pushed = place.push()
    assert pushed.code == 2
    assert "There is no repository tiny-image in eu-west-1. Deploy infra/image.yaml" in pushed.err
    asks = '[sagemaker] image = "own", and '
    absent = f"{asks}there is no repository tiny-image; deploy infra/image.yaml"
    before = jobs(place.cloud)
    assert absent in place.as_("caller", "run", "--on", "sagemaker").err
    place.cloud.client("ecr").create_repository(repositoryName=NAME)
    ran = place.as_("caller", "run", "--on", "sagemaker")
    assert (ran.code, jobs(place.cloud)) == (2, before)
    assert f"{asks}tiny-image has no image yet: `runner image push` builds it." in ran.err
    pipeline = place.as_("caller", "pipeline", "push")
    assert (pipeline.code, "tiny-image has no image yet" in pipeline.err) == (2, True)
    assert place.as_("caller", "pipeline", "show").code == 0  # asks nobody
    checks = {one["name"]: one for one in place.as_("caller", "doctor", "--on", "sagemaker", "--json").json["checks"]}
    assert checks["image"]["status"] == "failed"
    assert checks["image"]["message"] == f"{asks}tiny-image has no image yet"
    assert checks["image"]["remedy"] == "`runner image push` builds it."
    file = place.folder / "pipeline.toml"
    file.write_text(file.read_text().replace('image = "own"', 'image = "own:1"'))
    unasked = place.push()
    assert (unasked.code, "Nothing in pipeline.toml asks for an image of your own" in unasked.err) == (2, True)


def test_nobody_who_starts_runs_may_build_or_replace_an_image() -> None:
    stack = Stack(INFRA / "policies.yaml", **STACK, Model="tiny")
    repository = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{NAME}"
    project = f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{NAME}"
    for who in ("CallerPolicy", "JobPolicy", "ApproverPolicy", "DeployerPolicy"):
        assert not allowing(stack.policy(who), Request("codebuild:StartBuild", project))
        assert not allowing(stack.policy(who), Request("ecr:PutImage", repository))
    builder = stack.policy("ImagePolicy")
    assert not allowing(builder, Request("codebuild:StartBuild", project.replace("tiny", "other")))
    assert not allowing(builder, Request("ecr:PutImage", repository))
    assert not allowing(builder, Request("s3:GetObject", f"arn:aws:s3:::{BUCKET}/tiny/data/in.csv"))


def test_the_image_serves_a_model_with_every_documented_status_and_refuses_an_altered_one(tmp_path: Path) -> None:
    image = runner_image(tmp_path / "image", ROOT / "infra/Dockerfile", ROOT / "runner")
    folder = saved(tmp_path / "model")
    told = {**ENVIRONMENT, "RUNNER_MODEL": "leaving/3", "RUNNER_SHA256": artifact(folder, name="model").sha256}
    raw = records(30)
    container = ServingContainer(image, package(folder).archive, told)
    try:
        expected = runner.model.load(folder).predict(raw).tolist()
        status, headers, body = ask(container, raw.to_csv(index=False), "text/csv; header=present", "text/csv")
        assert (status, headers["x-model"], [float(line) for line in body.splitlines()]) == (200, "leaving/3", expected)
        # by whatever name the service calls it
        assert ask(container, "1,2,gold,1", Host="model.aws.local:8080")[0] == 200
        found = {
            ask(container, "1,2,iron,1")[0],
            ask(container, "1,2,gold,1", accept="image/png")[0],
            ask(container, "1,2,gold,1", "image/png")[0],
            status_of(container, "GET /nowhere HTTP/1.1\nHost: x\n\n"),
            status_of(container, "GET /invocations HTTP/1.1\nHost: x\n\n"),
        }
        assert found == documented()
    finally:
        container.close()
    with pytest.raises(RuntimeError, match="The model cannot be served: The model was altered: its hash is"):
        ServingContainer(image, package(folder).archive, {**told, "RUNNER_SHA256": "00" * 32})
