"""The project template: what it nests fits together, Studio is offered it, and an account makes of it what it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cloud import BUCKET, RemoteProject, running
from iam import ACCOUNT, INFRA, REGION, Request, Stack, allowing, read_template, unneeded
from small_sagemaker import CLIENT_KEY, SmallSageMaker
from small_sagemaker.calls import load_model

PROJECT = read_template(INFRA / "project.yaml")
NESTED = {
    name: resource["Properties"]
    for name, resource in PROJECT["Resources"].items()
    if resource["Type"] == "AWS::CloudFormation::Stack"
}
CONNECTION = f"arn:aws:codeconnections:{REGION}:{ACCOUNT}:connection/1"
GIVEN = {
    "SageMakerProjectName": "tiny",
    "SageMakerProjectId": "p-abcdefghijkl",
    "Repository": "owner/name",
    "Connection": CONNECTION,
    "Email": "ada@example.org",
}
LONGEST = {"SageMakerProjectName": "p" * 32, "SageMakerProjectId": f"p-{'i' * 18}", "Model": "m" * 32}
CORS = {"AllowedOrigins": ["https://own.example"], "AllowedMethods": ["GET"]}


def file_of(nested: dict[str, Any]) -> Path:
    return INFRA / nested["TemplateURL"]["Fn::Sub"].removeprefix("${Templates}")


def stacks(**given: str) -> dict[str, Stack]:
    """The project's own stack and those that it nests, by their names, each with its parameters put in."""
    project = Stack(INFRA / "project.yaml", **given)
    found = {"": project}
    for name, nested in NESTED.items():
        parameters = {}
        for key, value in nested["Parameters"].items():
            known = isinstance(value, dict) and (value.keys() & {"Fn::GetAtt"} or value.get("Ref") == "Bucket")
            parameters[key] = f"ref-{key}" if known else str(project.render(value))
        found[name] = Stack(file_of(nested), **parameters)
    return found


@pytest.fixture(scope="module")
def cloud() -> Iterator[SmallSageMaker]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def far(cloud: SmallSageMaker, tmp_path_factory: pytest.TempPathFactory) -> RemoteProject:
    administrator = {"AWS_ACCESS_KEY_ID": CLIENT_KEY}
    made = RemoteProject(tmp_path_factory.mktemp("project") / "of mine", cloud, extra=administrator)
    made.folder.mkdir()
    made.write("nb.ipynb", "1")
    made.toml('name = "tiny"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    shutil.copytree(INFRA, made.folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    return made


@pytest.fixture(scope="module")
def published(far: RemoteProject, cloud: SmallSageMaker) -> dict[str, Any]:
    """Tried, then done twice; the bucket has a rule of its own."""
    s3 = cloud.client("s3")
    s3.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [CORS]})
    tried = far.here("studio", "publish", "--dry-run")
    assert tried.code == 0, tried.err
    assert "would be a template" in tried.err
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET)
    assert s3.get_bucket_cors(Bucket=BUCKET)["CORSRules"] == [CORS]
    first = far.here("studio", "publish", "--json")
    assert first.code == 0, first.err
    again = far.here("studio", "publish", "--json").json
    assert again == {**first.json, "cors_changed": False}
    return dict(first.json)


def content(cloud: SmallSageMaker, url: str) -> str:
    key = url.removeprefix(f"https://{BUCKET}.s3.{REGION}.amazonaws.com/")
    body: bytes = cloud.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body.decode()


# The template


@pytest.mark.parametrize("name", NESTED)
def test_what_a_nested_stack_is_given_is_what_its_template_asks_for(name: str) -> None:
    nested = NESTED[name]
    declared = read_template(file_of(nested))["Parameters"]
    assert nested["Parameters"].keys() <= declared.keys()
    assert {key for key, spec in declared.items() if "Default" not in spec} <= nested["Parameters"].keys()
    shared = {"Project", "Model", "Prefix", "Bucket", "Branch", "StagingEndpoint", "ProductionEndpoint"}
    assert declared.keys() & shared <= nested["Parameters"].keys()  # whose defaults are of the pipeline that ships


