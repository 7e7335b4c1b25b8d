"""`runner doctor` says what would keep a run from working, and `runner upload` puts a table where jobs read it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from cloud import BUCKET, RemoteProject, jobs, running
from small_sagemaker import SmallSageMaker
from support.commands import Done
from support.projects import ROOT, Project, parameters

from runner.run.doctor import studio

ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/tiny-jobs"
ONE = 'name = "tiny"\n[steps.only]\nnotebook = "nb.ipynb"\n'
TRUST = {
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}]
}
SETTINGS = f"""
[sagemaker]
bucket = "{BUCKET}"
role = "{ROLE}"
image = "{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/own:1"
python = "3.11"
packages = "image"
poll_s = 0.2
"""
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"})
LINE = re.compile(r"[✓✗?] \S.*\S")


@dataclass
class Account:
    """What a server of ours answers for IAM and Service Quotas, which moto does not know enough of."""

    denied: set[str] = field(default_factory=set)  # actions that the simulated caller may not
    closed: set[str] = field(default_factory=set)  # calls that are answered AccessDenied
    trust: Any = field(default_factory=lambda: TRUST)
    quotas: dict[str, float] = field(default_factory=lambda: {"ml.m5.xlarge": 4, "ml.t3.medium": 2})
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def iam(self, form: dict[str, str]) -> tuple[int, str]:
        action = form["Action"]
        self.asked.append((action, form))
        if action in self.closed:
            return 403, "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        if action == "GetRole" and form["RoleName"] != "tiny-jobs":
            return 404, "<ErrorResponse><Error><Code>NoSuchEntity</Code><Message>no</Message></Error></ErrorResponse>"
        if action == "GetRole":
            document = urllib.parse.quote(json.dumps(self.trust))
            role = (
                f"<Role><Path>/</Path><RoleName>tiny-jobs</RoleName><RoleId>AROA000000000000</RoleId><Arn>{ROLE}</Arn>"
                "<CreateDate>2026-01-01T00:00:00Z</CreateDate>"
                f"<AssumeRolePolicyDocument>{document}</AssumeRolePolicyDocument></Role>"
            )
            return 200, f"<GetRoleResponse><GetRoleResult>{role}</GetRoleResult></GetRoleResponse>"
        names = [value for key, value in sorted(form.items()) if key.startswith("ActionNames.")]
        members = "".join(
            f"<member><EvalActionName>{name}</EvalActionName><EvalDecision>"
            f"{'implicitDeny' if name in self.denied else 'allowed'}</EvalDecision></member>"
            for name in names
        )
        result = f"<SimulatePrincipalPolicyResult><EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>"
        return 200, f"<SimulatePrincipalPolicyResponse>{result}</SimulatePrincipalPolicyResponse>"

    def service_quotas(self, action: str, wanted: dict[str, Any]) -> tuple[int, str]:
        """Two to a page, so that somebody has to turn it."""
        self.asked.append((action, {key: str(value) for key, value in wanted.items()}))
        if action in self.closed:
            return 400, json.dumps({"__type": "AccessDeniedException", "Message": "no"})
        every = [{"QuotaName": f"other {number}", "QuotaCode": "L-0", "Value": 0.0} for number in range(3)]
        every += [
            {
                "QuotaName": kind if " " in kind else f"{kind} for processing job usage",
                "QuotaCode": "L-1",
                "Value": value,
            }
            for kind, value in self.quotas.items()
        ]
        begin = int(wanted.get("NextToken", 0))
        page: dict[str, Any] = {"Quotas": every[begin : begin + 2]}
        if begin + 2 < len(every):
            page["NextToken"] = str(begin + 2)
        return 200, json.dumps(page)


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        ecr = made.client("ecr")
        ecr.create_repository(repositoryName="own")
        ecr.put_image(repositoryName="own", imageManifest=MANIFEST, imageTag="1")
        yield made


@pytest.fixture
def account() -> Iterator[tuple[Account, str]]:
    made = Account()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            target = self.headers.get("X-Amz-Target")
            if target is None:
                status, said = made.iam(dict(urllib.parse.parse_qsl(body)))
            else:
                status, said = made.service_quotas(target.rpartition(".")[2], json.loads(body))
            content = said.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1" if target else "text/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass(frozen=True)
class Examined(RemoteProject):
    """A project with one notebook in an account where all is well, unless a test changes it."""

    def doctor(self, *arguments: str, toml: str = "", **settings: str) -> dict[str, dict[str, Any]]:
        """The checks by name, after `--json`; `settings` replace those of [sagemaker]."""
        self.set(toml=toml, **settings)
        done = self.here("doctor", "--on", "sagemaker", "--json", *arguments)
        assert done.out, done.err
        found = {check["name"]: check for check in done.json["checks"]}
        failed = [check for check in found.values() if check["status"] == "failed"]
        assert done.json["ok"] == (not failed)
        assert all(check["remedy"] for check in failed), failed
        return {**found, "exit": {"code": done.code}}

    def set(self, *, toml: str = "", **settings: str) -> None:
        text = self.settings
        for key, value in settings.items():
            line = f'{key} = "{value}"' if value else ""
            text = re.sub(rf"(?m)^{key} = .*$", line, text) if f"\n{key} = " in text else f"{text}{line}\n"
        self.write("nb.ipynb", parameters("x: str = ''\nmodel: str = ''"), "x")
        (self.folder / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
        (self.folder / "pipeline.toml").write_text(ONE + toml + text, encoding="utf-8")


@pytest.fixture
def far(cloud: SmallSageMaker, account: tuple[Account, str], tmp_path: Path) -> Iterator[Examined]:
    url = account[1]
    yield Examined(
        tmp_path, cloud, settings=SETTINGS, extra={"AWS_ENDPOINT_URL_IAM": url, "AWS_ENDPOINT_URL_SERVICE_QUOTAS": url}
    )
    cloud.faults.clear()


def by_name(done: Done) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in done.json["checks"]}


def left_by_doctor(cloud: SmallSageMaker) -> list[str]:
    listed = cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="tiny/doctor/")
    return [item["Key"] for item in listed.get("Contents", [])]


# This machine


def test_a_sound_machine_is_five_lines_and_nothing_is_left_behind(project: Project) -> None:
    project.write("nb.ipynb", parameters("x: int = 1"), "x")
    project.toml(ONE)
    (project.folder / "requirements.lock").write_bytes((ROOT / "requirements.lock").read_bytes())
    before = sorted(project.folder.rglob("*"))
    done = project.runner("doctor")
    assert done.code == 0, done.out
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["✓", name] for name in ("python", "packages", "kernel", "runs", "pipeline")
    ]
    assert sorted(project.folder.rglob("*")) == before


def test_each_line_that_fails_names_the_fix(project: Project) -> None:
    project.toml(ONE)  # and no notebook
    (project.folder / "runs").write_text("in the way")
    (project.folder / "requirements.lock").write_text("click==0.1 \\\n    --hash=sha256:00\nno-such-package==1\n")
    done = project.runner("doctor")
    lines = {line.split()[1]: line for line in done.out.splitlines()}
    assert done.code == 2
    assert all(LINE.fullmatch(line) for line in lines.values())
    assert re.fullmatch(r"✗ packages +2 of 2 differ from requirements.lock: click 8\S+ \(lock: 0.1\), "
                        r"no-such-package missing \(lock: 1\): `uv pip install .*", lines["packages"])  # fmt: skip
    assert lines["runs"].startswith("✗ runs")
    assert "move the project" in lines["runs"]
    assert "nb.ipynb" in lines["pipeline"]
    assert "`runner check`" in lines["pipeline"]


def test_a_project_without_a_lock_cannot_be_compared_with_it(project: Project) -> None:
    project.write("nb.ipynb", parameters("x: int = 1"), "x")
    project.toml(ONE)
    done = project.runner("doctor", "--json")
    assert (done.code, by_name(done)["packages"]["status"]) == (0, "unknown")
    assert (
        by_name(done)["packages"]["message"] == "there is no requirements.lock beside the pipeline file to compare with"
    )


def test_a_kernel_that_is_not_installed_is_named_with_its_notebook(project: Project) -> None:
    project.write("nb.ipynb", parameters("x = 1"), "x", kernel="nosuch", language="julia")
    project.toml(ONE)
    said = "nb.ipynb: its kernel 'nosuch' (julia) is not installed here: install it, or choose another in Jupyter ("
    for command in ("doctor", "run"):
        done = project.runner(command)
        assert (done.code, said in done.out + done.err) == (2, True), done
    assert "steps.only: nb.ipynb" in done.err


def test_a_lock_for_other_machines_is_read_as_this_one_would(project: Project) -> None:
    project.write("nb.ipynb", parameters("x: int = 1"), "x")
    project.toml(ONE)
    (project.folder / "requirements.lock").write_text("no-such-package==1 ; sys_platform == 'win32'\n")
    assert by_name(project.runner("doctor", "--json"))["packages"]["status"] == "ok"


def test_in_a_space_of_studio_the_lifecycle_scripts_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert (studio(log).status, "make studio" in studio(log).said) == ("unknown", True)
    log.write_text("2026-11-28T10:00:00Z /home/churn\nopen a notebook\n")
    assert studio(log).status == "ok"
    log.write_text(
        f"{log.read_text()}2026-11-28T10:01:00Z /home/churn: failed; see above, then run make studio there\n"
    )
    assert (studio(log).status, studio(log).said.startswith("2026-11-28T10:01:00Z /home/churn: failed")) == (
        "failed",
        True,
    )


def test_the_probe_is_for_sagemaker_only(project: Project) -> None:
    project.toml(ONE)
    done = project.runner("doctor", "--probe")
    assert done.code == 2
    assert "--on sagemaker" in done.err


# SageMaker


def test_an_account_that_is_ready_has_no_failing_line(far: Examined, account: tuple[Account, str]) -> None:
    found = far.doctor()
    assert found.pop("exit")["code"] == 0
    assert list(found) == ["pipeline", "region", "credentials", "bucket", "role", "passrole", "jobs", "image", "quota",
                           "registry", "events", "executions", "logs", "price", "packages", "versions"]  # fmt: skip
    assert {name: check["status"] for name, check in found.items() if check["status"] != "ok"} == {
        "versions": "unknown"
    }
    assert (
        "--probe` starts one ml.t3.medium for 10 minutes at most; it costs 0.0083 USD at most"
        in found["versions"]["message"]
    )
    assert found["quota"]["message"] == "4 ml.m5.xlarge at once for processing jobs"
    simulated = next(form for action, form in account[0].asked if "iam:PassRole" in form.values())
    assert simulated["ResourceArns.member.1"] == ROLE
    assert simulated["ContextEntries.member.1.ContextKeyValues.member.1"] == "sagemaker.amazonaws.com"


def test_nothing_stays_in_the_bucket_and_no_job_is_started(far: Examined, cloud: SmallSageMaker) -> None:
    before = jobs(cloud), left_by_doctor(cloud)
    far.doctor()
    assert (jobs(cloud), left_by_doctor(cloud)) == before


def test_lines_are_for_people_and_say_the_mark_first(far: Examined) -> None:
    far.set(role="")
    done = far.here("doctor", "--on", "sagemaker")
    assert done.code == 2
    lines = done.out.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    assert re.fullmatch(r"✓ region +eu-west-1 \(from the environment\)", lines[2])
    assert re.fullmatch(r"✗ role +\[sagemaker\] role is not set: write \[sagemaker\] role = .*", lines[1])


def test_what_is_not_set_is_said_with_what_it_is_for_and_the_rest_is_still_asked(far: Examined) -> None:
    found = far.doctor(bucket="", role="", image="")
    assert found["exit"]["code"] == 2
    for key in ("bucket", "role", "image"):
        assert found[key]["message"] == f"[sagemaker] {key} is not set"
    assert found["credentials"]["status"] == found["quota"]["status"] == "ok"


@pytest.mark.parametrize(
    ("left_out", "name", "fix"),
    [
        (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "credentials", "aws sso login"),
        (("AWS_REGION", "AWS_DEFAULT_REGION"), "region", "[sagemaker] region"),
    ],
)
def test_without_a_way_in_nothing_else_is_asked(
    far: Examined, left_out: tuple[str, ...], name: str, fix: str, tmp_path: Path
) -> None:
    far.set()
    empty = {**dict.fromkeys(left_out, ""), "HOME": str(tmp_path / "home"), "AWS_CONFIG_FILE": os.devnull}
    done = far.runner("doctor", "--on", "sagemaker", "--json", env=empty)
    found = by_name(done)
    assert done.code in (2, 7)
    assert found[name]["status"] == "failed"
    assert fix in found[name]["remedy"]
    assert found["the rest"]["status"] == "unknown"
    assert "bucket" not in found


def test_expired_credentials_are_said_to_be(far: Examined, cloud: SmallSageMaker) -> None:
    cloud.faults.add("GetCallerIdentity", "ExpiredToken", message="The security token is expired", status=403)
    found = far.doctor()
    assert found["exit"]["code"] == 7
    assert "log in again" in found["credentials"]["message"]


def test_a_region_that_is_none_is_said(far: Examined) -> None:
    found = far.doctor(region="eu-west-9")
    assert found["region"]["status"] == "failed"
    assert "eu-west-9" in found["region"]["message"]


def test_a_bucket_that_is_not_there_has_the_command_that_makes_it(far: Examined) -> None:
    found = far.doctor(bucket="nobody-has-this-one")
    assert found["exit"]["code"] == 2
    assert found["bucket"]["remedy"] == "`aws s3 mb s3://nobody-has-this-one --region eu-west-1`"


def test_a_bucket_in_another_region_is_said(far: Examined, cloud: SmallSageMaker) -> None:
    place = {"LocationConstraint": "eu-central-1"}
    s3 = boto3.client(
        "s3", endpoint_url=cloud.url, region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="a"
    )
    s3.create_bucket(Bucket="far-away", CreateBucketConfiguration=place)
    found = far.doctor(bucket="far-away")
    assert found["bucket"]["message"] == "s3://far-away is in eu-central-1, jobs would run in eu-west-1"
    assert 'region = "eu-central-1"' in found["bucket"]["remedy"]


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("PutObject", "put_object was answered AccessDenied"),
        ("GetObject", "get_object was answered AccessDenied"),
        ("ListObjectsV2", "may not be listed, so what is not there cannot be told"),
    ],
)
def test_a_bucket_that_may_not_be_used_names_the_right(
    far: Examined, cloud: SmallSageMaker, action: str, said: str
) -> None:
    cloud.faults.add(action, "AccessDenied", times=None, status=403)
    cloud.faults.add("HeadObject", "AccessDenied", times=None, status=403)  # what is not there, to who may not list all
    found = far.doctor()
    assert found["exit"]["code"] == 7
    assert said in found["bucket"]["message"]
    assert "infra/policies.yaml" in found["bucket"]["remedy"]


def test_a_bucket_that_overwrites_what_is_to_be_written_once_is_refused(far: Examined, cloud: SmallSageMaker) -> None:
    # as an S3 lookalike that takes the header and does not know it: the second write is answered like the first
    cloud.faults.add("PutObject", "NotThereYet", times=None, match={"IfNoneMatch": "*"}, status=404)
    assert far.doctor()["bucket"]["status"] == "failed"


def test_an_object_that_may_not_be_removed_is_named_and_is_no_failure(far: Examined, cloud: SmallSageMaker) -> None:
    cloud.faults.add("DeleteObject", "AccessDenied", status=403)
    found = far.doctor()
    assert found["bucket"]["status"] == "ok"
    assert re.search(rf"s3://{BUCKET}/tiny/doctor/\w+ stays", found["bucket"]["message"])


@pytest.mark.soak
def test_a_role_that_is_not_there_or_not_one_is_said(far: Examined) -> None:
    found = far.doctor(role=f"arn:aws:iam::{ACCOUNT}:role/nobody")
    assert found["role"]["message"] == "there is no role nobody"
    assert "is not a role's ARN" in far.doctor(role="jobs")["role"]["message"]
    assert "another account" in far.doctor(role="arn:aws:iam::999999999999:role/tiny-jobs")["role"]["message"]


def test_a_role_that_sagemaker_may_not_assume_is_said(far: Examined, account: tuple[Account, str]) -> None:
    account[0].trust = {
        "Statement": {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    }
    found = far.doctor()
    assert found["role"]["message"] == "tiny-jobs may not be assumed by sagemaker.amazonaws.com"


def test_what_the_caller_may_not_ask_is_unknown_with_the_reason(
    far: Examined, cloud: SmallSageMaker, account: tuple[Account, str]
) -> None:
    account[0].closed = {"GetRole", "SimulatePrincipalPolicy", "ListServiceQuotas"}
    cloud.faults.add("DescribeImages", "AccessDeniedException", times=None)
    found = far.doctor()
    assert found["exit"]["code"] == 0
    for name, right in {
        "role": "iam:GetRole",
        "passrole": "iam:SimulatePrincipalPolicy",
        "jobs": "iam:SimulatePrincipalPolicy",
        "image": "ecr:DescribeImages",
        "quota": "servicequotas:ListServiceQuotas",
    }.items():
        assert found[name]["status"] == "unknown"
        assert right in found[name]["message"]


def test_a_caller_who_may_not_pass_the_role_is_told_so(far: Examined, account: tuple[Account, str]) -> None:
    account[0].denied = {"iam:PassRole", "sagemaker:CreateProcessingJob"}
    found = far.doctor()
    assert found["exit"]["code"] == 7
    assert f"may not iam:PassRole on {ROLE}" in found["passrole"]["message"]
    assert "may not sagemaker:CreateProcessingJob on" in found["jobs"]["message"]


@pytest.mark.soak
def test_an_image_that_is_elsewhere_or_nowhere_is_said(far: Examined, cloud: SmallSageMaker) -> None:
    at = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"
    assert f"there is no {at}/own:2" in far.doctor(image=f"{at}/own:2")["image"]["message"]
    assert f"there is no {at}/other:1" in far.doctor(image=f"{at}/other:1")["image"]["message"]
    elsewhere = far.doctor(image=f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/own:1")["image"]
    assert elsewhere["message"].endswith("is in us-east-1, jobs would run in eu-west-1")
    assert "no private registry" in far.doctor(image="public.ecr.aws/docker/library/python:3.12")["image"]["message"]
    cloud.faults.add("DescribeImages", "AccessDeniedException")
    foreign = far.doctor(image="819792524951.dkr.ecr.eu-west-1.amazonaws.com/sagemaker-distribution-prod:4.4-cpu")
    assert foreign["image"]["status"] == "unknown"
    assert "account 819792524951 tells nobody" in foreign["image"]["message"]


@pytest.mark.soak
def test_a_quota_of_nothing_has_the_command_that_asks_for_more(far: Examined, account: tuple[Account, str]) -> None:
    account[0].quotas = {"ml.m5.xlarge": 0}
    found = far.doctor()
    assert found["exit"]["code"] == 7
    assert found["quota"]["message"] == "0 ml.m5.xlarge for processing jobs"
    assert "--quota-code L-1 --desired-value 1" in found["quota"]["remedy"]
    account[0].quotas = {}
    assert far.doctor()["quota"]["status"] == "unknown"


def test_training_jobs_have_quotas_rights_and_a_log_of_their_own(
    far: Examined, account: tuple[Account, str], cloud: SmallSageMaker
) -> None:
    account[0].quotas = {
        "ml.m5.xlarge for training job usage": 2,
        "ml.m5.xlarge for training warm pool usage": 0,
        "ml.m5.xlarge for spot training job usage": 1,
    }
    warm, spot = "keep_warm_s = 60\n", "spot = true\n"
    for own, told in (
        (warm, ["2 ml.m5.xlarge at once for training jobs", "0 ml.m5.xlarge for training warm pools"]),
        (spot, ["1 ml.m5.xlarge at once for spot training jobs"]),
    ):
        far.set(toml=f'[steps.only.sagemaker]\njob = "training"\n{own}')
        done = far.here("doctor", "--on", "sagemaker", "--json")
        found = [(check["name"], check["message"]) for check in done.json["checks"]]
        assert [said for name, said in found if name == "quota"] == told, done.out
        assert done.code == (7 if own == warm else 0)
        (rights,) = [said for name, said in found if name == "jobs"]
        assert "sagemaker:CreateTrainingJob" in rights
        assert ":training-job/tiny-doctor-probe-1" in rights
        (log,) = [said for name, said in found if name == "logs"]
        assert log.startswith("/aws/sagemaker/TrainingJobs is not there yet")
        assert ("training", "no run from here has had a training job yet") in found


def test_each_different_instance_and_image_of_the_steps_is_asked_for(far: Examined) -> None:
    far.set(toml='[steps.only.sagemaker]\ninstance = "ml.t3.medium"\n')
    done = far.here("doctor", "--on", "sagemaker")
    assert "2 ml.t3.medium at once" in done.out
    assert "ml.m5.xlarge" not in done.out


MODEL = '[model]\nname = "{}"\nfrom = "only.model"\nregistry = "sagemaker"\n'
OUTPUT = 'outputs = { model = "model/" }\n'


@pytest.mark.soak
def test_the_registry_is_asked_where_versions_are_kept_there(
    far: Examined, cloud: SmallSageMaker, account: tuple[Account, str]
) -> None:
    found = far.doctor(toml=OUTPUT + MODEL.format("nobody"))
    assert "there is no group nobody yet" in found["registry"]["message"]
    cloud.client("sagemaker").create_model_package_group(ModelPackageGroupName="some")
    assert (
        "group some is there and has no version"
        in far.doctor(toml=OUTPUT + MODEL.format("some"))["registry"]["message"]
    )
    event, content = "tiny/registry/some/events/000001.json", b'{"seq": 1}'
    s3 = cloud.client("s3")
    s3.put_object(Bucket=BUCKET, Key=event, Body=content)
    assert far.doctor(toml=OUTPUT + MODEL.format("some"))["events"]["status"] == "ok"
    assert s3.get_object(Bucket=BUCKET, Key=event)["Body"].read() == content
    cloud.faults.add("PutObject", "AccessDeniedException", match={"Key": event})
    refused = far.doctor(toml=OUTPUT + MODEL.format("some"))["events"]
    assert (refused["status"], "s3:if-none-match" in refused["remedy"]) == ("failed", True)
    account[0].denied = {"sagemaker:CreateModelPackage"}
    denied = far.doctor(toml=OUTPUT + MODEL.format("some"))
    assert denied["registry"]["status"] == "failed"
    asked = next(form for _, form in account[0].asked if "sagemaker:CreateModelPackage" in form.values())
    assert asked["ContextEntries.member.1.ContextKeyName"] == "sagemaker:ModelApprovalStatus"  # as the policies have it
    assert asked["ContextEntries.member.1.ContextKeyValues.member.1"] == "PendingManualApproval"
    account[0].denied = set()
    cloud.faults.add("ListModelPackages", "AccessDeniedException", times=None)
    denied = far.doctor(toml=OUTPUT + MODEL.format("some"))
    assert denied["exit"]["code"] == 7
    assert "ListModelPackages" in denied["registry"]["message"]


def test_a_log_that_may_not_be_read_fails_and_says_that_runs_go_on(far: Examined, cloud: SmallSageMaker) -> None:
    cloud.faults.add("DescribeLogStreams", "AccessDeniedException", times=None)
    found = far.doctor()
    assert found["logs"]["status"] == "failed"
    assert "runs go on without" in found["logs"]["message"]


def test_an_instance_without_a_price_is_unknown(far: Examined, account: tuple[Account, str]) -> None:
    account[0].quotas = {"ml.x9.huge": 1}
    found = far.doctor(instance="ml.x9.huge")
    assert found["price"]["status"] == "unknown"
    assert "prices.toml" in found["price"]["message"]


def test_a_step_that_may_be_tried_again_costs_that_much_more(far: Examined) -> None:
    def ceiling(toml: str) -> float:
        return float(re.search(r"time limit, each attempt, ([\d.]+) USD", far.doctor(toml=toml)["price"]["message"])[1])  # type: ignore[index]

    # 2.30 USD with a quarter of an hour around the step; what the service itself ends is tried three times in any case
    assert ceiling("timeout_s = 35100\n") == pytest.approx(3 * 2.3)
    assert ceiling("timeout_s = 35100\nretries = 5\n") == pytest.approx(6 * 2.3)


def test_a_lock_that_is_not_there_is_said(far: Examined) -> None:
    found = far.doctor(lock="other.lock")
    assert found["exit"]["code"] == 2
    assert "other.lock" in found["packages"]["message"]


@pytest.mark.soak
def test_the_locks_wheels_are_there_for_the_image_and_what_uploads_is_counted(far: Examined) -> None:
    whole = re.sub(r"\\\n", " ", (ROOT / "requirements.lock").read_text(encoding="utf-8"))
    six = next(line for line in whole.splitlines() if line.startswith("six=="))
    far.set(packages="lock", python="3.12", lock="six.lock")
    (far.folder / "six.lock").write_text(six + "\n")
    done = far.here("doctor", "--on", "sagemaker", "--json")
    packages = by_name(done)["packages"]
    assert packages["status"] == "ok", packages
    assert packages["message"].startswith(
        "a wheel for each of the 1 of six.lock for Python 3.12 on manylinux_2_28_x86_64"
    )
    assert "0 MB of them go up" in packages["message"]


def test_what_is_wrong_in_the_file_is_said_first(far: Examined) -> None:
    found = far.doctor(toml="[steps.only.sagemaker]\nvolume_gb = 0\n")
    assert "volume_gb" in found["settings"]["message"]
    far.toml("name = \n")
    done = far.here("doctor", "--on", "sagemaker")
    assert done.code == 2
    assert done.out.startswith("✗ pipeline")


# The probe


def test_the_probe_runs_one_small_job_and_says_what_it_found(far: Examined, cloud: SmallSageMaker) -> None:
    before, objects = jobs(cloud), left_by_doctor(cloud)
    far.set()
    done = far.here("doctor", "--on", "sagemaker", "--probe")
    assert done.code == 0, done.out
    assert "starting one ml.t3.medium for 10 minutes at most; it costs 0.0083 USD at most" in done.err
    assert re.search(r"✓ versions +the job tiny-doctor-\w+-1 ran Python 3\.\S+ with the image's own packages", done.out)
    made = [job for job in jobs(cloud) if job not in before]
    assert len(made) == 1
    found = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=made[0])
    # long and large enough to install what a step installs
    cluster = {"InstanceCount": 1, "InstanceType": "ml.t3.medium", "VolumeSizeInGB": 30}
    assert (found["StoppingCondition"], found["ProcessingResources"]) == (
        {"MaxRuntimeInSeconds": 600},
        {"ClusterConfig": cluster},
    )
    assert "2 ml.t3.medium" in done.out
    assert left_by_doctor(cloud) == objects


@pytest.mark.soak
def test_an_image_that_differs_from_the_lock_is_told_by_the_probe(far: Examined) -> None:
    far.set(lock="other.lock")
    (far.folder / "other.lock").write_text(f"click==0.1 --hash=sha256:{'0' * 64}\n")
    done = far.here("doctor", "--on", "sagemaker", "--probe", "--json")
    versions = by_name(done)["versions"]
    assert (done.code, versions["status"]) == (7, "failed")
    assert re.search(
        r"ended Failed: The image differs from the lock in 1 package: click 8\S+ \(lock: 0.1\)", versions["message"]
    )


def test_the_probe_is_not_started_where_what_it_needs_has_failed(far: Examined, cloud: SmallSageMaker) -> None:
    before = jobs(cloud)
    found = far.doctor("--probe", role=f"arn:aws:iam::{ACCOUNT}:role/nobody")
    assert "was not started" in found["versions"]["message"]
    assert jobs(cloud) == before


# Uploading a table


def test_a_table_goes_up_once_under_its_content(far: Examined, cloud: SmallSageMaker) -> None:
    table = far.folder / "table one.csv"
    table.write_text("a,b\n1,2\n")
    far.set(role="", image="", toml='inputs = { x = "./table one.csv" }\n')
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    dry = far.here("upload", "table one.csv", "--dry-run", "--json").json
    address = f"s3://{BUCKET}/tiny/data/{sha256[:16]}/table one.csv"
    assert (dry["address"], dry["moved_bytes"], dry["sha256"]) == (address, 8, sha256)
    assert "Contents" not in cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="tiny/data/")
    done = far.here("upload", "table one.csv")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [address, f'  [steps.only] inputs: x = "{address}"']
    assert "moved 8 of 8 bytes" in done.err
    stored = cloud.client("s3").get_object(Bucket=BUCKET, Key=f"tiny/data/{sha256[:16]}/table one.csv")
    assert stored["Body"].read() == table.read_bytes()
    cloud.forget_calls()
    again = far.here("upload", "table one.csv", "--json").json
    assert again["moved_bytes"] == 0
    assert {call.action for call in cloud.calls} == {"HeadObject"}


def test_a_big_table_goes_up_in_parts(far: Examined, cloud: SmallSageMaker) -> None:
    (far.folder / "big.bin").write_bytes(os.urandom(17 << 20))
    far.set()
    cloud.forget_calls()
    done = far.here("upload", "big.bin", "--to", "june/")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"s3://{BUCKET}/tiny/data/june/big.bin"
    assert [call.action for call in cloud.calls].count("UploadPart") == 2


def test_a_key_of_your_own_is_overwritten_only_where_you_say_so(far: Examined) -> None:
    far.set()
    table = far.folder / "t.csv"
    table.write_text("1")
    assert far.here("upload", "t.csv", "--to", "mine/now.csv").code == 0
    assert far.here("upload", "t.csv", "--to", "mine/now.csv", "--json").json["moved_bytes"] == 0
    table.write_text("2")
    refused = far.here("upload", "t.csv", "--to", "mine/now.csv")
    assert refused.code == 8
    assert "has other content" in refused.err
    assert far.here("upload", "t.csv", "--to", "mine/now.csv", "--replace", "--json").json["moved_bytes"] == 1


def test_a_table_goes_to_exactly_the_key_that_a_guide_has(far: Examined, cloud: SmallSageMaker) -> None:
    (far.folder / "t.csv").write_text("1")
    far = replace(far, tables="sagemaker/DEMO-xgboost-churn")
    far.set(role="", image="", toml='inputs = { x = "./t.csv" }\n')
    key = "sagemaker/DEMO-xgboost-churn/data/RawData.csv"
    address = f"s3://{BUCKET}/{key}"
    assert far.here("upload", "t.csv", "--as", key, "--dry-run", "--json").json["moved_bytes"] == 1
    done = far.here("upload", "t.csv", "--as", key)
    assert done.out.splitlines() == [
        address,
        f"  runner run --on sagemaker -p only.x={address}",
        f"  runner pipeline start -p only.x={address}",
    ], done.err
    assert cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"1"
    assert far.here("upload", "t.csv", "--as", "sagemaker/DEMO-xgboost-churn/data/", "--json").json["address"] == (
        f"s3://{BUCKET}/sagemaker/DEMO-xgboost-churn/data/t.csv"
    )
    (far.folder / "t.csv").write_text("2")
    assert far.here("upload", "t.csv", "--as", key).code == 8
    assert far.here("upload", "t.csv", "--as", key, "--replace").code == 0
    for wrong in (
        "tiny/data/x.csv",
        "deploy-tiny/x.csv",
        "delivery-x",
        "/x.csv",
        "a/../tiny/x",
        "a//x",
        "s3://b/x",
        "",
    ):
        assert far.here("upload", "t.csv", "--as", wrong).code == 2, wrong
    assert far.here("upload", "t.csv", "--as", key, "--to", "june/").code == 2


def test_what_is_no_table_is_refused_with_a_sentence(far: Examined) -> None:
    far.set()
    os.mkfifo(far.folder / "pipe")
    (far.folder / "folder").mkdir()
    (far.folder / "t.csv").write_text("1")
    for name, said in {"pipe": "not a regular file", "folder": "is a folder", "nothing": "cannot be read"}.items():
        done = far.here("upload", name)
        assert (done.code, said in done.err) == (2, True), done.err
    for key in ("/t.csv", "../t.csv", "s3://other/t.csv"):
        assert far.here("upload", "t.csv", "--to", key).code == 2


def test_without_a_bucket_a_table_goes_to_the_accounts_default_one_if_there_is_one(
    far: Examined, cloud: SmallSageMaker
) -> None:
    (far.folder / "t.csv").write_text("1")
    far.set(bucket="", role="", image="")
    name = f"sagemaker-{cloud.region}-{ACCOUNT}"
    refused = far.here("upload", "t.csv")
    assert refused.code == 2
    assert '[sagemaker] bucket = "…"' in refused.err
    assert f"aws s3 mb s3://{name}" in refused.err
    cloud.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": cloud.region})
    done = far.here("upload", "t.csv", "--to", "june/")
    assert done.code == 0, done.err
    address = f"s3://{name}/tiny/data/june/t.csv"
    assert done.out.splitlines() == [address, f'  [sagemaker] bucket = "{name}"']
    assert "default bucket" in done.err
    assert cloud.client("s3").get_object(Bucket=name, Key="tiny/data/june/t.csv")["Body"].read() == b"1"
    assert far.here("upload", "t.csv", "--to", "june/", "--json").json["lines"] == [f'[sagemaker] bucket = "{name}"']
