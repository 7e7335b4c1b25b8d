"""Who there is in a project's account, and what infra/ lets each of them do; the small SageMaker asks that on every call.

Programs under test are the caller, or whoever a command is for (`whose`); jobs have the jobs' role. A test's own
clients (`cloud.client(...)`) are the account's administrator: they set up what a test needs and look at what came of it.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iam import ACCOUNT, INFRA, REGION, Stack
from small_sagemaker import CLIENT_KEY, SmallSageMaker

Identities = dict[str, tuple[str, list[dict[str, Any]]]]  # ARN and statements, by name
# people and the managed policies that they are given
PEOPLE = {
    "caller": ["CallerPolicy"],
    "approver": ["ApproverPolicy"],
    "deployer": ["DeployerPolicy"],
    "builder": ["ImagePolicy"],
    "watcher": ["CallerPolicy", "MonitorPolicy"],
    "owner": ["CallerPolicy", "ApproverPolicy", "DeployerPolicy"],  # of a project of one's own
    "studio-grace": ["CallerPolicy", "ApproverPolicy"],  # a user of Studio, with an execution role of her own
}
COMMANDS = {
    "approver": {"approve", "reject"},
    "deployer": {"deploy", "deployments", "rollback", "undeploy"},
    "builder": {"image"},
    "watcher": {"predict", "monitor"},
    "owner": {"release"},
    "": {"studio"},  # `studio publish` is for the account's administrator
}


def whose(command: str, *arguments: str) -> str:
    """Whose command of the runner it is, with its arguments."""
    if "monitor.toml" in arguments:
        return "watcher"
    return next((who for who, commands in COMMANDS.items() if command in commands), "caller")


def key(who: str) -> dict[str, str]:
    """The environment in which a program calls as this identity: one of PEOPLE, or a role of infra/ by its name."""
    return {"AWS_ACCESS_KEY_ID": f"{CLIENT_KEY}.{who}"}


def attach(cloud: SmallSageMaker, file: Path, *, sources: Sequence[str] = (), tables: str = "") -> None:
    """Deploys the stacks of infra/ for this pipeline.toml; `sources` are ARNs outside its prefix that steps read, `tables`
    a folder of the bucket that `upload --as` writes."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        settings, name = found.get("sagemaker", {}), found["name"].lower()
    except (OSError, tomllib.TOMLDecodeError, KeyError):  # of such a file the runner itself says what is wrong
        return
    targets = found.get("targets", {}).values()
    given = {
        "Project": name,
        "Bucket": settings.get("bucket", f"sagemaker-{REGION}-{ACCOUNT}"),
        "Prefix": settings.get("prefix", name),
        "Model": found.get("model", {}).get("name", name).lower(),
        "KmsKeyArn": next((one["kms_key"] for one in (settings, *targets) if "kms_key" in one), ""),
        "WithVpc": "yes" if "vpc" in settings else "no",
        "Tables": tables,
    }
    if sources:
        given["SourceArns"] = ",".join(sources)
    cloud.attach(identities(**given))


@functools.cache
def identities(**parameters: str) -> Identities:
    """Everybody whom the stacks of infra/ make or have policies for, in the account of this project."""
    project = parameters["Project"]
    given = {
        "CallerPolicyArn": f"arn:aws:iam::{ACCOUNT}:policy/{project}-caller",
        "DeployerPolicyArn": f"arn:aws:iam::{ACCOUNT}:policy/{project}-deployer",
        "Connection": f"arn:aws:codeconnections:{REGION}:{ACCOUNT}:connection/1",
        "Repository": "owner/name",
        "Endpoint": f"{project}-production",
        "StagingEndpoint": f"{project}-staging",
        "ProductionEndpoint": f"{project}-production",
        **parameters,
    }
    stacks = [_stack(path, given) for path in templates()]
    managed = {
        stack.render({"Ref": name}): _numbered(name, stack.policy(name))
        for stack, name, _ in _of_type("AWS::IAM::ManagedPolicy", stacks)
    }
    found: Identities = {}
    for who, policies in PEOPLE.items():
        (stack,) = (one for one in stacks if "CallerPolicy" in one.template["Resources"])
        arns = [stack.render({"Ref": policy}) for policy in policies]
        found[who] = f"arn:aws:iam::{ACCOUNT}:user/{who}", [one for arn in arns for one in managed[arn]]
    for stack, resource, properties in _of_type("AWS::IAM::Role", stacks):
        made = stack.render(properties)
        name = made.get("RoleName", resource)
        statements = [one for arn in made.get("ManagedPolicyArns", []) for one in managed.get(arn, [])]  # or AWS's own
        for policy in made.get("Policies", []):
            statements += _numbered(resource, policy["PolicyDocument"]["Statement"])
        found[name] = f"arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session", statements
    return found


@functools.cache
def templates() -> tuple[Path, ...]:
    return tuple(sorted(INFRA.glob("*.yaml")))


def _stack(path: Path, given: Mapping[str, str]) -> Stack:
    declared = Stack(path).template["Parameters"]
    return Stack(path, **{name: value for name, value in given.items() if name in declared})


def _of_type(kind: str, stacks: Sequence[Stack]) -> list[tuple[Stack, str, dict[str, Any]]]:
    return [
        (stack, name, resource["Properties"])
        for stack in stacks
        for name, resource in stack.template["Resources"].items()
        if resource["Type"] == kind
        and ("Condition" not in resource or stack.holds({"Condition": resource["Condition"]}))
    ]


def _numbered(resource: str, statements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The statements with Sids that say whose they are."""
    return [{**one, "Sid": f"{resource} {one.get('Sid', number)}"} for number, one in enumerate(statements)]
