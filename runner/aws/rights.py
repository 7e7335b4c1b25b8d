"""Who asks AWS, and what that caller and the jobs' role may do, as checks of `runner doctor`."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from runner.aws.processing.jobs import Kind, log_group
from runner.aws.processing.request import job_name
from runner.aws.session import DENIED, AwsError, Session
from runner.records import Pipeline
from runner.run.doctor import Check, failed, ok, unknown

SERVICE = "sagemaker.amazonaws.com"
ROLE = re.compile(r"arn:aws[\w-]*:iam::(\d{12}):role/(?:.*/)?([\w+=,.@-]+)")
GRANT = "attach the caller policy of infra/policies.yaml (docs/sagemaker.md, step 3)"
NAME_A_ROLE = 'write [sagemaker] role = "arn:aws:iam::…:role/…", which jobs run as; infra/policies.yaml makes one'


@dataclass(frozen=True)
class Caller:
    """`simulated` is the ARN of which IAM simulates the rights; "" where it is not known, or is root's."""

    arn: str
    account: str
    partition: str
    simulated: str


def identity(session: Session) -> Caller:
    """Raises AwsError where the credentials are not accepted."""
    arn = str(session.call("sts", "get_caller_identity", about="the credentials")["Arn"])
    _, partition, _, _, account, resource = arn.split(":", 5)
    simulated = arn if resource.startswith("user/") else ""
    if resource.startswith("assumed-role/"):
        name = resource.split("/")[1]
        try:  # the role's path is not in the session's ARN
            simulated = session.call("iam", "get_role", about=f"role {name}", RoleName=name)["Role"]["Arn"]
        except AwsError:
            simulated = ""
    return Caller(arn, account, partition, simulated)


def role(session: Session, caller: Caller, arn: str) -> Check:
    match = ROLE.fullmatch(arn)
    if match is None:
        return failed("role", f"{arn} is not a role's ARN", NAME_A_ROLE)
    account, name = match.groups()
    if account != caller.account:
        fix = "a role is passed within its account only: name one of yours, or log in to that account"
        return failed("role", f"{arn} is of another account than the caller's {caller.account}", fix)
    try:
        existing = session.call("iam", "get_role", about=f"role {name}", RoleName=name)["Role"]
    except AwsError as error:
        if error.code in DENIED:
            return unknown("role", f"{name}: the caller may not ask (iam:GetRole)")
        if error.code.startswith("NoSuchEntity"):
            return failed("role", f"there is no role {name}", "deploy infra/policies.yaml, which makes one")
        raise
    if existing["Arn"] != arn:
        return failed("role", f"there is no {arn}", f'write [sagemaker] role = "{existing["Arn"]}"')
    if not _trusts_sagemaker(existing["AssumeRolePolicyDocument"]):
        fix = f'allow {{"Service": "{SERVICE}"}} sts:AssumeRole in its trust policy, as infra/policies.yaml does'
        return failed("role", f"{name} may not be assumed by {SERVICE}", fix)
    return ok("role", f"{name} may be assumed by {SERVICE}")


def pass_role(session: Session, caller: Caller, arn: str) -> Check:
    if ROLE.fullmatch(arn) is None:
        return unknown("passrole", "not asked: there is no role")
    return _simulated(session, caller, "passrole", ["iam:PassRole"], arn, {"iam:PassedToService": SERVICE})


def job_rights(session: Session, caller: Caller, project: str, kind: Kind) -> Check:
    arn = f"{_sagemaker(session, caller)}:{kind.lower()}-job/{job_name(project, 'doctor', 'probe', 1)}"
    verbs = (f"Create{kind}Job", f"Describe{kind}Job", f"Stop{kind}Job", "AddTags", "ListTags")
    return _simulated(session, caller, "jobs", [f"sagemaker:{verb}" for verb in verbs], arn, {})


