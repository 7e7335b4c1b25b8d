"""The templates in infra/ are sound, and their policies allow what a recorded run does, and nothing that they must not.

The deployer's is asked about recorded deployments in test_sagemaker_deploy.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cloud import BUCKET, RemoteProject, running
from conftest import ROOT, Done, parameters
from iam import ACCOUNT, REGION, Request, Stack, allowing, read_template, requests, unneeded
from small_sagemaker import CLIENT_KEY, JOB_KEY, Call, SmallSageMaker
from test_registering import TRAIN

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
"""
# what is in a policy and was not asked for in the recorded life, "Sid action", with whoever asks for it
UNSEEN = {
    "caller": {
        "WriteProject s3:AbortMultipartUpload": "an upload of a large file that was broken off",
        "ReadSources s3:GetObject": "sources of other buckets",
        "ReadSources s3:ListBucket": "sources of other buckets",
        "StartJobs sagemaker:ListTags": "a second start under a name that is taken",
        "StartJobs sagemaker:StopProcessingJob": "runner stop, while there is a job",
        "StartPipeline sagemaker:StopPipelineExecution": "the console, which has the button",
        "StartPipeline sagemaker:UpdatePipeline": "a push after a change",
        "AskAboutQuotas servicequotas:ListAWSDefaultServiceQuotas": "moto has no quotas",
    },
    "job": {
        "WriteResults s3:AbortMultipartUpload": "an upload of a large file that was broken off",
        "ReadSources s3:GetObject": "sources of other buckets",
        "ReadSources s3:ListBucket": "sources of other buckets",
        "WriteLogs logs:DescribeLogStreams": "the service's own log writer",
        "PutMetrics cloudwatch:PutMetricData": "the service's own metrics",
        "StartSteps sagemaker:DescribeProcessingJob": "the service, following a Pipeline's step",
        "StartSteps sagemaker:ListTags": "the service, following a Pipeline's step",
        "StartSteps sagemaker:StopProcessingJob": "the service, when an execution is stopped",
        "Register sagemaker:AddTags": "a first version of a project with tags, registered by its Pipeline",
        "Register sagemaker:CreateModelPackageGroup": "a first version, registered by its Pipeline",
        "WriteModels s3:AbortMultipartUpload": "an upload of a large file that was broken off",
    },
    "approver": dict[str, str](),
}


@dataclass(frozen=True)
class Recorded:
    """Every call of a project's life, by who makes it, and the messages that rules sent."""

    calls: dict[str, list[Call]]
    pending: list[dict[str, Any]]
    execution: str


def stack(**changed: str) -> Stack:
    return Stack(
        INFRA / "policies.yaml", **{"Project": "tiny", "Bucket": BUCKET, "Prefix": "tiny", "Model": "tiny", **changed}
    )


def attached(who: str) -> list[dict[str, Any]]:
    """What the account of the recorded project has: with its key, and for its doctor with the name of a user."""
    return statements(who, KmsKeyArn=KEY)


def statements(who: str, **changed: str) -> list[dict[str, Any]]:
    made = stack(**changed)
    found = made.policy(POLICIES[who])
    with_pipeline = who == "job" and made.holds({"Condition": "IsPipeline"})
    return found + (made.policy("PipelinePolicy") if with_pipeline else [])


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def recorded(cloud: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A table uploaded, the doctor asked, two runs, a version approved, the Pipeline pushed, started and taken in."""
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
    for who in ("caller", "approver"):
        cloud.grant(who, attached(who), f"arn:aws:iam::{ACCOUNT}:user/{who}")
    cloud.grant("tiny-jobs", attached("job"))
    calls: dict[str, list[Call]] = {"caller": [], "job": [], "approver": []}

    def take(who: str) -> None:
        for call in cloud.calls:
            calls[{CLIENT_KEY: who, JOB_KEY: "job"}[call.access_key]].append(call)
        calls["job"] += [call for call in cloud.service_calls if call.service != "events"]
        cloud.forget_calls()

    def do(*arguments: str, who: str = "caller") -> Done:
        far.extra["AWS_ACCESS_KEY_ID"] = f"{CLIENT_KEY}.{who}"
        done = far.here(*arguments)
        assert done.code == 0, done.out + done.err
        take(who)
        return done

    cloud.forget_calls()
    do("upload", "in.txt", "--to", "june/")
    do("doctor", "--on", "sagemaker", "--probe")
    do("run", "--on", "sagemaker")
    do("models")
    do("fetch", "latest")
    do("approve", "tiny/1", "--reason", "looks well", who="approver")
    do("reject", "tiny/1", "--reason", "on second thoughts", who="approver")
    do("pipeline", "push")
    do("pipeline", "push")
    execution = do("pipeline", "start", "--json").out
    until = time.monotonic() + 200
    while (status := do("pipeline", "status", "--json").json)["status"] == "Executing" and time.monotonic() < until:
        time.sleep(0.5)
    assert status["status"] == "Succeeded", status
    do("import", json.loads(execution)["execution"])
    do("stop", "latest")
    messages = cloud.client("sqs").receive_message(QueueUrl=inbox, MaxNumberOfMessages=10).get("Messages", [])
    pending = [json.loads(message["Body"]) for message in messages]
    return Recorded(calls, pending, json.loads(execution)["arn"])


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


IDENTITIES = {"caller": "caller", "job": "tiny-jobs", "approver": "approver"}


@pytest.mark.parametrize("who", IDENTITIES)
def test_the_recorded_life_was_lived_under_its_policies(cloud: SmallSageMaker, recorded: Recorded, who: str) -> None:
    """Every call, and what the service does as the jobs' role, was asked of them; only absent objects were refused."""
    granted = attached(who)
    asked = cloud.asked(IDENTITIES[who])
    assert len(asked) >= 15
    assert {made.action for made in asked if not allowing(granted, made)} <= {"s3:ListBucket"}
    assert {call.identity for call in recorded.calls[who]} <= {IDENTITIES[who], ""}


@pytest.mark.parametrize("who", IDENTITIES)
def test_no_action_of_a_policy_could_be_taken_out(cloud: SmallSageMaker, recorded: Recorded, who: str) -> None:
    found = unneeded(attached(who), cloud.asked(IDENTITIES[who]))
    assert set(found) <= UNSEEN[who].keys()  # less where the timing of a run made a call that others do without


ONCE = {"s3:if-none-match": "*"}
SAGEMAKER = {"iam:passedtoservice": "sagemaker.amazonaws.com"}
EVENT = f"{OBJECTS}/tiny/registry/tiny/events/000003.json"
APPROVED, PENDING = ({"sagemaker:modelapprovalstatus": one} for one in ("Approved", "PendingManualApproval"))
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
]  # fmt: skip


