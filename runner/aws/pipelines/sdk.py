"""The SageMaker SDK, loaded while a definition is made: by its documented names, with nothing patched."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from runner.errors import UsageError

# the parts of the SDK that a definition is made of, all documented; it has no types, and importing it takes seconds
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
# instead of the person's own defaults, which would make definitions differ between people; documented opt-out
CONFIG = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
MISSING = (
    "The SageMaker SDK is not installed, which makes a Pipeline's definition. In the project's folder "
    "`make .venv/.all` installs it as locked; elsewhere `python -m pip install 'sagemaker>=3.27,<4'` does."
)
REGION_VARIABLE = "AWS_DEFAULT_REGION"


@contextlib.contextmanager
def loaded(region: str) -> Iterator[SimpleNamespace]:
    """The SDK's parts, without its messages on the terminal. Raises UsageError where it is not installed.

    When imported it makes clients, and later sessions, all with the region in boto3's documented variable.
    https://boto3.amazonaws.com/v1/documentation/api/latest/guide/configuration.html
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


def step_arguments(sdk: SimpleNamespace, session: Any, request: dict[str, Any]) -> Any:
    """A CreateProcessingJob request without a name as a step's arguments; its values may be variables."""
    cluster, network = request["ProcessingResources"]["ClusterConfig"], request.get("NetworkConfig")
    program, output = request["AppSpecification"], request["ProcessingOutputConfig"]
    vpc = network.get("VpcConfig", {}) if network is not None else {}
    processor = sdk.Processor(
        role=request["RoleArn"],
        image_uri=program["ImageUri"],
        entrypoint=program["ContainerEntrypoint"],
        instance_count=cluster["InstanceCount"],
        instance_type=cluster["InstanceType"],
        volume_size_in_gb=cluster["VolumeSizeInGB"],
        volume_kms_key=cluster.get("VolumeKmsKeyId"),
        output_kms_key=output.get("KmsKeyId"),
        max_runtime_in_seconds=request["StoppingCondition"]["MaxRuntimeInSeconds"],
        env=request.get("Environment"),
        tags=request["Tags"],
        network_config=None
        if network is None
        else sdk.NetworkConfig(
            encrypt_inter_container_traffic=network["EnableInterContainerTrafficEncryption"],
            subnets=vpc.get("Subnets"),
            security_group_ids=vpc.get("SecurityGroupIds"),
        ),
        sagemaker_session=session,
    )
    return processor.run(
        inputs=[
            sdk.ProcessingInput(
                input_name=item["InputName"], s3_input=sdk.ProcessingS3Input(**_in_snake_case(item["S3Input"]))
            )
            for item in request["ProcessingInputs"]
        ],
        outputs=[
            sdk.ProcessingOutput(
                output_name=item["OutputName"], s3_output=sdk.ProcessingS3Output(**_in_snake_case(item["S3Output"]))
            )
            for item in output["Outputs"]
        ],
        arguments=program["ContainerArguments"],
    )


def _in_snake_case(members: dict[str, Any]) -> dict[str, Any]:
    """The members of a request under the SDK's names for them: `S3Uri` is `s3_uri`."""
    return {re.sub(r"(?<=.)(?=[A-Z])", "_", name).lower(): value for name, value in members.items()}


def _imported() -> SimpleNamespace:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        parts = {name: importlib.import_module(f"sagemaker.{module}") for name, module in SDK.items()}
    except ImportError as error:
        raise UsageError(MISSING) from error
    finally:
        root.setLevel(level)  # importing it sets them to show all messages of all libraries on stderr
        root.handlers[:] = handlers
    return SimpleNamespace(**{name: getattr(module, name) for name, module in parts.items()})