def registry(session: Session, caller: Caller, spec: Pipeline) -> Check:
    if spec.model is None or spec.model.registry != "sagemaker":
        return ok("registry", "nothing to ask: versions are not kept in SageMaker")
    name = spec.model.name
    about = f"model package group {name}"
    page = session.find("sagemaker", "list_model_packages", about=about, ModelPackageGroupName=name, MaxResults=1)
    if page is None:
        group = f"there is no group {name} yet, the first version makes it"
    else:
        group = f"group {name} is there{'' if page.get('ModelPackageSummaryList') else ' and has no version'}"
    arn = _sagemaker(session, caller)
    # the policies let nobody make a version that is approved already
    pending = {"sagemaker:ModelApprovalStatus": "PendingManualApproval"}
    actions = ["sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage"]
    create_group = ["sagemaker:CreateModelPackageGroup"]
    may_group = _simulated(session, caller, "registry", create_group, f"{arn}:model-package-group/{name}", {})
    may_version = _simulated(session, caller, "registry", actions, f"{arn}:model-package/{name}/1", pending)
    worst = may_group if may_group.status == "failed" else may_version
    return dataclasses.replace(worst, said=f"{group}; {worst.said}")


def logs(session: Session, kind: Kind) -> Check:
    group = log_group(kind)
    try:
        streams = session.find("logs", "describe_log_streams", about=group, logGroupName=group, limit=1)
    except AwsError as error:
        if error.code not in DENIED:
            raise
        problem = f"{group} may not be read; runs go on without their jobs' lines"
        return failed("logs", problem, f"grant logs:DescribeLogStreams: {GRANT}", code=error.exit_code)
    return ok("logs", f"{group} {'may be read' if streams is not None else 'is not there yet, the first job makes it'}")


def _sagemaker(session: Session, caller: Caller) -> str:
    return f"arn:{caller.partition}:sagemaker:{session.region}:{caller.account}"


def _simulated(
    session: Session, caller: Caller, name: str, actions: list[str], resource: str, context: dict[str, str]
) -> Check:
    """The answer of IAM's simulator about the caller; it knows no service control policies and no session policies."""
    words = ", ".join(actions)
    if caller.arn.endswith(":root"):
        return ok(name, f"{words}: the account's root may do everything; let a role run jobs instead")
    if not caller.simulated:
        return unknown(name, f"{words}: the rights of {caller.arn} cannot be asked for")
    request = {
        "PolicySourceArn": caller.simulated,
        "ActionNames": actions,
        "ResourceArns": [resource],
        "ContextEntries": [
            {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for key, value in context.items()
        ],
    }
    try:
        reply = session.call("iam", "simulate_principal_policy", about=f"the rights of {caller.simulated}", **request)
    except AwsError as error:
        if error.code in DENIED:
            return unknown(name, f"{words}: the caller may not ask (iam:SimulatePrincipalPolicy)")
        return unknown(name, f"{words}: IAM did not answer ({error.code})")
    denied = [item["EvalActionName"] for item in reply["EvaluationResults"] if item["EvalDecision"] != "allowed"]
    if denied:
        problem = f"{caller.simulated} may not {', '.join(denied)} on {resource}"
        return failed(name, problem, GRANT, code=AwsError.exit_code)
    return ok(name, f"{words} allowed on {resource}")


def _trusts_sagemaker(document: Any) -> bool:
    """Whether the trust policy (a document, or its URL-encoded JSON) lets the service assume the role."""
    if isinstance(document, str):
        document = json.loads(urllib.parse.unquote(document))
    for statement in _as_list(document.get("Statement", [])):
        principal = statement.get("Principal", {})
        services = _as_list(principal.get("Service", [])) if isinstance(principal, dict) else []
        actions = _as_list(statement.get("Action", []))
        if statement.get("Effect") == "Allow" and SERVICE in services and "sts:AssumeRole" in actions:
            return True
    return False


def _as_list(value: Any) -> list[Any]:
    """A policy has a single item without its list."""
    return value if isinstance(value, list) else [value]