def test_each_output_of_a_nested_stack_that_is_used_is_one() -> None:
    used = re.findall(r"(\w+)\.Outputs\.(\w+)", (INFRA / "project.yaml").read_text())
    assert len(used) >= 4
    for name, output in used:
        assert output in read_template(file_of(NESTED[name]))["Outputs"]


LIMITS = {  # characters of a name: the services' own
    "AWS::S3::Bucket": ("BucketName", 63),
    "AWS::IAM::Role": ("RoleName", 64),
    "AWS::IAM::ManagedPolicy": ("ManagedPolicyName", 128),
    "AWS::SNS::Topic": ("TopicName", 256),
    "AWS::Lambda::Function": ("FunctionName", 64),
    "AWS::CodeBuild::Project": ("Name", 255),
    "AWS::CodePipeline::Pipeline": ("Name", 100),
    "AWS::Logs::LogGroup": ("LogGroupName", 512),
    "AWS::SageMaker::CodeRepository": ("CodeRepositoryName", 63),
}


def test_the_longest_names_keep_within_the_services_limits() -> None:
    found = {}
    for where, stack in stacks(**{**GIVEN, **LONGEST}).items():
        for name, resource in stack.template["Resources"].items():
            if resource["Type"] in LIMITS:
                key, longest = LIMITS[resource["Type"]]
                found[where, name] = (len(stack.render(resource["Properties"][key])), longest)
    assert len(found) >= 15
    assert {place: size for place, size in found.items() if size[0] > size[1]} == {}


def test_studio_s_names_are_those_that_pipelines_and_the_nested_templates_take() -> None:
    declared = {
        name: spec["AllowedPattern"] for name, spec in PROJECT["Parameters"].items() if "AllowedPattern" in spec
    }
    model = load_model("sagemaker")
    assert model is not None
    service = model.shape_for("ProjectEntityName").metadata["pattern"]
    own = read_template(INFRA / "policies.yaml")["Parameters"]["Project"]["AllowedPattern"]
    for name in ("churn", "a", "two-words-2"):
        assert all(re.fullmatch(one, name) for one in (declared["SageMakerProjectName"], service, own))
    for name in ("Churn", "two--", "-a", "a_b", ""):
        assert not re.fullmatch(declared["SageMakerProjectName"], name)
    assert PROJECT["Parameters"].keys() >= {"SageMakerProjectName", "SageMakerProjectId"}  # which the service gives
    needed = {name for name, spec in PROJECT["Parameters"].items() if "Default" not in spec}
    assert needed == GIVEN.keys()


# Publishing it


