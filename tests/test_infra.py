"""The templates in infra/ are sound, and their policies allow what a recorded run does, and nothing that they must not.

The deployer's is asked about recorded deployments in test_sagemaker_deploy.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from account import identities, key, whose
from cloud import BUCKET, RemoteProject, running
from iam import ACCOUNT, REGION, Request, Stack, allowing, read_template, unneeded
from small_sagemaker import CLIENT_KEY, JOB_KEY, Call, SmallSageMaker
from small_sagemaker.rights import scaling_role
from support.commands import Done
from support.machines import Machines
from support.projects import ROOT, parameters
from support.tiny_training import TRAIN

from runner.aws.card import card
from runner.model.versions import NewVersion
from runner.records import Artifact

INFRA = ROOT / "infra"
TEMPLATES = sorted(INFRA.glob("*.yaml"))
POLICIES = {"caller": "CallerPolicy", "job": "JobPolicy", "approver": "ApproverPolicy", "deployer": "DeployerPolicy"}
LONGEST_POLICY = 6144  # characters of a managed policy, white space not counted
AT = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
OBJECTS = f"arn:aws:s3:::{BUCKET}"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/tiny-jobs"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
SETTINGS = f"""
[sagemaker]
bucket = "{BUCKET}"
role = "{ROLE}"
image = "{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/own:1"
python = "3.11"
packages = "image"
poll_s = 0.2
tags = {{ team = "a" }}
kms_key = "{KEY}"
"""
TOML = f"""
name = "tiny"
[store]
runs = "s3://{BUCKET}/tiny/shared"
[steps.data]
notebook = "data.ipynb"
inputs = {{ source = "s3://{BUCKET}/tiny/data/june/in.txt", other = "./in.txt" }}
outputs = {{ table = "t.txt" }}
parameters = {{ token = "env:TOKEN" }}
[steps.train]
notebook = "train.ipynb"
inputs = {{ table = "data.table", champion = "approved:tiny" }}
outputs = {{ model = "model/", aside = "aside/" }}
[steps.register]
notebook = "register.ipynb"
inputs = {{ model = "train.model", verdict = "gate.verdict" }}
[[gate]]
metric = "train.score"
min = 0.5
[model]
name = "tiny"
from = "train.model"
registry = "sagemaker"
[profiles.spot.steps.train.sagemaker]
job = "training"
spot = true
[targets.staging]
kind = "sagemaker"
scaling = {{ min = 1, max = 2, requests_per_minute = 300 }}
capture = {{ percent = 100 }}
"""


@dataclass(frozen=True)
class Beside:
    """What is asked of a policy outside the recorded life, with whoever asks; it is as little as can be said of them."""

    who: str
    asked: list[Request]


def verbs(service: str, names: str, resource: str, **context: str) -> list[Request]:
    """A request for each of the names, on one resource."""
    return [Request(f"{service}:{name}", resource, context) for name in names.split()]


@dataclass(frozen=True)
class Recorded:
    """Every call of a project's life, by who makes it, and the messages that rules sent."""

    calls: dict[str, list[Call]]
    pending: list[dict[str, Any]]
    execution: str
    runs: list[str]  # that registered the versions, in their order


def stack(**changed: str) -> Stack:
    return Stack(
        INFRA / "policies.yaml", **{"Project": "tiny", "Bucket": BUCKET, "Prefix": "tiny", "Model": "tiny", **changed}
    )


def statements(who: str, **changed: str) -> list[dict[str, Any]]:
    made = stack(**changed)
    found = made.policy(POLICIES[who])
    with_pipeline = who == "job" and made.holds({"Condition": "IsPipeline"})
    return found + (made.policy("PipelinePolicy") if with_pipeline else [])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSageMaker]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    with contextlib.closing(machines), running(on_endpoint=machines) as made:
        machines.cloud = made
        yield made


