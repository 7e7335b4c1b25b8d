"""The rights that a call needs, as the service authorization reference has them: the bridge from Call to Request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .calls import ACCOUNT, Call
from .policies import Request

REGION = "eu-west-1"
S3_WRITES = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
ECR_READS = ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
ECR_WRITES = (
    "BatchCheckLayerAvailability", "BatchGetImage", "CompleteLayerUpload", "InitiateLayerUpload", "PutImage",
    "UploadLayerPart",
)  # fmt: skip
ALARMS = {
    "PutScalingPolicy": ("PutMetricAlarm", "DescribeAlarms"),
    "DeleteScalingPolicy": ("DeleteAlarms", "DescribeAlarms"),
    "DeregisterScalableTarget": ("DeleteAlarms", "DescribeAlarms"),  # with the policies that the target has
}
FREE = {("sts", "GetCallerIdentity")}  # needs no right


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
        case "ecr" if call.action == "GetAuthorizationToken":
            yield Request("ecr:GetAuthorizationToken", "*")
        case "ecr":  # an image that is put is one that Docker pushes
            for verb in ECR_WRITES if call.action == "PutImage" else (call.action,):
                yield Request(f"ecr:{verb}", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{given['repositoryName']}")
        case "codebuild":
            named = [given["projectName"]] if "projectName" in given else [one.split(":")[0] for one in given["ids"]]
            for name in named:
                yield Request(f"codebuild:{call.action}", f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{name}")
        case "iam" if call.action == "GetRole":
            yield Request("iam:GetRole", f"arn:aws:iam::{ACCOUNT}:role/{given['RoleName']}")
        case "iam" if call.action == "SimulatePrincipalPolicy":
            arn = f"arn:aws:iam::{ACCOUNT}:user/{given['PolicySourceArn'].rpartition('/')[2]}"
            yield Request("iam:SimulatePrincipalPolicy", arn, {"aws:username": arn.rpartition("/")[2]})
        case "sagemaker-runtime":
            arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{given['EndpointName']}"
            yield Request(f"sagemaker:{call.action}", arn)
        case "application-autoscaling":
            yield from _of_scaling(call.action, given)
        case "codepipeline":
            yield Request(f"codepipeline:{call.action}", f"arn:aws:codepipeline:{REGION}:{ACCOUNT}:{given['name']}")
        case "sns":
            yield Request(f"sns:{call.action}", given["TopicArn"])
        case "apigateway":
            model = f"/{given['restApiId']}/models/{given['modelName']}" if call.action == "GetModel" else ""
            yield Request("apigateway:GET", f"arn:aws:apigateway:{REGION}::/restapis{model}")
        case "servicequotas":
            yield Request(f"servicequotas:{call.action}", "*")
        case _:
            assert (call.service, call.action) in FREE, f"nobody has said what right this needs: {call}"


def pull(image: str) -> Iterator[Request]:
    """What the service asks as a role to pull an image of ECR."""
    yield Request("ecr:GetAuthorizationToken", "*")
    host, _, name = image.partition("/")
    if ".dkr.ecr." not in host:
        return
    account, _, _, region = host.split(".")[:4]
    repository = name.partition("@")[0].partition(":")[0]
    for verb in ECR_READS:
        yield Request(f"ecr:{verb}", f"arn:aws:ecr:{region}:{account}:repository/{repository}")


def writing_log(group: str) -> Iterator[Request]:
    """What the service asks as a role to write the lines of a container, and to count what it uses."""
    at = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group}"
    yield Request("logs:CreateLogGroup", at)
    for verb in ("CreateLogStream", "DescribeLogStreams", "PutLogEvents"):
        yield Request(f"logs:{verb}", f"{at}:log-stream:1")
    yield Request("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "/".join(group.split("/")[:4])})


def name_of_role(arn: str) -> str:
    return arn.rpartition("/")[2]


def _of_scaling(action: str, given: Mapping[str, Any]) -> Iterator[Request]:
    """Application Auto Scaling looks at the endpoint and keeps the policy's alarms with the rights of whoever asks."""
    name = "application-autoscaling"
    if action.startswith("Describe"):  # which knows neither resources nor keys
        yield Request(f"{name}:{action}", "*")
        return
    arn = f"arn:aws:{name}:{REGION}:{ACCOUNT}:scalable-target/0ec5"
    yield Request(f"{name}:{action}", arn, {f"{name}:service-namespace": given["ServiceNamespace"]})
    endpoint = given["ResourceId"].split("/")[1]
    if action == "RegisterScalableTarget":
        for verb in ("DescribeEndpoint", "UpdateEndpointWeightsAndCapacities"):
            yield Request(f"sagemaker:{verb}", f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{endpoint}")
    alarm = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:TargetTracking-{given['ResourceId']}-AlarmHigh-0ec5"
    for verb in ALARMS.get(action, ()):
        yield Request(f"cloudwatch:{verb}", alarm)


def scaling_role() -> Request:
    """What the first RegisterScalableTarget of an account needs beside: it makes the role that scales."""
    service = "sagemaker.application-autoscaling.amazonaws.com"
    name = f"aws-service-role/{service}/AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
    arn = f"arn:aws:iam::{ACCOUNT}:role/{name}"
    return Request("iam:CreateServiceLinkedRole", arn, {"iam:awsservicename": service})


def _of_s3(call: Call) -> Iterator[Request]:
    given = call.parameters
    if call.action == "ListBuckets":
        yield Request("s3:ListAllMyBuckets", "*")
        return
    bucket = f"arn:aws:s3:::{given['Bucket']}"
    name = f"{bucket}/{given.get('Key', '')}"
    match call.action:
        case "GetObject" | "HeadObject":
            yield Request("s3:GetObject", name)
        case "ListObjectsV2":
            yield Request("s3:ListBucket", bucket, {"s3:prefix": given["Prefix"]} if given.get("Prefix") else {})
        case action if action in S3_WRITES:
            once = {"s3:if-none-match": given["IfNoneMatch"]} if "IfNoneMatch" in given else {}
            yield Request("s3:PutObject", name, once)
            if "SSEKMSKeyId" in given:
                yield Request("kms:GenerateDataKey", given["SSEKMSKeyId"])
                if call.action == "CreateMultipartUpload":  # its parts are put together
                    yield Request("kms:Decrypt", given["SSEKMSKeyId"])
        case "DeleteObject" | "AbortMultipartUpload":
            yield Request(f"s3:{call.action}", name)
        case "HeadBucket":
            yield Request("s3:ListBucket", bucket)
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
        case "CreateTrainingJob" | "DescribeTrainingJob" | "StopTrainingJob":
            arn = f"{at}:training-job/{given['TrainingJobName']}"
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
        case "CreateModel" | "DescribeModel" | "DeleteModel":
            arn = f"{at}:model/{given['ModelName']}"
        case "CreateEndpointConfig" | "DescribeEndpointConfig" | "DeleteEndpointConfig":
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
    arn = arn.lower()  # as SageMaker writes names in ARNs
    yield Request(f"sagemaker:{action}", arn, _about(given))
    if given.get("Tags") and action != "AddTags":
        yield Request("sagemaker:AddTags", arn)
    cluster = given.get("ProcessingResources", {}).get("ClusterConfig") or given.get("ResourceConfig", {})
    if disk := cluster.get("VolumeKmsKeyId") or given.get("KmsKeyId"):
        yield from (Request(f"kms:{verb}", disk) for verb in ("CreateGrant", "DescribeKey"))
    if role := given.get("RoleArn") or given.get("ExecutionRoleArn"):
        yield Request("iam:PassRole", role, {"iam:passedtoservice": "sagemaker.amazonaws.com"})


def _about(given: Mapping[str, Any]) -> dict[str, str]:
    """The condition keys of CreateModelPackage and UpdateModelPackage."""
    cycle = given.get("ModelLifeCycle", {})
    found = {
        "sagemaker:modelapprovalstatus": given.get("ModelApprovalStatus"),
        "sagemaker:modellifecycle:stage": cycle.get("Stage"),
        "sagemaker:modellifecycle:stagestatus": cycle.get("StageStatus"),
    }
    return {key: value for key, value in found.items() if value is not None}