def test_studio_is_offered_the_template_and_nothing_else(cloud: SmallSageMaker, published: dict[str, Any]) -> None:
    s3 = cloud.client("s3")
    keys = {item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
    tags = {key: s3.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"] for key in keys}
    assert [key for key in keys if tags[key]] == ["studio/templates/notebook-pipeline.yaml"]
    assert tags["studio/templates/notebook-pipeline.yaml"] == [{"Key": "sagemaker:studio-visibility", "Value": "true"}]
    assert {key.rpartition("/")[2] for key in keys if "parts" in key} == {
        file_of(nested).name for nested in NESTED.values()
    }
    rules = s3.get_bucket_cors(Bucket=BUCKET)["CORSRules"]
    assert [rule["AllowedOrigins"] for rule in rules] == [["https://own.example"], ["https://*.sagemaker.aws"]]
    for address in published["parts"]:
        assert content(cloud, address) == (INFRA / address.rpartition("/")[2]).read_text()


def test_the_published_template_says_where_its_parts_are(
    cloud: SmallSageMaker, published: dict[str, Any], tmp_path: Path
) -> None:
    made = tmp_path / "project.yaml"
    made.write_text(content(cloud, published["template"]))
    template = read_template(made)
    folder = template["Parameters"]["Templates"].pop("Default")
    assert sorted(published["parts"]) == sorted(folder + file_of(nested).name for nested in NESTED.values())
    written = read_template(INFRA / "project.yaml")  # in which cfn-lint finds nothing (test_infra.py)
    written["Parameters"]["Templates"].pop("Default", None)
    assert template == written


def test_what_to_do_next_is_said_with_commands_that_can_be_given(published: dict[str, Any]) -> None:
    steps = "\n".join(published["next"])
    launch = Stack(INFRA / "studio.yaml")
    role = launch.template["Resources"]["LaunchRole"]["Properties"]["RoleName"]
    assert f"arn:aws:iam::{ACCOUNT}:role/{role}" in steps
    (command,) = re.findall(r"aws cloudformation deploy .*", steps)
    given = dict(re.findall(r"(\w+)=(\S+)", command))
    assert given == {"Bucket": BUCKET, "StudioRole": "NAME"}
    assert {name for name, spec in launch.template["Parameters"].items() if "Default" not in spec} == given.keys()
    assert f"Key=sagemaker:projectS3TemplatesLocation,Value=s3://{BUCKET}/studio/templates/" in steps
    assert "Name: tiny" in steps


def test_a_bucket_that_users_of_studio_may_write_to_is_refused(far: RemoteProject) -> None:
    done = far.here("studio", "publish", "--bucket", f"sagemaker-{REGION}-{ACCOUNT}")
    assert (done.code, "AmazonSageMakerFullAccess" in done.err, "--bucket" in done.err) == (2, True, True)


def test_without_the_template_there_is_a_sentence(cloud: SmallSageMaker, tmp_path: Path) -> None:
    bare = RemoteProject(tmp_path, cloud)
    bare.write("nb.ipynb", "1")
    bare.toml('name = "tiny"\n[steps.only]\nnotebook = "nb.ipynb"\n')
    done = bare.here("studio", "publish")
    assert (done.code, "infra/project.yaml cannot be read" in done.err) == (2, True), done.err


MADE = {  # what the nested policies put out
    "JobRoleArn": f"arn:aws:iam::{ACCOUNT}:role/tiny-jobs",
    **{
        f"{who.title()}PolicyArn": f"arn:aws:iam::{ACCOUNT}:policy/tiny-{who}"
        for who in ("caller", "approver", "deployer", "image", "monitor")
    },
}


def as_moto_takes_it(template: Any, builds: frozenset[str] = frozenset()) -> Any:
    """Without the list items that no default asks for, as moto makes null of AWS::NoValue, and with what a nested stack
    or a build gives written down, as moto cannot ask them. `builds` are the template's."""
    match template:
        case {"Resources": resources} if not builds:
            names = {name for name, one in resources.items() if one["Type"] == "AWS::CodeBuild::Project"}
            return as_moto_takes_it(template, frozenset({"", *names}))
        case {"Fn::GetAtt": [_, "Outputs", name]}:
            return MADE[name]
        case {"Fn::GetAtt": [name, "Arn"]} if name in builds:
            return f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{name}"
        case dict():
            return {key: as_moto_takes_it(item, builds) for key, item in template.items()}
        case list():
            return [
                as_moto_takes_it(item, builds)
                for item in template
                if not (isinstance(item, dict) and item.get("Fn::If", [""])[0] in ("HasKey", "IsVpc"))
            ]
    return template


def test_a_project_is_made_of_the_published_template(
    cloud: SmallSageMaker, published: dict[str, Any], tmp_path: Path
) -> None:
    """As far as moto goes, which makes neither builds nor CodePipelines of a template, and attaches no policy."""
    for address in (*published["parts"], published["template"]):
        file = tmp_path / address.rpartition("/")[2]
        file.write_text(content(cloud, address))
        key = address.removeprefix(f"https://{BUCKET}.s3.{REGION}.amazonaws.com/")
        plain = json.dumps(as_moto_takes_it(read_template(file)), default=str)
        cloud.client("s3").put_object(Bucket=BUCKET, Key=key, Body=plain.encode())
    client = cloud.client("cloudformation")
    client.create_stack(
        StackName="SP-tiny",
        TemplateURL=published["template"],
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in GIVEN.items()],
    )
    # a nested stack is named SP-tiny-NAME-SUFFIX
    found = {
        made["StackName"].removeprefix("SP-tiny").strip("-").partition("-")[0]: made
        for made in client.describe_stacks()["Stacks"]
    }
    assert found.keys() == {"", *NESTED}
    assert {made["StackStatus"] for made in found.values()} == {"CREATE_COMPLETE"}
    outputs = {
        name: {item["OutputKey"]: item["OutputValue"] for item in made.get("Outputs", [])}
        for name, made in found.items()
    }
    assert outputs["Policies"] == MADE
    bucket = outputs[""].pop("Bucket")
    assert bucket == "sagemaker-project-p-abcdefghijkl"
    assert outputs[""].items() <= MADE.items()
    cloud.client("s3").head_bucket(Bucket=bucket)
    iam = cloud.client("iam")
    roles = {role["RoleName"] for role in iam.list_roles()["Roles"]}
    assert roles >= {
        "tiny-jobs",
        "tiny-build",
        "tiny-pull-request",
        "tiny-delivery",
        "tiny-deploy",
        "tiny-deploy-build",
    }
    document = unquote(str(iam.get_role_policy(RoleName="tiny-delivery", PolicyName="deliver")["PolicyDocument"]))
    assert CONNECTION in document
    assert f"arn:aws:s3:::{bucket}/delivery-*" in document


# Who may do that

IAM = f"arn:aws:iam::{ACCOUNT}"
HANDLED = {  # by type: the ARN, with the resource's name in it, and what CloudFormation's handlers of the type call
    "AWS::S3::Bucket": (
        "arn:aws:s3:::{}",
        "s3:CreateBucket s3:GetBucketPublicAccessBlock s3:GetBucketTagging s3:GetBucketVersioning "
        "s3:GetEncryptionConfiguration s3:GetLifecycleConfiguration s3:ListBucket s3:PutBucketPublicAccessBlock "
        "s3:PutBucketTagging s3:PutBucketVersioning s3:PutEncryptionConfiguration s3:PutLifecycleConfiguration",
    ),
    "AWS::IAM::Role": (
        f"{IAM}:role/{{}}",
        "iam:AttachRolePolicy iam:CreateRole iam:DeleteRole iam:DeleteRolePolicy iam:DetachRolePolicy iam:GetRole "
        "iam:GetRolePolicy iam:ListAttachedRolePolicies iam:ListRolePolicies iam:PutRolePolicy iam:TagRole iam:UntagRole "
        "iam:UpdateAssumeRolePolicy iam:UpdateRole iam:UpdateRoleDescription",
    ),
    "AWS::IAM::ManagedPolicy": (
        f"{IAM}:policy/{{}}",
        "iam:CreatePolicy iam:CreatePolicyVersion iam:DeletePolicy iam:DeletePolicyVersion iam:GetPolicy "
        "iam:GetPolicyVersion iam:ListEntitiesForPolicy iam:ListPolicyVersions iam:TagPolicy iam:UntagPolicy",
    ),
    "AWS::SageMaker::CodeRepository": (
        f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:code-repository/{{}}",
        "sagemaker:AddTags sagemaker:CreateCodeRepository sagemaker:DeleteCodeRepository "
        "sagemaker:DescribeCodeRepository sagemaker:UpdateCodeRepository",
    ),
    "AWS::CodeBuild::Project": (
        f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{{}}",
        "codebuild:BatchGetProjects codebuild:CreateProject codebuild:CreateWebhook codebuild:DeleteProject "
        "codebuild:DeleteWebhook codebuild:UpdateProject codebuild:UpdateWebhook",
    ),
    "AWS::CodePipeline::Pipeline": (
        f"arn:aws:codepipeline:{REGION}:{ACCOUNT}:{{}}",
        "codepipeline:CreatePipeline codepipeline:DeletePipeline codepipeline:GetPipeline codepipeline:GetPipelineState "
        "codepipeline:ListTagsForResource codepipeline:TagResource codepipeline:UntagResource "
        "codepipeline:UpdatePipeline",
    ),
    "AWS::Lambda::Function": (
        f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{}}",
        "lambda:CreateFunction lambda:DeleteFunction lambda:GetFunction lambda:GetFunctionCodeSigningConfig "
        "lambda:GetFunctionRecursionConfig lambda:GetRuntimeManagementConfig lambda:ListTags lambda:TagResource "
        "lambda:UntagResource lambda:UpdateFunctionCode lambda:UpdateFunctionConfiguration",
    ),
    "AWS::Lambda::Permission": (
        f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:tiny-deploy-start",
        "lambda:AddPermission lambda:GetPolicy lambda:RemovePermission",
    ),
    "AWS::Events::Rule": (
        f"arn:aws:events:{REGION}:{ACCOUNT}:rule/SP-1-Deploy-{{}}",
        "events:DeleteRule events:DescribeRule events:ListTagsForResource events:ListTargetsByRule events:PutRule "
        "events:PutTargets events:RemoveTargets events:TagResource events:UntagResource",
    ),
    "AWS::SNS::Topic": (
        f"arn:aws:sns:{REGION}:{ACCOUNT}:{{}}",
        "sns:CreateTopic sns:DeleteTopic sns:GetDataProtectionPolicy sns:GetTopicAttributes sns:ListSubscriptionsByTopic "
        "sns:ListTagsForResource sns:TagResource sns:UntagResource",
    ),
    "AWS::SNS::TopicPolicy": (f"arn:aws:sns:{REGION}:{ACCOUNT}:tiny-deploy", "sns:SetTopicAttributes"),
    "AWS::SNS::Subscription": (
        f"arn:aws:sns:{REGION}:{ACCOUNT}:tiny-deploy",
        "sns:GetSubscriptionAttributes sns:Subscribe sns:Unsubscribe",
    ),
    "AWS::Logs::LogGroup": (
        f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{{}}",
        "logs:CreateLogGroup logs:DeleteLogGroup logs:DescribeLogGroups logs:ListTagsForResource "
        "logs:PutRetentionPolicy logs:TagResource logs:UntagResource",
    ),
    "AWS::CloudFormation::Stack": (
        f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/SP-1-{{}}/0",
        "cloudformation:CreateStack cloudformation:DeleteStack cloudformation:DescribeStackEvents "
        "cloudformation:DescribeStacks cloudformation:UpdateStack",
    ),
}