@pytest.fixture(scope="module")
def recorded(cloud: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A table uploaded, the doctor asked, a run, the Pipeline pushed, started and taken in, both versions approved and
    served, one after the other, and everything taken away."""
    far = RemoteProject(tmp_path_factory.mktemp("recorded"), cloud, settings=SETTINGS, extra={"TOKEN": "not so secret"})
    far.write(
        "data.ipynb",
        parameters("source: str = ''\nother: str = ''\ntable: str = ''\ntoken: str = ''  # secret"),
        "assert token\nopen(table, 'w').write(open(source).read() + open(other).read())",
    )
    names = 'model: str = "work/m"\naside: str = "work/a"\ntable: str = ""\nchampion: str = ""'
    far.write("train.ipynb", parameters(names), *TRAIN)
    far.write(
        "register.ipynb",
        parameters('model: str = ""\nverdict: str = ""'),
        "import runner.model\nrunner.model.register(model, card='# Card', description='Tiny model')",
    )
    (far.folder / "in.txt").write_text("x\n")
    far.toml(TOML)
    inbox = prepare(cloud)
    calls: dict[str, list[Call]] = {"caller": [], "job": [], "approver": [], "deployer": [], "watcher": []}

    def take(who: str) -> None:
        for call in cloud.calls:
            calls[{CLIENT_KEY: who, JOB_KEY: "job"}[call.access_key]].append(call)
        calls["job"] += [call for call in cloud.service_calls if call.service != "events"]
        cloud.forget_calls()

    def do(*arguments: str) -> Done:
        done = far.here(*arguments)
        assert done.code == 0, done.out + done.err
        take(whose(arguments[0]))
        return done

    cloud.forget_calls()
    do("upload", "in.txt", "--to", "june/")
    checks = {
        one["name"]: one["status"] for one in do("doctor", "--on", "sagemaker", "--probe", "--json").json["checks"]
    }
    assert [checks[name] for name in ("passrole", "jobs", "registry", "logs")] == ["ok"] * 4, checks
    do("run", "--on", "sagemaker")
    do("run", "train", "--on", "sagemaker", "--profile", "spot", "--force")
    do("models")
    do("fetch", "latest")
    do("approve", "tiny/1", "--reason", "looks well")
    do("deploy", "tiny/1", "--to", "staging", "--reason", "it is the first")
    do("deployments")
    signature = next(far.folder.glob("runs/2*/steps/train/out/model/signature.json"))
    (far.folder / "one.jsonl").write_text(json.dumps(json.loads(signature.read_text())["sample_request"]) + "\n")
    do("predict", "tiny/1", "one.jsonl", "--capture", "staging")
    do("pipeline", "push")
    do("pipeline", "push")
    execution = do("pipeline", "start", "--json").out
    until = time.monotonic() + 200
    while (status := do("pipeline", "status", "--json").json)["status"] == "Executing" and time.monotonic() < until:
        time.sleep(0.5)
    assert status["status"] == "Succeeded", status
    do("import", json.loads(execution)["execution"])
    do("stop", "latest")
    do("approve", "tiny/2", "--reason", "looks as well")
    do("deploy", "tiny/2", "--to", "staging")
    do("rollback", "staging")
    do("undeploy", "staging")
    do("reject", "tiny/1", "--reason", "on second thoughts")
    messages = cloud.client("sqs").receive_message(QueueUrl=inbox, MaxNumberOfMessages=10).get("Messages", [])
    pending = [json.loads(message["Body"]) for message in messages]
    runs = [version["run"] for version in do("models", "--json").json]
    return Recorded(calls, pending, json.loads(execution)["arn"], runs)


def prepare(cloud: SmallSageMaker) -> str:
    """The role, image and secret of the project, and a queue for what schedule.yaml's rule on pending versions sends."""
    made = stack()
    trust = made.template["Resources"]["JobRole"]["Properties"]["AssumeRolePolicyDocument"]
    cloud.client("iam").create_role(RoleName="tiny-jobs", AssumeRolePolicyDocument=json.dumps(trust))
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"})
    cloud.client("ecr").create_repository(repositoryName="own")
    cloud.client("ecr").put_image(repositoryName="own", imageManifest=manifest, imageTag="1")
    cloud.client("secretsmanager").create_secret(Name="tiny/TOKEN", SecretString="not so secret")
    queue = cloud.client("sqs").create_queue(QueueName="inbox")["QueueUrl"]
    schedule = Stack(INFRA / "schedule.yaml", Project="tiny", Model="tiny")
    pattern = schedule.render(schedule.template["Resources"]["PendingRule"]["Properties"]["EventPattern"])
    cloud.client("events").put_rule(Name="pending", EventPattern=json.dumps(pattern))
    target = {"Id": "inbox", "Arn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:inbox"}
    cloud.client("events").put_targets(Rule="pending", Targets=[target])
    # what the project writes comes with its key, whoever writes it
    demanded = {"StringNotEquals": {"s3:x-amz-server-side-encryption-aws-kms-key-id": KEY}}
    refused = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"{OBJECTS}/tiny/*"}
    document = {"Version": "2012-10-17", "Statement": [{**refused, "Condition": demanded}]}
    cloud.client("s3").put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(document))
    return str(queue)


# Templates


