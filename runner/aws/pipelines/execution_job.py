"""A job of a SageMaker Pipeline, as the service describes it to its container."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.processing.request import INPUT
from runner.aws.s3 import split
from runner.aws.session import Session

CONFIGURATION = Path("/opt/ml/config/processingjobconfig.json")
OWN = Path(INPUT) / "step"


@dataclass(frozen=True)
class ExecutionJob:
    name: str
    region: str
    image: str
    instance: str
    machines: int
    inputs: dict[str, str]  # folder of each, below input/ -> its address
    output: str  # address of the step's folder in its execution's, without a last slash
    kms_key: str | None  # encrypts what is written

    @property
    def bucket(self) -> str:
        return split(self.output)[0]

    @property
    def key(self) -> str:
        return f"{split(self.output)[1]}/"

    @property
    def execution(self) -> str:
        """Address of the execution's folder, ending in `/`."""
        return f"{self.output.rpartition('/')[0]}/"

    @property
    def execution_id(self) -> str:
        return self.execution.rstrip("/").rpartition("/")[2]

    def folder(self, session: Session, step: str = "") -> Bucket:
        """The step's folder, or the job's own. Jobs upload their results themselves, as their user may write no folder
        that the service uploads."""
        return Bucket(session, self.bucket, f"{split(self.execution)[1]}{step}/" if step else self.key)


def own_description() -> ExecutionJob:
    description: dict[str, Any] = json.loads(CONFIGURATION.read_bytes())
    arn, output = str(description["ProcessingJobArn"]), description["ProcessingOutputConfig"]
    machine = description["ProcessingResources"]["ClusterConfig"]
    sources = [item["S3Input"] for item in description.get("ProcessingInputs") or [] if "S3Input" in item]
    return ExecutionJob(
        name=str(description.get("ProcessingJobName") or arn.rpartition("/")[2]),
        region=arn.split(":")[3],
        image=description["AppSpecification"]["ImageUri"],
        instance=machine["InstanceType"],
        machines=int(machine["InstanceCount"]),
        inputs={item["LocalPath"].removeprefix(f"{INPUT}/").rstrip("/"): item["S3Uri"] for item in sources},
        output=output["Outputs"][0]["S3Output"]["S3Uri"].rstrip("/"),
        kms_key=output.get("KmsKeyId"),
    )