def studio(name: str, **more: str) -> list[dict[str, Any]]:
    return Stack(INFRA / "studio.yaml", Bucket=BUCKET, StudioRole="studio", **more).policy(name)


def launching() -> list[Request]:
    """What is asked of the launch role while a project is made, changed and deleted."""
    found = []
    for stack in stacks(**GIVEN).values():
        for name, resource in stack.template["Resources"].items():
            place, actions = HANDLED[resource["Type"]]
            key = LIMITS.get(resource["Type"], ("", 0))[0]
            called = stack.render(resource["Properties"][key]) if key else name
            found += [Request(action, place.format(called)) for action in actions.split()]
            if resource["Type"] == "AWS::IAM::Role":
                trust = resource["Properties"]["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"]
                if trust != "sagemaker.amazonaws.com":  # nothing of the stacks is made with the jobs' role
                    found.append(Request("iam:PassRole", f"{IAM}:role/{called}", {"iam:passedtoservice": trust}))
    parts = [
        Request("s3:GetObject", f"arn:aws:s3:::{BUCKET}/studio/parts/0/{file_of(one).name}") for one in NESTED.values()
    ]
    old = CONNECTION.replace("codeconnections", "codestar-connections")
    passed = [Request(f"{one.split(':')[2]}:PassConnection", one) for one in (CONNECTION, old)]
    return [*found, *parts, *passed]


