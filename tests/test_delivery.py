"""What follows a push and an approval: infra/delivery.yaml and infra/deploy.yaml, their function and their roles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from account import identities, key
from cloud import BUCKET, running
from iam import ACCOUNT, INFRA, REGION, Request, Stack, allowing, read_template, rights, unneeded
from small_sagemaker import SmallSageMaker
from support.commands import environment
from support.projects import Project

GROUP = "tiny"
CHAPTER = "## 15. Taking it all away"
LONGEST_INLINE = 4096  # characters of a function within a template
OBJECTS = f"arn:aws:s3:::{BUCKET}"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws"
CONNECTIONS = [
    f"arn:aws:{kind}:{REGION}:{ACCOUNT}:connection/1" for kind in ("codeconnections", "codestar-connections")
]
TEMPLATES = {"delivery.yaml": ("delivery", "start"), "deploy.yaml": ("deploy", "deploy")}  # (folder, the build's name)
RUN = "import json, sys, index\nfor event in json.loads(sys.argv[1]): print(index.handler(event, None))"


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        made.client("s3").put_object(Bucket=BUCKET, Key="model.tar.gz", Body=b"nobody reads it")
        made.attach(identities(Project="tiny", Model=GROUP, Bucket=BUCKET, Prefix="tiny"))
        yield made


@dataclass
class Approvals:
    """A group of versions, the rule that hears of them, and the function that it calls."""

    cloud: SmallSageMaker
    folder: Path
    queue: str

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What CodePipeline was asked to start."""
        return [call.parameters for call in self.cloud.calls if call.service == "codepipeline"]

    def version(self) -> str:
        image = f"111122223333.dkr.ecr.{REGION}.amazonaws.com/sagemaker-xgboost:3.2-0"
        container = {"Image": image, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
        specification = {"Containers": [container], "SupportedContentTypes": [], "SupportedResponseMIMETypes": []}
        made = self.cloud.client("sagemaker").create_model_package(
            ModelPackageGroupName=GROUP,
            InferenceSpecification=specification,
            ModelApprovalStatus="PendingManualApproval",
        )
        return str(made["ModelPackageArn"])

    def change(self, arn: str, **changed: Any) -> None:
        self.cloud.client("sagemaker").update_model_package(ModelPackageArn=arn, **changed)

    def events(self) -> list[dict[str, Any]]:
        """Those that the rule has passed on since the last call."""
        inbox = self.cloud.client("sqs")
        found = inbox.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in found:
            inbox.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in found]

    def handle(self, events: list[dict[str, Any]]) -> list[str]:
        """What the function answers to each."""
        here = {**self.cloud.environment, **key("tiny-deploy-start"), **read_variables()}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", RUN, json.dumps(events)], cwd=self.folder, text=True,
            capture_output=True, env=environment(here), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def started(self) -> list[str]:
        return self.handle(self.events())


def read_variables() -> dict[str, str]:
    stack = Stack(INFRA / "deploy.yaml", Project="tiny", Model=GROUP, Bucket=BUCKET)
    found: dict[str, str] = stack.render(stack.template["Resources"]["Start"]["Properties"]["Environment"]["Variables"])
    return found


@pytest.fixture
def approvals(cloud: SmallSageMaker, tmp_path: Path) -> Iterator[Approvals]:
    code = read_template(INFRA / "deploy.yaml")["Resources"]["Start"]["Properties"]["Code"]["ZipFile"]
    assert len(code) <= LONGEST_INLINE
    (tmp_path / "index.py").write_text(code, encoding="utf-8")
    stack = Stack(INFRA / "deploy.yaml", Project="tiny", Model=GROUP)
    pattern = stack.render(stack.template["Resources"]["ApprovedRule"]["Properties"]["EventPattern"])
    cloud.client("events").put_rule(Name="approved", EventPattern=json.dumps(pattern))
    queue = cloud.client("sqs").create_queue(QueueName="approved")["QueueUrl"]
    target = {"Id": "1", "Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:approved"}
    cloud.client("events").put_targets(Rule="approved", Targets=[target])
    cloud.client("sagemaker").create_model_package_group(ModelPackageGroupName=GROUP)
    cloud.forget_calls()
    made = Approvals(cloud, tmp_path, queue)
    yield made
    service = cloud.client("sagemaker")
    for found in service.list_model_packages(ModelPackageGroupName=GROUP)["ModelPackageSummaryList"]:
        service.delete_model_package(ModelPackageName=found["ModelPackageArn"])
        mark = f"{read_variables()['MARKS']}{found['ModelPackageVersion']}.txt"
        cloud.client("s3").delete_object(Bucket=BUCKET, Key=mark)
    service.delete_model_package_group(ModelPackageGroupName=GROUP)
    made.events()


