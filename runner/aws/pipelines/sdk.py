"""The SageMaker SDK, loaded while a definition is made: by its documented names, and nothing patched."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from runner.errors import UsageError

# the parts of the SDK that a definition is made of, each documented; it has no types, and importing it takes seconds
SDK = {
    "CacheConfig": "mlops.workflow.steps",
    "ConditionEquals": "core.workflow.conditions",
    "ConditionStep": "mlops.workflow.condition_step",
    "ExecutionVariables": "core.workflow.execution_variables",
    "FailStep": "mlops.workflow.fail_step",
    "Join": "core.workflow.functions",
    "JsonGet": "core.workflow.functions",
    "NetworkConfig": "core.network",
    "ParameterString": "core.workflow.parameters",
    "Pipeline": "mlops.workflow.pipeline",
    "PipelineSession": "core.workflow.pipeline_context",
    "ProcessingInput": "core.shapes",
    "ProcessingOutput": "core.shapes",
    "ProcessingS3Input": "core.shapes",
    "ProcessingS3Output": "core.shapes",
    "ProcessingStep": "mlops.workflow.steps",
    "Processor": "core.processing",
    "PropertyFile": "core.workflow.properties",
}
# instead of the person's own defaults, by which a definition would depend on who pushes; with the documented opt-out
CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
MISSING = (
    "The SageMaker SDK is not installed, which makes a Pipeline's definition. In the project's folder `make .venv/.all` "
    "installs it as locked; elsewhere `python -m pip install 'sagemaker>=3.27,<4'` does."
)
REGION_VARIABLE = "AWS_DEFAULT_REGION"


@contextlib.contextmanager
def loaded(region: str) -> Iterator[SimpleNamespace]:
    """The SDK's parts, its messages kept from the terminal. Raises UsageError where it is not installed.

    It makes clients when it is imported and sessions of its own, all of the region that boto3 finds in its documented
    variable. https://boto3.amazonaws.com/v1/documentation/api/latest/guide/configuration.html
    """
    before, own = os.environ.get(REGION_VARIABLE), logging.getLogger("sagemaker")
    level = own.level
    os.environ[REGION_VARIABLE] = region
    own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield _imported()
    finally:
        own.setLevel(level)
        if before is None:
            os.environ.pop(REGION_VARIABLE, None)
        else:
            os.environ[REGION_VARIABLE] = before


def step_arguments(sdk: SimpleNamespace, session: Any, made: dict[str, Any]) -> Any:
    """A CreateProcessingJob request without a name, as a Processor's run gives it to a step; values may be variables."""
    cluster, network = made["ProcessingResources"]["ClusterConfig"], made.get("NetworkConfig")
    processor = sdk.Processor(
        role=made["RoleArn"],
        image_uri=made["AppSpecification"]["ImageUri"],
        entrypoint=made["AppSpecification"]["ContainerEntrypoint"],
        instance_count=cluster["InstanceCount"],
        instance_type=cluster["InstanceType"],
        volume_size_in_gb=cluster["VolumeSizeInGB"],
        volume_kms_key=cluster.get("VolumeKmsKeyId"),
        output_kms_key=made["ProcessingOutputConfig"].get("KmsKeyId"),
        max_runtime_in_seconds=made["StoppingCondition"]["MaxRuntimeInSeconds"],
        env=made.get("Environment"),
        tags=made["Tags"],
        network_config=_network(sdk, network) if network is not None else None,
        sagemaker_session=session,
    )
    return processor.run(
        inputs=[_input(sdk, item["InputName"], item["S3Input"]) for item in made["ProcessingInputs"]],
        outputs=[
            _output(sdk, item["OutputName"], item["S3Output"]) for item in made["ProcessingOutputConfig"]["Outputs"]
        ],
        arguments=made["AppSpecification"]["ContainerArguments"],
    )


def _input(sdk: SimpleNamespace, name: str, source: dict[str, Any]) -> Any:
    s3 = sdk.ProcessingS3Input(
        s3_uri=source["S3Uri"],
        local_path=source["LocalPath"],
        s3_data_type=source["S3DataType"],
        s3_input_mode=source["S3InputMode"],
    )
    return sdk.ProcessingInput(input_name=name, s3_input=s3)


def _output(sdk: SimpleNamespace, name: str, target: dict[str, Any]) -> Any:
    s3 = sdk.ProcessingS3Output(
        s3_uri=target["S3Uri"], local_path=target["LocalPath"], s3_upload_mode=target["S3UploadMode"]
    )
    return sdk.ProcessingOutput(output_name=name, s3_output=s3)


def _network(sdk: SimpleNamespace, network: dict[str, Any]) -> Any:
    vpc = network.get("VpcConfig", {})
    return sdk.NetworkConfig(
        encrypt_inter_container_traffic=network["EnableInterContainerTrafficEncryption"],
        subnets=vpc.get("Subnets"),
        security_group_ids=vpc.get("SecurityGroupIds"),
    )


def _imported() -> SimpleNamespace:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        parts = {name: importlib.import_module(f"sagemaker.{module}") for name, module in SDK.items()}
    except ImportError as error:
        raise UsageError(MISSING) from error
    finally:
        root.setLevel(level)  # importing it would have everything of everybody on stderr
        root.handlers[:] = handlers
    return SimpleNamespace(**{name: getattr(module, name) for name, module in parts.items()})