@pytest.mark.parametrize(("who", "action", "resource", "context"), FORBIDDEN)
def test_what_somebody_must_not_do_is_not_allowed(
    who: str, action: str, resource: str, context: dict[str, str]
) -> None:
    assert allowing(statements(who), Request(action, resource, context)) == []


def test_an_endpoint_may_keep_what_it_is_asked() -> None:
    """It runs as the jobs' role, and `capture` writes below captured/TARGET/."""
    kept = f"{OBJECTS}/tiny/captured/production/tiny-production/all/2026/11/28/1.jsonl"
    assert allowing(statements("job", WithPipeline="no"), Request("s3:PutObject", kept))


def test_without_a_pipeline_the_jobs_role_registers_and_starts_nothing() -> None:
    made = stack(WithPipeline="no")
    attached = made.render(made.template["Resources"]["JobRole"]["Properties"]["ManagedPolicyArns"])
    assert attached == ["ref-JobPolicy"]
    granted = statements("job", WithPipeline="no")
    for action in ("CreateModelPackage", "CreateProcessingJob", "AddTags"):
        assert not allowing(granted, Request(f"sagemaker:{action}", f"{AT}:model-package/tiny/1"))
        assert not allowing(granted, Request(f"sagemaker:{action}", f"{AT}:processing-job/pipelines-x"))


