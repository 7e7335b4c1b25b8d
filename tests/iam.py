"""The policies of infra/, rendered from their CloudFormation templates; small_sagemaker/ asks them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from small_sagemaker.policies import Request, Statement, allowing, like, many
from small_sagemaker.rights import requests

__all__ = ["ACCOUNT", "REGION", "Request", "Stack", "allowing", "read_template", "requests", "rights", "unneeded"]

ACCOUNT, REGION = "123456789012", "eu-west-1"
INFRA = Path(__file__).parents[1] / "infra"
PSEUDO = {"AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com", "AWS::Region": REGION, "AWS::AccountId": ACCOUNT}
ARNS = {  # by type: what an ARN begins with, and the property that ends it
    "AWS::CodeBuild::Project": (f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/", "Name"),
    "AWS::ECR::Repository": (f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/", "RepositoryName"),
    "AWS::IAM::ManagedPolicy": (f"arn:aws:iam::{ACCOUNT}:policy/", "ManagedPolicyName"),
    "AWS::IAM::Role": (f"arn:aws:iam::{ACCOUNT}:role/", "RoleName"),
    "AWS::Lambda::Function": (f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:", "FunctionName"),
    "AWS::SNS::Topic": (f"arn:aws:sns:{REGION}:{ACCOUNT}:", "TopicName"),
}
REFERRED_BY_ARN = ("AWS::IAM::ManagedPolicy", "AWS::SNS::Topic")
NOTHING = object()  # AWS::NoValue


class Template(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with CloudFormation's short forms: `!Ref x` becomes {"Ref": "x"}."""


def _short(loader: Template, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        value = value.split(".") if name == "GetAtt" else value
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


Template.add_multi_constructor("!", _short)


@functools.cache
def read_template(path: Path) -> dict[str, Any]:
    """Read once, as it takes a tenth of a second; whoever changes it copies it first."""
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Template)
    return found


class Stack:
    """A template with its parameters, as far as policies need it."""

    def __init__(self, path: Path, **parameters: str) -> None:
        self.template = read_template(path)
        declared = self.template["Parameters"]
        self.values = {**PSEUDO, **{name: spec.get("Default", "") for name, spec in declared.items()}, **parameters}
        for name, spec in declared.items():
            if spec["Type"] == "CommaDelimitedList":
                self.values[name] = self.values[name].split(",")

    def policy(self, resource: str) -> list[dict[str, Any]]:
        """The statements of a managed policy."""
        document = self.render(self.template["Resources"][resource]["Properties"]["PolicyDocument"])
        assert document["Version"] == "2012-10-17"
        statements: list[dict[str, Any]] = document["Statement"]
        return statements

    def render(self, value: Any) -> Any:
        match value:
            case {"Ref": name}:
                return NOTHING if name == "AWS::NoValue" else self._referred(name)
            case {"Fn::Sub": text}:
                known = re.sub(r"\$\{([\w:]+)\}", lambda found: str(self.values[found[1]]), text)
                return known.replace("${!", "${")
            case {"Fn::GetAtt": [resource, "Arn"]}:
                return self._arn(resource)
            case {"Fn::If": [condition, yes, no]}:
                return self.render(yes if self.holds({"Condition": condition}) else no)
            case dict():
                made = {key: self.render(item) for key, item in value.items()}
                return {key: item for key, item in made.items() if item is not NOTHING}
            case list():
                return [made for item in value if (made := self.render(item)) is not NOTHING]
        return value

    def _referred(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        by_arn = self.template["Resources"].get(name, {}).get("Type") in REFERRED_BY_ARN
        return self._arn(name) if by_arn else f"ref-{name}"

    def _arn(self, resource: str) -> str:
        found = self.template["Resources"][resource]
        place, key = ARNS.get(found["Type"], (f"arn:aws:unknown:::{found['Type']}/", "Name"))
        return place + str(self.render(found["Properties"].get(key, resource)))

    def holds(self, condition: Any) -> bool:
        match condition:
            case {"Condition": name}:
                return self.holds(self.template["Conditions"][name])
            case {"Fn::Not": [inner]}:
                return not self.holds(inner)
            case {"Fn::Equals": [left, right]}:
                return bool(self.render(left) == self.render(right))
        raise AssertionError(f"no such condition is known here: {condition}")


def rights(template: str, role: str, **parameters: str) -> list[dict[str, Any]]:
    """The statements of a role's own policy."""
    stack = Stack(INFRA / template, **parameters)
    (policy,) = stack.render(stack.template["Resources"][role]["Properties"]["Policies"])
    return [{"Sid": str(at), **one} for at, one in enumerate(policy["PolicyDocument"]["Statement"])]


def unneeded(statements: Sequence[Statement], asked: Iterable[Request]) -> list[str]:
    """What could be taken out of the statements with all that was asked still allowed: "Sid action" or "Sid resource"."""
    wanted: dict[str, list[Request]] = {}
    for made in set_of(asked):
        if allowing(statements, made):
            wanted.setdefault(made.action.lower(), []).append(made)
    found = []
    for number, taken, rest in narrower(statements):
        actions = many(statements[number]["Action"])
        concerned = [name for name in wanted if any(like(name, action.lower()) for action in actions)]
        if all(allowing(rest, made) for name in concerned for made in wanted[name]):
            found.append(f"{statements[number].get('Sid', number)} {taken}")
    return found


def narrower(statements: Sequence[Statement]) -> Iterator[tuple[int, str, list[Statement]]]:
    """(the statement's number, the action or resource that was taken out of it, the statements without that)."""
    for number, statement in enumerate(statements):
        for element in ("Action", "Resource"):
            for taken in many(statement[element]):
                less = [one for one in many(statement[element]) if one != taken]
                instead = [{**statement, element: less}] if less else []
                yield number, taken, [*statements[:number], *instead, *statements[number + 1 :]]


def set_of(asked: Iterable[Request]) -> list[Request]:
    return list({(made.action, made.resource, *sorted(made.context.items())): made for made in asked}.values())