@pytest.mark.soak
def test_cfn_lint_finds_nothing() -> None:
    assert len(TEMPLATES) >= 6
    program = Path(sys.executable).with_name("cfn-lint")  # takes four seconds to import, so it is asked once
    done = subprocess.run([program, *TEMPLATES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_each_template_says_how_to_deploy_it_with_parameters_that_it_has(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    command = text.partition("# aws cloudformation deploy")[2].partition("\n#\n")[0]
    given = {word.partition("=")[0] for word in command.split() if "=" in word}
    declared = read_template(template)["Parameters"]
    assert f"--template-file infra/{template.name}" in command
    assert given <= declared.keys()
    assert {name for name, spec in declared.items() if "Default" not in spec} <= given


# Policies


ELSEWHERE = "arn:aws:s3:::sagemaker-sample-files"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws"
SOURCES = Beside(
    "a step whose source lies in another bucket",
    [*verbs("s3", "GetObject", f"{ELSEWHERE}/a.csv"), *verbs("s3", "ListBucket", ELSEWHERE)],
)
BROKEN_OFF = "AbortMultipartUpload"  # of a large file
NETWORK = (
    "CreateNetworkInterface CreateNetworkInterfacePermission DeleteNetworkInterface DeleteNetworkInterfacePermission "
    "DescribeDhcpOptions DescribeNetworkInterfaces DescribeSecurityGroups DescribeSubnets DescribeVpcs"
)
PENDING = {"sagemaker:modelapprovalstatus": "PendingManualApproval"}
GROUP = f"{AT}:model-package-group/tiny"
# AWS's guide names packages alone for both, the authorization reference too: see docs/sagemaker.md, "Not verified"
ASKED_OF_GROUP = "SageMaker, should it ask of the group and not of its packages"
LISTING = Beside(ASKED_OF_GROUP, verbs("sagemaker", "ListModelPackages", GROUP))
CREATING = Beside(ASKED_OF_GROUP, verbs("sagemaker", "CreateModelPackage", GROUP, **PENDING))
REST = Beside(
    "where infra/rest.yaml stands before an endpoint",
    verbs("apigateway", "GET", f"arn:aws:apigateway:{REGION}::/restapis/1/models/Record"),
)
LIST_TABLES = verbs("s3", "ListBucket", OBJECTS, **{"s3:prefix": "guide/a.csv"})
BESIDE: dict[str, list[Beside]] = {
    "approver": [
        LISTING,
        REST,
        Beside("a checkout that has none of the run's files", [
                *verbs("s3", "GetObject", f"{OBJECTS}/tiny/runs/1/out/model"),
                *verbs("s3", "GetObject", f"{OBJECTS}/tiny/shared/records/1.tar.gz"),
            ]),
    ],
    "caller": [
        SOURCES,
        Beside("runner upload --as", [*verbs("s3", f"PutObject GetObject {BROKEN_OFF}", f"{OBJECTS}/guide/a.csv"), *LIST_TABLES]),
        CREATING,
        LISTING,
        Beside("a Pipeline's definition too long for a request", verbs("s3", "PutObject", f"{OBJECTS}/tiny/pipelines/1.json")),
        Beside("a job whose image is not the lock", verbs("s3", "PutObject", f"{OBJECTS}/tiny/wheels/1.whl")),
        Beside("an upload that ends early", verbs("s3", BROKEN_OFF, f"{OBJECTS}/tiny/inputs/1")),
        Beside("runner stop, while a job runs", [
                *verbs("sagemaker", "StopProcessingJob", f"{AT}:processing-job/tiny-1"),
                *verbs("sagemaker", "StopTrainingJob", f"{AT}:training-job/tiny-1"),
            ]),
        Beside("a start under a name that is taken", verbs("sagemaker", "ListTags", f"{AT}:processing-job/tiny-1")),
        Beside("Studio, which has the button", verbs("sagemaker", "StopPipelineExecution", f"{AT}:pipeline/tiny/execution/1")),
        Beside("a push after a change", verbs("sagemaker", "UpdatePipeline", f"{AT}:pipeline/tiny")),
        Beside("the doctor, where the first list lacks the quota", verbs("servicequotas", "ListAWSDefaultServiceQuotas", "*")),
    ],
    "tiny-jobs": [
        SOURCES,
        Beside("a step that reads the guide's table", [*verbs("s3", "GetObject", f"{OBJECTS}/guide/a.csv"), *LIST_TABLES]),
        CREATING,
        Beside("an execution's first job, where a source is on the web", verbs("s3", "PutObject", f"{OBJECTS}/tiny/inputs/1/a.csv")),
        Beside("an output that ends early", verbs("s3", BROKEN_OFF, f"{OBJECTS}/tiny/runs/1")),
        Beside("a registration that ends early", verbs("s3", BROKEN_OFF, f"{OBJECTS}/tiny/models/1/model.tar.gz")),
        Beside("SageMaker, for a job in a network of one's own", verbs("ec2", NETWORK, "*")),
        Beside("the monitor as a Pipeline", verbs("sagemaker", "DescribePipelineExecution", f"{AT}:pipeline/tiny-monitor/execution/1")),
        Beside("SageMaker, when an execution is stopped", verbs("sagemaker", "StopProcessingJob ListTags", f"{AT}:processing-job/pipelines-1")),
        Beside("a first version that a Pipeline registers", verbs("sagemaker", "AddTags CreateModelPackageGroup", f"{AT}:model-package-group/tiny")),
    ],
    "deployer": [
        LISTING,
        REST,
        Beside("an image of one's own that serves", verbs("ecr", "DescribeImages", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/tiny-image")),
        Beside(
            "whoever looks why an endpoint did not come up",
            verbs("logs", "DescribeLogStreams GetLogEvents", f"{LOGS}/sagemaker/Endpoints/tiny-staging:log-stream:all/1"),
        ),
        Beside("an archive of the local registry", verbs("s3", f"PutObject GetObject {BROKEN_OFF}", f"{OBJECTS}/tiny/deployed/1/model.tar.gz")),
    ],
    "tiny-watch": [
        Beside(
            "the function, whose own test has the very same",
            [
                *verbs("sagemaker", "DescribePipeline ListPipelineExecutions", f"{AT}:pipeline/tiny"),
                *verbs("sagemaker", "DescribePipelineExecution ListPipelineExecutionSteps", f"{AT}:pipeline/tiny/execution/1"),
                *verbs("sagemaker", "DescribePipeline ListPipelineExecutions", f"{AT}:pipeline/tiny-monitor"),
                *verbs("sagemaker", "DescribePipelineExecution ListPipelineExecutionSteps", f"{AT}:pipeline/tiny-monitor/execution/1"),
                *verbs("sns", "Publish", f"arn:aws:sns:{REGION}:{ACCOUNT}:tiny-runs"),
            ],
        ),
        Beside("Lambda", verbs("logs", "CreateLogStream PutLogEvents", f"{LOGS}/lambda/tiny-watch:log-stream:1")),
    ],
    "tiny-pending": [
        Beside(
            "the function, whose own test has the very same",
            [
                *verbs("sagemaker", "DescribeModelPackage", f"{AT}:model-package/tiny/1"),
                *verbs("sns", "Publish", f"arn:aws:sns:{REGION}:{ACCOUNT}:tiny-runs"),
            ],
        ),
        Beside("Lambda", verbs("logs", "CreateLogStream PutLogEvents", f"{LOGS}/lambda/tiny-pending:log-stream:1")),
        Beside("whoever opens a signed link", verbs("s3", "GetObject", "arn:aws:s3:::pages/site/run/1/report.html")),
    ],
    "tiny-start": [
        Beside(
            "EventBridge Scheduler, for each of its schedules",
            [
                *verbs("sagemaker", "StartPipelineExecution", f"{AT}:pipeline/tiny"),
                *verbs("sagemaker", "StartPipelineExecution", f"{AT}:pipeline/tiny-monitor"),
                *verbs("lambda", "InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:tiny-watch"),
            ],
        )
    ],
    "tiny-rest": [
        Beside("the function, for each record", verbs("sagemaker", "InvokeEndpoint", f"{AT}:endpoint/tiny-production")),
        Beside("Lambda", verbs("logs", "CreateLogStream PutLogEvents", f"{LOGS}/lambda/tiny-rest:log-stream:1")),
    ],
}  # fmt: skip
# whose managed policy a role of infra/ has beside its own: it does there what they do
AS = {
    "tiny-build": "caller",
    "tiny-github": "caller",
    "tiny-deploy-build": "deployer",
    "owner": "",
    "studio-grace": "",
    "watcher": "",
}
# their own documents are asked about in test_delivery.py, test_own_image.py and test_project.py
ASKED_ELSEWHERE = {
    "builder", "runner-studio-launch", "tiny-build", "tiny-delivery", "tiny-deploy", "tiny-deploy-build",
    "tiny-deploy-start", "tiny-image", "tiny-pull-request",
}  # fmt: skip
EVERYBODY = identities(
    Project="tiny",
    Bucket=BUCKET,
    Prefix="tiny",
    Model="tiny",
    KmsKeyArn=KEY,
    WithVpc="yes",
    Tables="guide",
    Site="pages/site/",
)
JUDGED = sorted(EVERYBODY.keys() - ASKED_ELSEWHERE - AS.keys())


@pytest.mark.soak
@pytest.mark.parametrize("who", ["caller", "tiny-jobs", "approver", "deployer"])
def test_the_recorded_life_was_lived_under_its_policies(cloud: SmallSageMaker, recorded: Recorded, who: str) -> None:
    """Every call, and what the service does as the jobs' role, was asked of them; only absent objects were refused."""
    granted = EVERYBODY[who][1]
    asked = cloud.asked(who)
    assert len(asked) >= 12
    assert {made.action for made in asked if not allowing(granted, made)} <= {"s3:ListBucket"}
    name = "job" if who == "tiny-jobs" else who
    assert {call.identity for call in recorded.calls[name]} <= {who, ""}


@pytest.mark.soak
@pytest.mark.parametrize("who", JUDGED)
def test_no_action_of_a_policy_could_be_taken_out(cloud: SmallSageMaker, recorded: Recorded, who: str) -> None:
    beside = [made for one in BESIDE.get(who, ()) for made in one.asked]
    assert [made for made in beside if not allowing(EVERYBODY[who][1], made)] == []
    found = unneeded(EVERYBODY[who][1], cloud.asked(who) + beside)
    assert found == []


ONCE = {"s3:if-none-match": "*"}
SAGEMAKER = {"iam:passedtoservice": "sagemaker.amazonaws.com"}
EVENT = f"{OBJECTS}/tiny/registry/tiny/events/000003.json"
APPROVED = {"sagemaker:modelapprovalstatus": "Approved"}
SERVING = {"sagemaker:modellifecycle:stage": "Production", "sagemaker:modellifecycle:stagestatus": "Serving"}
FORBIDDEN = [
    ("job", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("job", "sagemaker:CreateModelPackage", f"{AT}:model-package/other/1", PENDING),
    # whoever makes a version must not decide on it by the way
    *[
        (who, "sagemaker:CreateModelPackage", f"{AT}:model-package/tiny/1", status)
        for who in ("job", "caller") for status in ({}, APPROVED, {"sagemaker:modelapprovalstatus": "Rejected"})
    ],
    # the whole bucket: a listing without a prefix has no such key
    *[(who, "s3:ListBucket", OBJECTS, {}) for who in POLICIES],
    ("job", "s3:PutObject", f"{OBJECTS}/tiny/captured-too/1", {}),
    ("job", "sagemaker:CreateProcessingJob", f"{AT}:processing-job/other-1", {}),
    ("job", "s3:PutObject", EVENT, {}),  # it may add one, and replace none
    ("job", "s3:PutObject", f"{OBJECTS}/tiny/data/june/in.txt", {}),
    ("job", "s3:PutObject", f"{OBJECTS}/tiny/bundles/0/_run.py", {}),
    ("job", "s3:DeleteObject", f"{OBJECTS}/tiny/runs/1/result.json", {}),
    ("job", "s3:GetObject", f"{OBJECTS}/tiny-but-other/in.txt", {}),
    ("job", "s3:ListBucket", OBJECTS, {"s3:prefix": "other/"}),
    ("job", "secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:other/TOKEN-AbCdEf", {}),
    ("job", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", SAGEMAKER),
    ("job", "logs:GetLogEvents", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/x:log-stream:y", {}),
    ("caller", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("caller", "sagemaker:StopProcessingJob", f"{AT}:processing-job/other-1", {}),
    ("caller", "sagemaker:CreateTrainingJob", f"{AT}:training-job/other-1", {}),
    ("caller", "sagemaker:CreateTransformJob", f"{AT}:transform-job/tiny-1", {}),
    ("caller", "sagemaker:CreateLabelingJob", f"{AT}:labeling-job/tiny-1", {}),
    ("job", "sagemaker:CreateTrainingJob", f"{AT}:training-job/pipelines-1", {}),
    ("caller", "sagemaker:CreateEndpoint", f"{AT}:endpoint/tiny-production", {}),
    ("caller", "sagemaker:StartPipelineExecution", f"{AT}:pipeline/other", {}),
    ("caller", "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", SAGEMAKER),
    ("caller", "iam:PassRole", ROLE, {"iam:passedtoservice": "lambda.amazonaws.com"}),
    ("caller", "iam:SimulatePrincipalPolicy", f"arn:aws:iam::{ACCOUNT}:user/you", {"aws:username": "me"}),
    ("caller", "s3:GetObject", f"{OBJECTS}/other/in.txt", {}),
    ("caller", "s3:PutObject", f"{OBJECTS}/other/in.txt", {}),
    ("caller", "s3:PutObject", EVENT, {}),
    ("caller", "s3:PutObject", f"{OBJECTS}/tiny/registry/other/events/000001.json", ONCE),
    ("caller", "s3:DeleteObject", f"{OBJECTS}/tiny/models/0/model.tar.gz", {}),
    ("caller", "s3:ListBucket", OBJECTS, {"s3:prefix": ""}),
    ("caller", "secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:tiny/TOKEN-AbCdEf", {}),
    ("approver", "s3:PutObject", f"{OBJECTS}/tiny/models/0/model.tar.gz", {}),
    ("approver", "s3:PutObject", f"{OBJECTS}/tiny/registry/tiny/facts/1.json", ONCE),
    ("approver", "s3:PutObject", EVENT, {}),
    ("approver", "s3:PutObject", f"{OBJECTS}/other/x", ONCE),
    ("approver", "s3:DeleteObject", EVENT, {}),
    ("approver", "sagemaker:UpdateModelPackage", f"{AT}:model-package/other/1", {}),
    ("approver", "sagemaker:CreateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("approver", "sagemaker:CreateProcessingJob", f"{AT}:processing-job/tiny-1", {}),
    ("approver", "iam:PassRole", ROLE, SAGEMAKER),
    ("deployer", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("deployer", "sagemaker:CreateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("deployer", "sagemaker:DeleteEndpoint", f"{AT}:endpoint/other-production", {}),
    ("deployer", "sagemaker:CreateProcessingJob", f"{AT}:processing-job/tiny-1", {}),
    ("deployer", "s3:PutObject", f"{OBJECTS}/tiny/models/0/model.tar.gz", {}),
    ("deployer", "iam:PassRole", ROLE, {"iam:passedtoservice": "ec2.amazonaws.com"}),
    ("deployer", "s3:PutObject", EVENT, {}),
    ("deployer", "application-autoscaling:RegisterScalableTarget", f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/1", {"application-autoscaling:service-namespace": "ecs"}),
    ("deployer", scaling_role().action, scaling_role().resource, {"iam:awsservicename": "ecs.amazonaws.com"}),
    ("job", "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "AWS/Billing"}),
    ("job", "iam:PassRole", ROLE, {"iam:passedtoservice": "lambda.amazonaws.com"}),
    # who decides sets no stage, who deploys decides nothing, and neither edits what else a version says
    ("approver", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {}),
    ("approver", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {**APPROVED, **SERVING}),
    ("deployer", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {**APPROVED, **SERVING}),
    ("deployer", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {**SERVING, "sagemaker:modellifecycle:stage": "QA"}),
    ("deployer", "sagemaker:UpdateModelPackage", f"{AT}:model-package/tiny/1", {**SERVING, "sagemaker:modellifecycle:stagestatus": "Approved"}),
]  # fmt: skip


@pytest.mark.parametrize(("who", "action", "resource", "context"), FORBIDDEN)
def test_what_somebody_must_not_do_is_not_allowed(
    who: str, action: str, resource: str, context: dict[str, str]
) -> None:
    assert allowing(statements(who), Request(action, resource, context)) == []


@pytest.mark.parametrize("who", POLICIES)
def test_each_condition_of_a_policy_keeps_somebody_from_something(who: str) -> None:
    granted = statements(who)
    forbidden = [Request(action, resource, context) for name, action, resource, context in FORBIDDEN if name == who]
    idle = []
    for number, statement in enumerate(granted):
        for operator, keys in statement.get("Condition", {}).items():
            for one in keys:
                less = {key: wanted for key, wanted in keys.items() if key != one}
                loosened = {**statement, "Condition": {**statement["Condition"], operator: less}}
                rest = [*granted[:number], loosened, *granted[number + 1 :]]
                if not any(allowing(rest, made) for made in forbidden):
                    idle.append(f"{statement['Sid']} {operator} {one}")
    assert idle == []


def test_an_endpoint_may_keep_what_it_is_asked() -> None:
    """It runs as the jobs' role, and `capture` writes below captured/TARGET/."""
    kept = f"{OBJECTS}/tiny/captured/production/tiny-production/all/2026/11/28/1.jsonl"
    assert allowing(statements("job", WithPipeline="no"), Request("s3:PutObject", kept))


def test_without_a_pipeline_the_jobs_role_registers_and_starts_nothing() -> None:
    made = stack(WithPipeline="no")
    attached = made.render(made.template["Resources"]["JobRole"]["Properties"]["ManagedPolicyArns"])
    assert attached == [f"arn:aws:iam::{ACCOUNT}:policy/tiny-job"]
    granted = statements("job", WithPipeline="no")
    for action in ("CreateModelPackage", "CreateProcessingJob", "AddTags"):
        assert not allowing(granted, Request(f"sagemaker:{action}", f"{AT}:model-package/tiny/1"))
        assert not allowing(granted, Request(f"sagemaker:{action}", f"{AT}:processing-job/pipelines-x"))


@pytest.mark.parametrize("resource", [*POLICIES.values(), "PipelinePolicy", "ImagePolicy", "MonitorPolicy"])
def test_each_policy_fits_into_a_managed_policy_with_the_longest_names(cloud: SmallSageMaker, resource: str) -> None:
    long = {"Tables": "t" * 32, "Project": "p" * 32, "Bucket": "b" * 63, "Prefix": "p" * 32, "Model": "m" * 32}
    made = stack(**long, WithVpc="yes", KmsKeyArn=f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{'0' * 36}")
    document = {"Version": "2012-10-17", "Statement": made.policy(resource)}
    text = json.dumps(document, separators=(",", ":"))
    assert len(text) <= LONGEST_POLICY
    cloud.client("iam").create_policy(PolicyName=resource, PolicyDocument=text)  # refuses what is not a policy


@pytest.mark.soak
def test_who_watches_reads_captures_puts_scored_files_beside_them_and_nothing_else(recorded: Recorded) -> None:
    granted, below = stack().policy("MonitorPolicy"), f"arn:aws:s3:::{BUCKET}/tiny"
    assert allowing(granted, Request("s3:GetObject", f"{below}/captured/production/x/AllTraffic/2026/11/29/12/a.jsonl"))
    assert allowing(granted, Request("s3:PutObject", f"{below}/captured/production/x/batch/2026/11/29/12/a.jsonl"))
    assert "PutObject" in {call.action for call in recorded.calls["watcher"]}
    for action, place in (("GetObject", "runs/a/run.json"), ("PutObject", "captured/a.jsonl"), ("GetObject", "other")):
        assert not allowing(granted, Request(f"s3:{action}", f"{below}/{place}"))


WATCHED = Beside(
    "runner monitor, here and as a Pipeline, which tests/test_sagemaker_monitor.py walks",
    [
        *verbs("s3", "GetObject", f"{OBJECTS}/tiny/captured/production/x/all/2026/11/29/12/a.jsonl"),
        *verbs("s3", "ListBucket", OBJECTS, **{"s3:prefix": "tiny/captured/production/x/"}),
        *verbs("s3", BROKEN_OFF, f"{OBJECTS}/tiny/captured/production/x/batch/2026-11-29/12-1.jsonl"),
        *verbs(
            "sagemaker",
            "AddTags CreatePipeline DescribePipeline ListPipelineExecutions ListTags StartPipelineExecution UpdatePipeline",
            f"{AT}:pipeline/tiny-monitor",
        ),
        *verbs(
            "sagemaker",
            "DescribePipelineDefinitionForExecution DescribePipelineExecution ListPipelineExecutionSteps",
            f"{AT}:pipeline/tiny-monitor/execution/1",
        ),
    ],
)


@pytest.mark.soak
def test_nothing_could_be_taken_from_who_watches(cloud: SmallSageMaker, recorded: Recorded) -> None:
    granted = stack().policy("MonitorPolicy")
    assert [made for made in WATCHED.asked if not allowing(granted, made)] == []
    assert unneeded(granted, cloud.asked("watcher") + WATCHED.asked) == []


def test_the_key_is_in_the_policies_where_there_is_one() -> None:
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
    for who in POLICIES:
        assert not allowing(statements(who), Request("kms:Decrypt", key))
        assert allowing(statements(who, KmsKeyArn=key), Request("kms:Decrypt", key))


ASSUMED_BY = {  # by role, as its resource in the template is called
    "JobRole": "sagemaker", "BuildRole": "codebuild", "PullRequestRole": "codebuild", "DeliveryRole": "codepipeline",
    "PipelineRole": "codepipeline", "FunctionRole": "lambda", "LogRole": "apigateway", "WatchRole": "lambda", "PendingRole": "lambda", "LaunchRole": "cloudformation",
}  # fmt: skip


def test_each_role_is_assumed_by_one_service_and_a_topic_takes_messages_of_one_rule() -> None:
    for path in TEMPLATES:
        for name, resource in read_template(path)["Resources"].items():
            if resource["Type"] == "AWS::SNS::TopicPolicy":
                (one,) = resource["Properties"]["PolicyDocument"]["Statement"]
                assert (one["Principal"], one["Action"]) == ({"Service": "events.amazonaws.com"}, "sns:Publish")
                assert one["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": [one["Sid"], "Arn"]}}}
            if resource["Type"] != "AWS::IAM::Role":
                continue
            (one,) = resource["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            if (path.stem, name) == ("github", "Role"):
                assert one["Action"] == "sts:AssumeRoleWithWebIdentity"
                sub = one["Condition"]["StringEquals"]["token.actions.githubusercontent.com:sub"]
                assert sub == {"Fn::Sub": "repo:${Repository}:ref:refs/heads/${Branch}"}
                continue
            service = (
                {"schedule": "scheduler", "deploy": "lambda"}[path.stem] if name == "StartRole" else ASSUMED_BY[name]
            )
            assert one["Principal"] == {"Service": f"{service}.amazonaws.com"}, name
            assert one["Action"] == "sts:AssumeRole"
            if service in (
                "cloudformation",
                "codebuild",
                "codepipeline",
                "scheduler",
            ):  # which act for whoever asks them
                assert one["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


# The schedule and its messages


@dataclass(frozen=True)
class Watch:
    """The function of schedule.yaml, in a process of its own against the double."""

    cloud: SmallSageMaker
    folder: Path
    inbox: str

    def call(
        self, event: dict[str, Any], *, pipeline: str = "tiny", days: int = 8, function: str = "Watch", **links: str
    ) -> tuple[str, list[str]]:
        """(the subject, the messages that reached a subscriber), in the stack of the pipeline's project."""
        who, sns = f"{pipeline}-{function.lower()}", self.cloud.client("sns")
        self.cloud.grant(who, identities(Project=pipeline, Model="tiny")[who][1])
        topic = sns.create_topic(Name=f"{pipeline}-runs")["TopicArn"]
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{REGION}:{ACCOUNT}:messages")
        code = read_template(INFRA / "schedule.yaml")["Resources"][function]["Properties"]["Code"]["ZipFile"]
        (self.folder / "index.py").write_text(code)
        names = {"PIPELINE": pipeline, "TOPIC": topic, "DAYS": str(days), "HOURS": "6"}
        names |= {"PAGES": "", "SITE": "", "STUDIO": "", "MONITOR": "", **links}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "import json, sys, index; print(index.handler(json.load(sys.stdin), None))"],
            cwd=self.folder,
            env={**os.environ, **self.cloud.environment, **key(who), **names},
            input=json.dumps(event),
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        found = self.cloud.client("sqs").receive_message(QueueUrl=self.inbox, MaxNumberOfMessages=10)
        for message in found.get("Messages", []):
            self.cloud.client("sqs").delete_message(QueueUrl=self.inbox, ReceiptHandle=message["ReceiptHandle"])
        return done.stdout.strip(), [json.loads(message["Body"])["Message"] for message in found.get("Messages", [])]


@pytest.fixture
def watch(cloud: SmallSageMaker, recorded: Recorded, tmp_path: Path) -> Watch:
    return Watch(cloud, tmp_path, cloud.client("sqs").create_queue(QueueName="messages")["QueueUrl"])


@pytest.mark.soak
def test_a_version_that_is_registered_sends_the_event_that_the_rule_asks_for(recorded: Recorded) -> None:
    assert [event["detail"]["ModelPackageVersion"] for event in recorded.pending] == [1, 2]


@pytest.mark.soak
def test_the_message_of_a_pending_version_has_verdict_reasons_metrics_and_links(
    watch: Watch, recorded: Recorded
) -> None:
    links = {
        "PAGES": "https://runs.example.org/",
        "SITE": "pages/site/",
        "STUDIO": "https://studio.example.org/MODEL/v/VERSION",
    }
    subject, (message,) = watch.call(recorded.pending[0], function="Pending", **links)
    assert subject == "tiny/1 waits for a decision"
    for line in (
        f"Tiny model (run {(run := recorded.runs[0])})",
        "verdict: pass (only such runs register a version)",  # the card of this notebook has no part of that name
        "train.score = 0.9 (between 0.8 and 1, higher is better)",
        f"run: {run}",
        "Pages: https://runs.example.org/model/tiny/1/",
        "Studio: https://studio.example.org/tiny/v/1",
        "Look at it with: runner show tiny/1",
    ):
        assert line in message.splitlines(), message
    signed = re.search(r"6 hours at most: (\S+)$", message, re.MULTILINE)
    assert signed is not None
    assert f"pages/site/run/{run}/report.html?" in signed[1]
    assert "X-Amz-Expires=21600" in signed[1]
    assert {made.action for made in watch.cloud.asked("tiny-pending")} == {
        "sagemaker:DescribeModelPackage",
        "sns:Publish",
    }
    gone = {"detail": {**recorded.pending[0]["detail"], "ModelPackageArn": f"{AT}:model-package/tiny/99"}}
    subject, (message,) = watch.call(gone, function="Pending")
    assert message.splitlines()[0] == "What it is could not be read: ClientError"
    assert "In Studio" not in message


def test_the_verdict_that_a_card_has_is_told_with_its_reasons_and_links_nowhere(tmp_path: Path) -> None:
    code = read_template(INFRA / "schedule.yaml")["Resources"]["Pending"]["Properties"]["Code"]["ZipFile"]
    assert len(code) <= 4096  # characters that a template may have of it
    (tmp_path / "index.py").write_text(code)
    verdict = "**pass**\n\n- train.score is 0.9, 0.4 inside the required >= 0.5.\n- see https://evil.example/approve"
    new = NewVersion(
        name="tiny", run="r1", sha256="0" * 64, artifact=Artifact(path="m", sha256="0" * 64, size_bytes=1), created_by="ana@desk",
        card=f"# Card\n\n## Verdict\n\n{verdict}\n\n## Data\n\nhidden",
    )  # fmt: skip
    package = {"ModelCard": {"ModelCardContent": card(new, archive="s3://a/b")}}
    script = "import json, sys, index; print('\\n'.join(index.told(json.load(sys.stdin))))"
    names = dict.fromkeys(("TOPIC", "PAGES", "SITE", "STUDIO"), "")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, **names, "HOURS": "1"}, input=json.dumps(package),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verdict: pass\n- train.score is 0.9, 0.4 inside the required >= 0.5.\n" in done.stdout
    assert ("https: //evil.example" in done.stdout, "hidden" in done.stdout) == (True, False)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "outcome", "subject"),
    [
        ("gate-fail", "fail", "execution failed"),
        ("gate-unsure", "inconclusive", "execution failed"),
        ("gate-error", "error", "execution failed"),
        ("gate-monitor", "fail", "the answer is no"),
    ],
)
def test_a_failed_execution_is_told_with_the_verdict_and_each_failed_step(
    watch: Watch, name: str, outcome: str, subject: str
) -> None:
    sagemaker = watch.cloud.client("sagemaker")
    role = "arn:aws:iam::123456789012:role/tiny-jobs"
    said = f"The gate's verdict is {outcome} – train.score is 0.4, 0.1 outside the required >= 0.5. plan: `http://evil`"
    step = {"Name": "gate-failed", "Type": "Fail", "Arguments": {"ErrorMessage": said}}
    text = json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": [step]})
    sagemaker.create_pipeline(
        PipelineName=name, RoleArn=role, PipelineDefinition=text, ClientRequestToken=name.rjust(32, "0")
    )
    arn = sagemaker.start_pipeline_execution(PipelineName=name)["PipelineExecutionArn"]
    until = time.monotonic() + 60
    while sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] == "Executing":
        assert time.monotonic() < until
        time.sleep(0.1)
    detail = {"pipelineExecutionArn": arn, "currentPipelineExecutionStatus": "Failed"}
    project, watching = name.removesuffix("-monitor"), name.endswith("-monitor")
    told, messages = watch.call({"detail": detail}, pipeline=project, MONITOR=name if watching else "")
    assert told == f"{name}: {subject}"
    assert said.replace("://", ": //") in messages[0]
    more = " --pipeline monitor.toml" if watching else ""
    assert messages[0].endswith(f"runner import {arn.rpartition('/')[2]}{more}")


@pytest.mark.soak
def test_no_run_for_too_long_is_told_and_a_recent_one_is_not(watch: Watch) -> None:
    assert watch.call({}) == ("", [])
    subject, messages = watch.call({}, days=0)
    assert subject == "tiny: no run for 0 days"
    assert "runner pipeline start" in messages[0]


@pytest.mark.soak
def test_a_pipeline_that_is_not_there_is_told(watch: Watch) -> None:
    subject, messages = watch.call({}, pipeline="nobody")
    assert subject == "nobody: there is no such Pipeline"
    assert "runner pipeline push" in messages[0]
    subject, messages = watch.call({}, MONITOR="tiny-monitor")
    assert subject == "tiny-monitor: there is no such Pipeline"
    assert "runner pipeline push --pipeline monitor.toml" in messages[0]


@pytest.mark.soak
def test_the_watch_does_what_it_may_and_the_schedule_starts_its_pipeline(watch: Watch, recorded: Recorded) -> None:
    watch.call({}, days=0)
    watch.call({"detail": {"pipelineExecutionArn": recorded.execution, "currentPipelineExecutionStatus": "Failed"}})
    said = BESIDE["tiny-watch"][0].asked
    assert {made.action for made in watch.cloud.asked("tiny-watch")} == {made.action for made in said}
    schedule = Stack(INFRA / "schedule.yaml", Project="tiny", Model="tiny", LongestGapDays="8")
    target = schedule.render(schedule.template["Resources"]["WeeklyStart"]["Properties"]["Target"])
    assert allowing(EVERYBODY["tiny-start"][1], Request("sagemaker:StartPipelineExecution", target["Arn"]))
    watching = schedule.render(schedule.template["Resources"]["MonitorStart"]["Properties"]["Target"])
    assert watching["Arn"] == f"{target['Arn']}-monitor"
    assert allowing(EVERYBODY["tiny-start"][1], Request("sagemaker:StartPipelineExecution", watching["Arn"]))
    pattern = schedule.render(schedule.template["Resources"]["FailedRule"]["Properties"]["EventPattern"])
    assert pattern["detail"]["pipelineArn"] == [target["Arn"], watching["Arn"]]


def test_the_inline_function_is_no_longer_than_cloudformation_takes() -> None:
    code = read_template(INFRA / "schedule.yaml")["Resources"]["Watch"]["Properties"]["Code"]["ZipFile"]
    assert len(code) <= 4096