def test_the_launch_role_may_make_and_delete_a_project_and_nothing_else() -> None:
    granted = studio("Rights") + studio("Resources")
    asked = launching()
    assert [made for made in asked if not allowing(granted, made)] == []
    assert unneeded(granted, asked) == []
    for action, resource in (
        ("iam:CreateRole", f"{IAM}:role/admin"),
        ("iam:AttachRolePolicy", f"{IAM}:role/runner-studio-launch"),
        ("iam:CreatePolicyVersion", f"{IAM}:policy/admin"),
        ("s3:PutObject", f"arn:aws:s3:::{BUCKET}/studio/templates/notebook-pipeline.yaml"),
        ("s3:DeleteBucket", "arn:aws:s3:::sagemaker-project-p-1"),
        ("iam:PassRole", f"{IAM}:role/tiny-jobs"),
    ):
        assert not allowing(granted, Request(action, resource)), action


def test_users_of_studio_make_projects_of_the_published_template_only(published: dict[str, Any]) -> None:
    granted = studio("Users")
    stack, project = (
        f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/SP-1/0",
        f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:project/tiny",
    )
    launch = Stack(INFRA / "studio.yaml").render({"Fn::GetAtt": ["LaunchRole", "Arn"]})
    by = {"cloudformation:rolearn": launch, "cloudformation:templateurl": published["template"]}
    template = f"arn:aws:s3:::{BUCKET}/studio/templates/notebook-pipeline.yaml"
    asked = [
        Request("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", {"s3:prefix": "studio/templates/"}),
        *(Request(f"s3:{verb}", template) for verb in ("GetObject", "GetObjectTagging")),
        *(Request(action, "*") for action in ("sagemaker:ListProjects", "cloudformation:GetTemplateSummary")),
        *(Request(f"sagemaker:{verb}Project", project) for verb in ("Create", "Describe", "Update", "Delete")),
        Request("sagemaker:AddTags", project),
        *(Request(f"cloudformation:{verb}Stack", stack, by) for verb in ("Create", "Update")),
        *(
            Request(f"cloudformation:{action}", stack)
            for action in ("DeleteStack", "DescribeStacks", "DescribeStackEvents", "TagResource", "UntagResource")
        ),
        Request("iam:PassRole", launch, {"iam:passedtoservice": "cloudformation.amazonaws.com"}),
    ]
    assert [made for made in asked if not allowing(granted, made)] == []
    assert unneeded(granted, asked) == []
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
    for who in ("Users", "Resources"):
        assert not allowing(studio(who), Request("kms:Decrypt", key))
        assert allowing(studio(who, KmsKeyArn=key), Request("kms:Decrypt", key))
    own = "https://mine.s3.eu-west-1.amazonaws.com/studio/templates/mine.yaml"
    for context in (
        {},
        {**by, "cloudformation:templateurl": own},
        {**by, "cloudformation:rolearn": f"{IAM}:role/admin"},
    ):
        assert not allowing(granted, Request("cloudformation:CreateStack", stack, context))
    assert not allowing(granted, Request("s3:PutObject", template))
    assert not allowing(granted, Request("sts:AssumeRole", launch))
    (trust,) = Stack(INFRA / "studio.yaml").template["Resources"]["LaunchRole"]["Properties"][
        "AssumeRolePolicyDocument"
    ]["Statement"]
    assert trust["Principal"] == {"Service": "cloudformation.amazonaws.com"}
