"""The whole way, each call under the policies of whoever makes it: push, execution, approval, deployment, REST, rollback.

The delivery and the deploy pipeline run as their templates say, the churn notebooks as jobs on the real table, and the
endpoints as containers of AWS's serving image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from account import attach, key
from cloud import BUCKET, running
from code_pipeline import CodePipeline, git
from iam import ACCOUNT, INFRA, REGION, Stack
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from support.commands import environment
from support.machines import Machines
from support.projects import REAL_TABLE, ROOT
from support.rest_front import front
from support.serving_image import aws_image

ROLE = f"arn:aws:iam::{ACCOUNT}:role/churn-jobs"
CONNECTION = f"arn:aws:codeconnections:{REGION}:{ACCOUNT}:connection/1"
REPOSITORY = ("runner", "notebooks", "infra", "Makefile", "pyproject.toml", "requirements.lock", "requirements-all.lock",
              "codebuild-buildspec.yml", "README.md")  # fmt: skip
SETTINGS = f"""
[sagemaker]
region = "{REGION}"
bucket = "{BUCKET}"
role = "{ROLE}"
image = "{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/own:1"
python = "{sys.version_info[0]}.{sys.version_info[1]}"
packages = "image"
poll_s = 0.2
[targets.staging]
kind = "sagemaker"
[targets.production]
kind = "sagemaker"
"""
HANDLE = "import json, sys, index\nprint(index.handler(json.loads(sys.argv[1]), None))"


@dataclass
class Account:
    """The stacks of docs/sagemaker.md in an account, and the repository that they listen to."""

    cloud: SmallSageMaker
    repository: Path
    folder: Path
    delivery: CodePipeline
    deploy: CodePipeline
    queue: str

    def commit(self, message: str) -> None:
        git(self.repository, "add", "--all")
        git(self.repository, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "-qm", message)

    def push(self) -> None:
        """What the push starts; raises AssertionError with the build's log where it fails."""
        execution = self.delivery.start(token=git(self.repository, "rev-parse", "HEAD"))
        self.delivery.go_on(execution)
        assert execution.done == ["Source", "Start"], execution.logs

    def client(self, service: str, who: str) -> Any:
        return self.cloud.client(service, access_key=f"{CLIENT_KEY}.{who}")

    def ended(self) -> str:
        """How the newest execution of the SageMaker Pipeline ended."""
        service = self.client("sagemaker", "caller")
        newest = service.list_pipeline_executions(PipelineName="churn", SortBy="CreationTime", SortOrder="Descending")
        arn = newest["PipelineExecutionSummaries"][0]["PipelineExecutionArn"]
        while True:
            described = service.describe_pipeline_execution(PipelineExecutionArn=arn)
            if described["PipelineExecutionStatus"] != "Executing":
                steps = service.list_pipeline_execution_steps(PipelineExecutionArn=arn)["PipelineExecutionSteps"]
                failed = [one.get("FailureReason") for one in steps if one["StepStatus"] == "Failed"]
                return " ".join([described["PipelineExecutionStatus"], *map(str, failed)])
            time.sleep(0.5)

    def approve(self, version: int) -> None:
        """As Studio's button does it, by somebody who may decide and do nothing else."""
        package = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package/churn/{version}"
        self.client("sagemaker", "approver").update_model_package(
            ModelPackageArn=package, ModelApprovalStatus="Approved", ApprovalDescription="metrics reviewed"
        )

    def told(self) -> list[str]:
        """What the function answers to each event that the rule has passed on since the last call."""
        inbox = self.cloud.client("sqs")
        found = inbox.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        answers = []
        for message in found:
            inbox.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
            variables = self.deploy.stack.render(
                self.deploy.stack.template["Resources"]["Start"]["Properties"]["Environment"]["Variables"]
            )
            here = {**self.cloud.environment, **variables, **key("churn-deploy-start")}
            done = subprocess.run(
                [sys.executable, "-c", HANDLE, message["Body"]], cwd=self.folder, text=True, capture_output=True,
                env=environment(here), check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            answers.append(done.stdout.strip())
        return answers

    def runner(self, who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in a checkout of the repository, by a person with one policy."""
        return subprocess.run(
            [Path(sys.prefix, "bin", "runner"), *arguments], cwd=self.repository, text=True,
            env=environment({**self.cloud.environment, **key(who)}), capture_output=True, check=False,
        )  # fmt: skip


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    if not REAL_TABLE.exists():
        pytest.skip(f"the real table is not at {REAL_TABLE}")
    machines = Machines(tmp_path)
    machines.image = aws_image()
    with ExitStack() as stack:
        stack.callback(machines.close)
        cloud = stack.enter_context(running(on_endpoint=machines))
        machines.cloud = cloud
        common = {"Project": "churn", "Bucket": BUCKET, "Connection": CONNECTION}
        repository = tmp_path / "repository"
        build = {**environment(cloud.environment), "PATH": os.environ["PATH"]}
        delivery, deploy = (
            CodePipeline(cloud, Stack(INFRA / f"{name}.yaml", **common), repository, tmp_path, build)
            for name in ("delivery", "deploy")
        )
        queue = furnish(cloud, deploy.stack)
        (tmp_path / "index.py").write_text(deploy.stack.template["Resources"]["Start"]["Properties"]["Code"]["ZipFile"])
        fill(repository)
        attach(cloud, repository / "pipeline.toml")
        yield Account(cloud, repository, tmp_path, delivery, deploy, queue)


def fill(repository: Path) -> None:
    """The project as it is cloned, with the changes of docs/sagemaker.md."""
    repository.mkdir()
    skip = shutil.ignore_patterns("work", ".ipynb_checkpoints", "__pycache__")
    for name in REPOSITORY:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, repository / name, **({"ignore": skip} if (ROOT / name).is_dir() else {}))
    text = (ROOT / "pipeline.toml").read_text().replace('registry = "local"', 'registry = "sagemaker"')
    text = text.replace('"./data/churn.csv"', f'"s3://{BUCKET}/churn/data/june/churn.txt"')
    (repository / "pipeline.toml").write_text(text + SETTINGS)
    (repository / ".gitignore").write_text(".venv*\n/runs/\n__pycache__/\n")
    git(repository, "init", "-q", "-b", "main")


def furnish(cloud: SmallSageMaker, deploy: Stack) -> str:
    """The role that is looked at, the image, and a queue where the rule's function is."""
    trust = Stack(INFRA / "policies.yaml").template["Resources"]["JobRole"]["Properties"]["AssumeRolePolicyDocument"]
    cloud.client("iam").create_role(RoleName="churn-jobs", AssumeRolePolicyDocument=json.dumps(trust))
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"})
    cloud.client("ecr").create_repository(repositoryName="own")
    cloud.client("ecr").put_image(repositoryName="own", imageManifest=manifest, imageTag="1")
    pattern = deploy.render(deploy.template["Resources"]["ApprovedRule"]["Properties"]["EventPattern"])
    cloud.client("events").put_rule(Name="approved", EventPattern=json.dumps(pattern))
    queue = cloud.client("sqs").create_queue(QueueName="approved")["QueueUrl"]
    target = {"Id": "1", "Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:approved"}
    cloud.client("events").put_targets(Rule="approved", Targets=[target])
    return str(queue)


@pytest.mark.soak
def test_a_push_becomes_an_answer_in_production_and_is_taken_back(account: Account) -> None:
    cloud = account.cloud
    uploaded = cloud.client("s3")
    uploaded.upload_file(str(REAL_TABLE), BUCKET, "churn/data/june/churn.txt")
    account.commit("The first notebooks")
    account.push()
    assert account.ended() == "Succeeded"
    assert len(cloud.jobs()) == 4

    # what the person who decides sees
    service = account.client("sagemaker", "approver")
    (summary,) = service.list_model_packages(ModelPackageGroupName="churn")["ModelPackageSummaryList"]
    assert summary["ModelApprovalStatus"] == "PendingManualApproval"
    seen = service.describe_model_package(ModelPackageName=summary["ModelPackageArn"])
    assert seen["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"].startswith(f"s3://{BUCKET}/churn/")
    card = json.loads(seen["ModelCard"]["ModelCardContent"])
    assert seen["ModelCard"]["ModelCardStatus"] == "PendingReview"
    measured = {one["name"]: one["metric_groups"][0]["metric_data"] for one in card["evaluation_details"]}
    assert "auc" in {one["name"] for one in measured["evaluate"]}
    assert account.told() == ["None"]
    with pytest.raises(service.exceptions.ClientError, match="AccessDenied"):
        account.client("sagemaker", "churn-build").update_model_package(
            ModelPackageArn=summary["ModelPackageArn"], ModelApprovalStatus="Approved"
        )

    deployed(account, 1)
    row = json.loads((account.repository / "smoke.json").read_text())
    with front(cloud, "churn-production", **key("churn-rest")) as rest:
        attach(cloud, account.repository / "pipeline.toml")
        first = rest.ask(row)
        assert (first.status, first.json["model"]) == (200, "churn/1")

        pipeline = account.repository / "pipeline.toml"
        pipeline.write_text(pipeline.read_text().replace("seed = 42", "seed = 43", 1))
        account.commit("Another seed")
        account.push()
        assert account.ended() == "Succeeded"
        assert account.told() == ["None"]
        deployed(account, 2)
        second = rest.ask(row)
        assert (second.status, second.json["model"]) == (200, "churn/2")
        assert second.json != first.json

        back = account.runner("deployer", "rollback", "production", "--reason", "complaints")
        assert back.returncode == 0, back.stderr
        assert rest.ask(row).json == first.json
    history = account.runner("approver", "history", "churn", "--json")
    kinds = [(event["version"], event["kind"]) for event in json.loads(history.stdout)]
    assert [one for one in kinds if one[1] in ("registered", "deployed", "rolled back")] == [
        (1, "registered"),
        (1, "deployed"),
        (1, "deployed"),
        (2, "registered"),
        (2, "deployed"),
        (2, "deployed"),
        (1, "rolled back"),
    ]


def deployed(account: Account, version: int) -> None:
    """The version is approved, deployed to staging, asked there, and to production once somebody has said yes."""
    account.approve(version)
    (started,) = account.told()
    asked = [call.parameters for call in account.cloud.calls if call.action == "StartPipelineExecution"][-1]
    variables = {one["name"]: one["value"] for one in asked["variables"]}
    execution = account.deploy.start(token=asked["clientRequestToken"], variables=variables)
    assert (asked["name"], execution.id) == (account.deploy.name, started)
    account.deploy.go_on(execution)
    assert (execution.done, execution.waits) == (["Source", "Staging"], "Approval"), execution.logs[-1]
    assert f"churn-staging serves churn/{version} as it should" in execution.logs[-1]
    account.deploy.go_on(execution, approved=True)
    assert execution.done == ["Source", "Staging", "Approval", "Production"], execution.logs[-1]
    assert f"churn-production serves churn/{version} as it should" in execution.logs[-1]
    (document,) = account.folder.glob(f"deploy-churn-{execution.id}-2/build/smoke/openapi.json")
    scoring = json.loads(document.read_text())["paths"]["/predict"]["post"]
    example = scoring["requestBody"]["content"]["application/json"]["example"]
    (account.repository / "smoke.json").write_text(json.dumps(example))
    account.told()