@pytest.mark.parametrize("resource", [*POLICIES.values(), "PipelinePolicy", "ImagePolicy"])
def test_each_policy_fits_into_a_managed_policy_with_the_longest_names(cloud: SmallSageMaker, resource: str) -> None:
    long = {"Project": "p" * 32, "Bucket": "b" * 63, "Prefix": "p" * 32, "Model": "m" * 32}
    made = stack(**long, WithVpc="yes", KmsKeyArn=f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{'0' * 36}")
    document = {"Version": "2012-10-17", "Statement": made.policy(resource)}
    text = json.dumps(document, separators=(",", ":"))
    assert len(text) <= LONGEST_POLICY
    cloud.client("iam").create_policy(PolicyName=resource, PolicyDocument=text)  # refuses what is not a policy


def test_the_key_is_in_the_policies_where_there_is_one() -> None:
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
    for who in POLICIES:
        assert not allowing(statements(who), Request("kms:Decrypt", key))
        assert allowing(statements(who, KmsKeyArn=key), Request("kms:Decrypt", key))


def test_sagemaker_and_nobody_else_assumes_the_jobs_role() -> None:
    (statement,) = stack().template["Resources"]["JobRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}


# The schedule and its messages


@dataclass(frozen=True)
class Watch:
    """The function of schedule.yaml, in a process of its own against the double."""

    cloud: SmallSageMaker
    folder: Path
    topic: str
    inbox: str

    def call(self, event: dict[str, Any], *, pipeline: str = "tiny", days: int = 8) -> tuple[str, list[str]]:
        """(the subject, the messages that reached a subscriber)."""
        code = read_template(INFRA / "schedule.yaml")["Resources"]["Watch"]["Properties"]["Code"]["ZipFile"]
        (self.folder / "index.py").write_text(code)
        names = {"PIPELINE": pipeline, "TOPIC": self.topic, "DAYS": str(days)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "import json, sys, index; print(index.handler(json.load(sys.stdin), None))"],
            cwd=self.folder,
            env={**os.environ, **self.cloud.environment, **names},
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
    topic = cloud.client("sns").create_topic(Name="tiny-runs")["TopicArn"]
    inbox = cloud.client("sqs").create_queue(QueueName="messages")["QueueUrl"]
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:messages"
    cloud.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    return Watch(cloud, tmp_path, topic, inbox)


def test_a_version_that_is_registered_sends_the_event_that_the_rule_asks_for(recorded: Recorded) -> None:
    assert [event["detail"]["ModelPackageVersion"] for event in recorded.pending] == [1, 2]
    transformer = read_template(INFRA / "schedule.yaml")["Resources"]["PendingRule"]["Properties"]["Targets"][0]
    paths = transformer["InputTransformer"]["InputPathsMap"]
    for path in paths.values():
        assert path.removeprefix("$.detail.") in recorded.pending[0]["detail"]
    template = json.loads(transformer["InputTransformer"]["InputTemplate"])
    assert template.startswith("<model>/<version> waits for a decision")


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "error"])
def test_a_failed_execution_is_told_with_the_verdict_and_each_failed_step(watch: Watch, outcome: str) -> None:
    sagemaker = watch.cloud.client("sagemaker")
    role = "arn:aws:iam::123456789012:role/tiny-jobs"
    said = f"The gate's verdict is {outcome} – train.score is 0.4, 0.1 outside the required >= 0.5."
    step = {"Name": "gate-failed", "Type": "Fail", "Arguments": {"ErrorMessage": said}}
    text = json.dumps({"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": [step]})
    sagemaker.create_pipeline(
        PipelineName=f"gate-{outcome}", RoleArn=role, PipelineDefinition=text, ClientRequestToken=outcome.rjust(32, "0")
    )
    arn = sagemaker.start_pipeline_execution(PipelineName=f"gate-{outcome}")["PipelineExecutionArn"]
    until = time.monotonic() + 60
    while sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)["PipelineExecutionStatus"] == "Executing":
        assert time.monotonic() < until
        time.sleep(0.1)
    detail = {"pipelineExecutionArn": arn, "currentPipelineExecutionStatus": "Failed"}
    subject, messages = watch.call({"detail": detail})
    assert subject == "tiny: execution failed"
    assert said in messages[0]
    assert f"runner import {arn.rpartition('/')[2]}" in messages[0]


def test_no_run_for_too_long_is_told_and_a_recent_one_is_not(watch: Watch) -> None:
    assert watch.call({}) == ("", [])
    subject, messages = watch.call({}, days=0)
    assert subject == "tiny: no run for 0 days"
    assert "runner pipeline start" in messages[0]


def test_a_pipeline_that_is_not_there_is_told(watch: Watch) -> None:
    subject, messages = watch.call({}, pipeline="nobody")
    assert subject == "nobody: there is no such Pipeline"
    assert "runner pipeline push" in messages[0]


def test_the_watch_may_do_what_it_does_and_the_schedule_start_its_pipeline(watch: Watch, recorded: Recorded) -> None:
    schedule = Stack(INFRA / "schedule.yaml", Project="tiny", Model="tiny", LongestGapDays="8")
    watch.cloud.forget_calls()
    watch.call({})
    watch.call({"detail": {"pipelineExecutionArn": recorded.execution, "currentPipelineExecutionStatus": "Failed"}})
    (policy,) = schedule.render(schedule.template["Resources"]["WatchRole"]["Properties"]["Policies"])
    granted = [{"Sid": str(number), **one} for number, one in enumerate(policy["PolicyDocument"]["Statement"])]
    asked = [made for call in watch.cloud.calls if call.service == "sagemaker" for made in requests(call)]
    assert len(asked) == 4
    assert [made for made in asked if not allowing(granted, made)] == []
    assert allowing(granted, Request("sns:Publish", "ref-Topic"))
    (policy,) = schedule.render(schedule.template["Resources"]["StartRole"]["Properties"]["Policies"])
    granted = [{"Sid": str(number), **one} for number, one in enumerate(policy["PolicyDocument"]["Statement"])]
    target = schedule.render(schedule.template["Resources"]["WeeklyStart"]["Properties"]["Target"])
    assert allowing(granted, Request("sagemaker:StartPipelineExecution", target["Arn"]))


def test_the_inline_function_is_no_longer_than_cloudformation_takes() -> None:
    code = read_template(INFRA / "schedule.yaml")["Resources"]["Watch"]["Properties"]["Code"]["ZipFile"]
    assert len(code) <= 4096
