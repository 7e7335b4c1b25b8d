"""IAM policies as IAM reads them: rendered from a CloudFormation template, and asked whether they allow a recorded call."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from small_sagemaker import Call

ACCOUNT, REGION = "123456789012", "eu-west-1"
PSEUDO = {"AWS::Partition": "aws", "AWS::Region": REGION, "AWS::AccountId": ACCOUNT}
NOTHING = object()  # AWS::NoValue
S3_WRITES = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
FREE = {("sts", "GetCallerIdentity")}  # needs no right


class Template(yaml.SafeLoader):
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


def read_template(path: Path) -> dict[str, Any]:
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
                return NOTHING if name == "AWS::NoValue" else self.values.get(name, f"ref-{name}")
            case {"Fn::Sub": text}:
                known = re.sub(r"\$\{([\w:]+)\}", lambda found: str(self.values[found[1]]), text)
                return known.replace("${!", "${")
            case {"Fn::GetAtt": [resource, "Arn"]}:
                name = self.render(self.template["Resources"][resource]["Properties"].get("RoleName", resource))
                return f"arn:aws:iam::{ACCOUNT}:role/{name}"
            case {"Fn::If": [condition, yes, no]}:
                return self.render(yes if self.holds({"Condition": condition}) else no)
            case dict():
                made = {key: self.render(item) for key, item in value.items()}
                return {key: item for key, item in made.items() if item is not NOTHING}
            case list():
                return [made for item in value if (made := self.render(item)) is not NOTHING]
        return value

    def holds(self, condition: Any) -> bool:
        match condition:
            case {"Condition": name}:
                return self.holds(self.template["Conditions"][name])
            case {"Fn::Not": [inner]}:
                return not self.holds(inner)
            case {"Fn::Equals": [left, right]}:
                return bool(self.render(left) == self.render(right))
        raise AssertionError(f"no such condition is known here: {condition}")


@dataclass(frozen=True)
class Request:
    """What IAM is asked. Keys of the context are in small letters."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def allowing(statements: Sequence[Mapping[str, Any]], request: Request) -> list[str]:
    """The Sids of the statements that allow the request; none where it is denied."""
    for statement in statements:
        assert statement["Effect"] == "Allow"
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
    return [
        statement["Sid"]
        for statement in statements
        if any(_like(request.action.lower(), action.lower()) for action in _many(statement["Action"]))
        and any(_like(request.resource, _filled(part, request)) for part in _many(statement["Resource"]))
        and all(
            _meets(operator, key.lower(), _many(wanted), request.context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    ]


def _meets(operator: str, key: str, wanted: Sequence[str], context: Mapping[str, str]) -> bool:
    found = context.get(key)
    match operator:
        case "Null":
            return (found is None) == (wanted[0] == "true")
        case "StringEquals":
            return found is not None and found in wanted
        case "StringLike":
            return found is not None and any(_like(found, one) for one in wanted)
        case "StringLikeIfExists":
            return found is None or any(_like(found, one) for one in wanted)
    raise AssertionError(f"no such operator is known here: {operator}")


def _like(text: str, pattern: str) -> bool:
    expression = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _filled(pattern: str, request: Request) -> str:
    return pattern.replace("${aws:username}", request.context.get("aws:username", "${aws:username}"))


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def requests(call: Call) -> Iterator[Request]:
    """The rights that a call needs, as the service authorization reference has them."""
    given = call.parameters
    match call.service:
        case "s3":
            yield from _of_s3(call)
        case "sagemaker":
            yield from _of_sagemaker(call.action, given)
        case "logs":
            group = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{given['logGroupName']}"
            stream = "" if call.action == "CreateLogGroup" else f":log-stream:{given.get('logStreamName', '')}"
            yield Request(f"logs:{call.action}", group + stream)
        case "secretsmanager":
            arn = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{given['SecretId']}-AbCdEf"
            yield Request("secretsmanager:GetSecretValue", arn)
        case "ecr":
            yield Request(f"ecr:{call.action}", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{given['repositoryName']}")
        case "iam" if call.action == "GetRole":
            yield Request("iam:GetRole", f"arn:aws:iam::{ACCOUNT}:role/{given['RoleName']}")
        case "iam" if call.action == "SimulatePrincipalPolicy":
            arn = f"arn:aws:iam::{ACCOUNT}:user/{given['PolicySourceArn'].rpartition('/')[2]}"
            yield Request("iam:SimulatePrincipalPolicy", arn, {"aws:username": arn.rpartition("/")[2]})
        case "sagemaker-runtime":
            arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{given['EndpointName']}"
            yield Request(f"sagemaker:{call.action}", arn)
        case "application-autoscaling":
            arn = f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0ec5"
            about = {"application-autoscaling:service-namespace": given["ServiceNamespace"]}
            yield Request(f"application-autoscaling:{call.action}", arn, about)
        case "apigateway":
            model = f"/{given['restApiId']}/models/{given['modelName']}" if call.action == "GetModel" else ""
            yield Request("apigateway:GET", f"arn:aws:apigateway:{REGION}::/restapis{model}")
        case "servicequotas":
            yield Request(f"servicequotas:{call.action}", "*")
        case _:
            assert (call.service, call.action) in FREE, f"nobody has said what right this needs: {call}"


def _of_s3(call: Call) -> Iterator[Request]:
    given = call.parameters
    bucket = f"arn:aws:s3:::{given['Bucket']}"
    name = f"{bucket}/{given.get('Key', '')}"
    match call.action:
        case "GetObject" | "HeadObject":
            yield Request("s3:GetObject", name)
            if call.status == 404:  # without it, it would be 403
                yield Request("s3:ListBucket", bucket)
        case "ListObjectsV2":
            yield Request("s3:ListBucket", bucket, {"s3:prefix": given.get("Prefix", "")})
        case action if action in S3_WRITES:
            once = {"s3:if-none-match": given["IfNoneMatch"]} if "IfNoneMatch" in given else {}
            yield Request("s3:PutObject", name, once)
        case "DeleteObject" | "AbortMultipartUpload":
            yield Request(f"s3:{call.action}", name)
        case "GetBucketLocation":
            yield Request("s3:GetBucketLocation", bucket)
        case _:
            raise AssertionError(f"nobody has said what right this needs: {call}")


def _of_sagemaker(action: str, given: Mapping[str, Any]) -> Iterator[Request]:
    at = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}"
    package = str(given.get("ModelPackageName", given.get("ModelPackageArn", "")))
    match action:
        case "CreateProcessingJob" | "DescribeProcessingJob" | "StopProcessingJob":
            arn = f"{at}:processing-job/{given['ProcessingJobName']}"
        case (
            "CreatePipeline"
            | "UpdatePipeline"
            | "DescribePipeline"
            | "ListPipelineExecutions"
            | "StartPipelineExecution"
        ):
            arn = f"{at}:pipeline/{given['PipelineName']}"
        case "CreateModelPackageGroup" | "DescribeModelPackageGroup":
            arn = f"{at}:model-package-group/{given['ModelPackageGroupName']}"
        case "CreateModelPackage" | "ListModelPackages":
            arn = f"{at}:model-package/{given['ModelPackageGroupName']}/1"
        case "DescribeModelPackage" | "UpdateModelPackage":
            arn = package if package.startswith("arn:") else f"{at}:model-package/{package}"
        case _ if "PipelineExecutionArn" in given:
            arn = given["PipelineExecutionArn"]
        case "CreateModel" | "DescribeModel":
            arn = f"{at}:model/{given['ModelName']}"
        case "CreateEndpointConfig" | "DescribeEndpointConfig":
            arn = f"{at}:endpoint-config/{given['EndpointConfigName']}"
            for variant in given.get("ProductionVariants", []):
                yield Request(f"sagemaker:{action}", f"{at}:model/{variant['ModelName']}")
        case "CreateEndpoint" | "UpdateEndpoint" | "DescribeEndpoint" | "DeleteEndpoint":
            arn = f"{at}:endpoint/{given['EndpointName']}"
            if "EndpointConfigName" in given:
                yield Request(f"sagemaker:{action}", f"{at}:endpoint-config/{given['EndpointConfigName']}")
        case "AddTags" | "ListTags":
            arn = given["ResourceArn"]
        case _:
            raise AssertionError(f"nobody has said what right this needs: {action} {given}")
    yield Request(f"sagemaker:{action}", arn)
    if given.get("Tags") and action != "AddTags":
        yield Request("sagemaker:AddTags", arn)
    if role := given.get("RoleArn") or given.get("ExecutionRoleArn"):
        yield Request("iam:PassRole", role, {"iam:passedtoservice": "sagemaker.amazonaws.com"})