@pytest.mark.soak
def test_each_approval_deploys_once_and_no_later_edit_deploys_a_version_again(approvals: Approvals) -> None:
    first = approvals.version()
    assert approvals.started() == ["None"]
    approvals.cloud.forget_calls()
    approvals.change(first, ModelApprovalStatus="Approved")
    (approved,) = approvals.events()
    # the service may send it twice, and the function may end between its start and its mark
    assert approvals.handle([approved, approved]) == ["execution-1", "None"]
    approvals.cloud.client("s3").delete_object(Bucket=BUCKET, Key=f"{read_variables()['MARKS']}1.txt")
    assert approvals.handle([approved]) == ["execution-1"]
    assert approvals.asked[0]["name"] == "deploy-tiny"
    assert approvals.asked[0]["variables"] == [{"name": "version", "value": "1"}]

    approvals.change(first, CustomerMetadataProperties={"ticket": "1"})
    approvals.change(first, ModelApprovalStatus="Approved", ApprovalDescription="said again")
    edits = approvals.events()
    assert [event["detail"]["ModelApprovalStatus"] for event in edits] == ["Approved"] * 2
    assert approvals.handle(edits) == ["None"] * 2
    for event in edits:  # a service that does not tell which fields were changed
        del event["detail"]["UpdatedModelPackageFields"]
    assert approvals.handle(edits) == ["None"] * 2

    second = approvals.version()
    approvals.change(second, ModelApprovalStatus="Approved")
    assert approvals.started() == ["None", "execution-2"]
    approvals.change(first, ModelApprovalStatus="Rejected")
    approvals.change(first, ModelApprovalStatus="Approved")
    assert approvals.started() == ["None"] * 2  # an older one than what was approved since
    approvals.change(second, ModelApprovalStatus="Rejected")
    assert approvals.started() == ["None"]
    approvals.change(second, ModelApprovalStatus="Approved")
    assert approvals.started() == ["execution-3"]

    used = approvals.cloud.asked("tiny-deploy-start")
    # AWS's guide names packages alone: see docs/sagemaker.md, "Not verified"
    used += [
        Request("sagemaker:ListModelPackages", f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package-group/{GROUP}")
    ]
    used += [Request(f"logs:{verb}", f"{LOGS}/lambda/tiny-deploy-start:log-stream:a") for verb in LOG]
    granted = rights("deploy.yaml", "StartRole", Project="tiny", Model=GROUP, Bucket=BUCKET)
    assert [made for made in used if not allowing(granted, made)] == []
    assert unneeded(granted, used) == []


def test_an_edit_of_a_version_from_before_the_stack_deploys_nothing(approvals: Approvals) -> None:
    first, second = approvals.version(), approvals.version()
    for arn in (first, second):
        approvals.change(arn, ModelApprovalStatus="Approved")
    approvals.events()  # nobody listened yet
    approvals.change(second, CustomerMetadataProperties={"ticket": "1"})
    approvals.change(first, ModelApprovalStatus="Approved")
    assert approvals.started() == ["None"] * 2
    assert approvals.asked == []


LOG = ("CreateLogStream", "PutLogEvents")


def asked_of_pipeline(folder: str, build: str, connection: str) -> list[Request]:
    """What CodePipeline does as the pipeline's role: its "Minimum permissions for the service role", by action."""
    artifact = f"{OBJECTS}/{folder}-tiny/checkout/1.zip"
    found = [Request(f"s3:{verb}", artifact) for verb in ("GetObject", "GetObjectVersion", "PutObject", "PutObjectAcl")]
    found += [Request(f"s3:GetBucket{what}", OBJECTS) for what in ("Acl", "Location", "Versioning")]
    # the action has the prefix that the connection's ARN has
    found += [Request(f"{connection.split(':')[2]}:UseConnection", connection)]
    project = f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/tiny-{build}"
    found += [Request(f"codebuild:{verb}", project) for verb in ("BatchGetBuilds", "StartBuild")]
    return found


def asked_of_build(folder: str, build: str, connection: str) -> list[Request]:
    """What CodeBuild does as the build's role before its first command and after its last."""
    artifact = f"{OBJECTS}/{folder}-tiny/checkout/1.zip"
    found = [Request(f"logs:{verb}", f"{LOGS}/codebuild/tiny-{build}:log-stream:1") for verb in LOG]
    verbs = ["GetObject", "GetObjectVersion"] + (["PutObject", "PutObjectAcl"] if folder == "delivery" else [])
    found += [Request(f"s3:{verb}", artifact) for verb in verbs]
    if folder == "delivery":  # it clones by itself, so that it has the history
        kind = connection.split(":")[2]
        found += [
            Request(f"{kind}:{verb}", connection) for verb in ("GetConnection", "GetConnectionToken", "UseConnection")
        ]
    return found


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_pipeline_gets_past_its_source_whenever_its_connection_was_made(template: str) -> None:
    folder, build = TEMPLATES[template]
    role = {"delivery.yaml": "DeliveryRole", "deploy.yaml": "PipelineRole"}[template]
    every: dict[str, list[Request]] = {role: [], "BuildRole": []}
    topic = [Request("sns:Publish", f"arn:aws:sns:{REGION}:{ACCOUNT}:tiny-deploy")] if template == "deploy.yaml" else []
    endpoints = [
        Request("sagemaker:InvokeEndpoint", f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/churn-{target}")
        for target in ("staging", "production")
        if template == "deploy.yaml"
    ]
    for connection in CONNECTIONS:
        for who, asked in (
            (role, asked_of_pipeline(folder, build, connection) + topic),
            ("BuildRole", asked_of_build(folder, build, connection) + endpoints),
        ):
            granted = rights(template, who, Project="tiny", Bucket=BUCKET, Connection=connection)
            assert [made for made in asked if not allowing(granted, made)] == []
            assert not allowing(granted, Request("s3:PutObject", f"{OBJECTS}/tiny/models/0/model.tar.gz"))
            every[who] += asked
    for who, asked in every.items():  # both prefixes on one connection, as one policy is for either
        placed = [
            Request(made.action, CONNECTIONS[0] if ":connection/" in made.resource else made.resource) for made in asked
        ]
        granted = rights(template, who, Project="tiny", Bucket=BUCKET, Connection=CONNECTIONS[0])
        assert unneeded(granted, placed) == []


def test_the_build_of_a_pull_request_writes_its_log_and_can_do_nothing_else() -> None:
    """What it runs is the request's: whatever its role may, a stranger may."""
    granted = rights("delivery.yaml", "PullRequestRole", Project="tiny", Bucket=BUCKET, Connection=CONNECTIONS[0])
    asked = [Request(f"logs:{verb}", f"{LOGS}/codebuild/tiny-pull-request:log-stream:1") for verb in LOG]
    assert all(allowing(granted, made) for made in asked)
    assert unneeded(granted, asked) == []
    others = [made for connection in CONNECTIONS for made in asked_of_build("delivery", "start", connection)]
    assert [made for made in others if allowing(granted, made)] == []
    role = read_template(INFRA / "delivery.yaml")["Resources"]["PullRequestRole"]["Properties"]
    assert "ManagedPolicyArns" not in role
    build = read_template(INFRA / "delivery.yaml")["Resources"]["PullRequest"]["Properties"]
    assert "Auth" not in build["Source"]  # the connection's token would be the role's to ask for
    assert build["Artifacts"] == {"Type": "NO_ARTIFACTS"}
    policy = build["Triggers"]["PullRequestBuildPolicy"]
    assert policy["RequiresCommentApproval"] == "FORK_PULL_REQUESTS"
    assert set(policy["ApproverRoles"]) == {"GITHUB_WRITE", "GITHUB_MAINTAIN", "GITHUB_ADMIN"}


def test_the_chapter_on_removal_removes_all_that_the_guides_have_made() -> None:
    guides = [path.read_text(encoding="utf-8") for path in (INFRA.parent / "docs").glob("*.md")]
    made = [found for text in guides for found in re.findall(r"(?m)^\$ (.+(?:\\\n.+)*)", text)]
    chapter = next(text for text in guides if CHAPTER in text).partition(CHAPTER)[2].partition("\n## ")[0]
    stacks = {
        one for line in made for one in re.findall(r"cloudformation deploy .*?--stack-name (\S+)", line, re.DOTALL)
    }
    assert len(stacks) >= 6
    at = {stack: chapter.index(f"delete-stack --stack-name {stack}\n") for stack in stacks}
    assert max(at, key=lambda stack: at[stack]) == "churn-policies"  # the others' roles have its policies
    assert all(chapter.index("runner undeploy") < place for place in at.values())
    for begun, ended in (
        (r"iam attach-user-policy (.+)", "iam detach-user-policy {}"),
        (r"secretsmanager create-secret --name (\S+)", "delete-secret --secret-id {}"),
        (r"create-studio-lifecycle-config --studio-lifecycle-config-name (\S+)", "lifecycle-config-name {}"),
    ):
        found = [one for line in made for one in re.findall(begun, line)]
        assert found, begun
        assert [one for one in found if ended.format(one) not in chapter] == []
    # what the templates, `package` and the project itself write to the bucket
    for folder in ("churn/ --recursive", '"deploy-*"', '"delivery-*"', '"rest/*"'):
        assert folder in chapter


def test_the_build_does_with_commands_that_there_are(project: Project) -> None:
    stack = Stack(INFRA / "deploy.yaml")
    commands = stack.template["Resources"]["Build"]["Properties"]["Source"]["BuildSpec"]
    for command in ("deploy", "rest", "deployments"):
        assert f"- runner {command} " in commands
        assert project.runner(command, "--help").code == 0
    stages = stack.template["Resources"]["Pipeline"]["Properties"]["Stages"]
    assert [stage["Name"] for stage in stages] == ["Source", "Staging", "Approval", "Production"]
    for stage in (stages[1], stages[3]):
        given = stack.render(stage["Actions"][0]["Configuration"]["EnvironmentVariables"])
        assert {one["name"] for one in json.loads(given)} == {"VERSION", "EXECUTION", "TARGET", "ENDPOINT", "SCHEMA"}
    assert "--allow-schema-change" in project.runner("deploy", "--help").out
    assert '$( [ "$SCHEMA" = allow ] && echo --allow-schema-change )' in commands
