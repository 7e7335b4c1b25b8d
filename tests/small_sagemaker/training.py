"""Training jobs: as processing jobs (`jobs.py`), with channels, checkpoints, metrics and instances that are taken away.

A job on spot whose instance is taken away begins again on another one, which has nothing of the first but what lay below
CheckpointConfig's path, as it was in S3 by then. What it costs is a third of its time. The folders that the service makes
belong to root. A model or output data that a container leaves for the service to put away is not known here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .calls import Call
from .container import Container
from .errors import refuse
from .gateway import Action
from .images import Image
from .jobs import Job, Jobs, Run, Settings
from .machines import Machines
from .transfer import LogStream, TransferError, Uploads, download, list_prefix, split_uri

KEPT = (
    "TrainingJobName", "AlgorithmSpecification", "RoleArn", "InputDataConfig", "OutputDataConfig", "ResourceConfig",
    "VpcConfig", "StoppingCondition", "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining",
    "CheckpointConfig", "Environment",
)  # fmt: skip
NOT_HERE = ("HyperParameters", "EnableNetworkIsolation", "RetryStrategy", "DebugHookConfig", "ProfilerConfig")
LONGEST_S = 28 * 86400
LONGEST_WARM_S = 3600
MAX_FAILURE = 1024  # characters of /opt/ml/output/failure
CHECKPOINTS = "/opt/ml/checkpoints"
LIMITS = ("MaxRuntimeExceeded", "MaxWaitTimeExceeded")
SPOT_SHARE = 0.3  # of the time on spot is billed


@dataclass
class TrainingJob(Job):
    kind: ClassVar[str] = "Training"
    transitions: list[dict[str, Any]] = field(default_factory=list)
    running_s: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def instances(self) -> tuple[str, int]:
        resources = self.request["ResourceConfig"]
        return resources["InstanceType"], resources["InstanceCount"]

    @property
    def is_spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def usage(self) -> str:
        return "spot training job" if self.is_spot else "training job"

    def end(self, status: str, reason: str | None) -> None:
        if self.transitions[-1]["Status"] not in LIMITS:
            self.enter(status, reason or "")
        super().end(status, reason)

    def enter(self, status: str, message: str = "") -> None:
        """The next secondary status."""
        now = time.time()
        with self.lock:
            if self.transitions:
                self.transitions[-1]["EndTime"] = now
            self.transitions.append({"Status": status, "StartTime": now, "StatusMessage": message or status})
            self.modified = now

    def describe(self) -> dict[str, Any]:
        found = {key: self.request[key] for key in KEPT if key in self.request}
        with self.lock:
            found |= {
                "TrainingJobArn": self.arn,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.transitions[-1]["Status"] if self.transitions else "Starting",
                "SecondaryStatusTransitions": [dict(one) for one in self.transitions],
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
                "TrainingStartTime": self.started,
                "TrainingEndTime": self.ended,
                "FailureReason": self.failure_reason,
                "ModelArtifacts": {
                    "S3ModelArtifacts": f"{self.request['OutputDataConfig']['S3OutputPath']}model.tar.gz"
                },
            }
        if self.ended is not None:
            found["TrainingTimeInSeconds"] = math.ceil(self.running_s)
            found["BillableTimeInSeconds"] = math.ceil(self.running_s * (SPOT_SHARE if self.is_spot else 1.0))
            found["FinalMetricDataList"] = list(self.metrics())
            if self.request["ResourceConfig"].get("KeepAlivePeriodInSeconds") and self.status == "Completed":
                found["WarmPoolStatus"] = {"Status": "Available"}
        return {key: value for key, value in found.items() if value is not None}

    def metrics(self) -> list[dict[str, Any]]:
        """The last value that each definition finds in the log."""
        found = []
        for one in self.request["AlgorithmSpecification"].get("MetricDefinitions", []):
            values = [match[1] for line in self.lines if (match := re.search(one["Regex"], line))]
            if values:
                found.append({"MetricName": one["Name"], "Value": float(values[-1]), "Timestamp": self.ended})
        return found


def check_training(request: Mapping[str, Any], settings: Settings) -> None:
    """The rules of CreateTrainingJob that the service model does not tell."""
    for name in NOT_HERE:
        if name in request:
            raise refuse(f"this double knows no {name}")
    algorithm, resources = request.get("AlgorithmSpecification", {}), request.get("ResourceConfig", {})
    if "TrainingImage" not in algorithm or algorithm["TrainingInputMode"] != "File":
        raise refuse("this double knows a TrainingImage with TrainingInputMode File only")
    for name in ("InstanceType", "InstanceCount", "VolumeSizeInGB"):
        if not resources.get(name):
            raise refuse(f"ResourceConfig needs {name}")
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    if len(set(names)) < len(names):
        raise refuse(f"Channel names must be unique within a training job: {', '.join(names)}")
    for one in algorithm.get("MetricDefinitions", []):
        try:
            groups = re.compile(one["Regex"]).groups
        except re.error as error:
            raise refuse(f"Invalid regular expression of metric {one['Name']}: {error}") from None
        if groups != 1:
            raise refuse(f"The regular expression of metric {one['Name']} must have one group")
    limits, spot = request.get("StoppingCondition", {}), request.get("EnableManagedSpotTraining")
    runs, waits = limits.get("MaxRuntimeInSeconds", 86400), limits.get("MaxWaitTimeInSeconds")
    if runs > LONGEST_S:
        raise refuse(f"MaxRuntimeInSeconds must be at most {LONGEST_S}")
    if waits is not None and not spot:
        raise refuse("Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true")
    if spot and (waits is None or waits < runs):
        raise refuse(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
        )
    warm = resources.get("KeepAlivePeriodInSeconds", 0)
    if warm and spot:
        raise refuse("KeepAlivePeriodInSeconds is not supported when EnableManagedSpotTraining is set to true")
    if warm > LONGEST_WARM_S:
        raise refuse(f"KeepAlivePeriodInSeconds must be at most {LONGEST_WARM_S}")
    place = request.get("CheckpointConfig", {}).get("LocalPath", CHECKPOINTS)
    if place.rstrip("/") != CHECKPOINTS:
        raise refuse(f"this double keeps checkpoints of {CHECKPOINTS} only, not of {place}")
    role = request["RoleArn"]
    if settings.roles is not None and role not in settings.roles:
        raise refuse(f"Could not assume role {role}. Please ensure that the role exists and allows principal "
                     "'sagemaker.amazonaws.com' to assume the role.")  # fmt: skip


class TrainingJobs(Jobs):
    resource = "training-job"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.job_class, self.run_class = TrainingJob, TrainingRun

    def check(self, request: dict[str, Any]) -> None:
        check_training(request, self.settings)


class TrainingRun(Run):
    job: TrainingJob

    @property
    def image_uri(self) -> str:
        return str(self.job.request["AlgorithmSpecification"]["TrainingImage"])

    def live(self) -> None:
        self.job.enter("Starting")
        super().live()

    def _run_image(self, image: Image) -> tuple[str, str | None]:
        start = 0
        while True:
            self.interruption = self.jobs.faults.pick_interruption(self.job.name) if self.job.is_spot else None
            container = Container(self.folder / f"start-{start}", image)
            try:
                ended, code = self._start(container, start)
                if ended is None and not code and self.interruption is not None and not self.interruption.at_line:
                    self.uploads.send(end_of_job=False)
                    ended = "interrupted"  # while the job was Uploading, its checkpoints first
                if ended not in ("interrupted", "warned"):
                    return self._end(container, ended, code)
            finally:
                container.remove()
            start += 1
            self.job.enter("Interrupted", "Training job interrupted, as its instance was taken away")
            if self._waited_s() > self._most_s("MaxWaitTimeInSeconds"):
                self.job.enter(LIMITS[1])
                return "Stopped", None
            self.job.enter("Starting")

    def _start(self, container: Container, start: int) -> tuple[str | None, int]:
        """One container, from its inputs to its end: why it was ended, and its exit code."""
        job, request = self.job, self.job.request
        job.enter("Downloading")
        container.host("/opt/ml/config").rmdir()
        for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            container.host(f"/opt/ml/{name}").mkdir(parents=True)
        for channel in request.get("InputDataConfig", []):
            source = channel["DataSource"]["S3DataSource"]
            if source["S3DataType"] != "S3Prefix":
                raise TransferError(f"InternalServerError: this double knows S3Prefix only, not {source['S3DataType']}")
            download(self.s3, source["S3Uri"], container.host(f"/opt/ml/input/data/{channel['ChannelName']}"))
        host = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
        channels = {one["ChannelName"]: {"TrainingInputMode": "File"} for one in request.get("InputDataConfig", [])}
        for name, content in (("resourceconfig", host), ("inputdataconfig", channels), ("hyperparameters", {})):
            container.host(f"/opt/ml/input/config/{name}.json").write_text(json.dumps(content))
        self.uploads = Uploads(self.s3, self._kept(container), request["OutputDataConfig"].get("KmsKeyId"))
        algorithm = request["AlgorithmSpecification"]
        command = [*algorithm.get("ContainerEntrypoint", ["train"]), *algorithm.get("ContainerArguments", [])]
        environment = {**self._environment(container.image), "TRAINING_JOB_NAME": job.name}
        job.started = job.started or time.time()
        job.enter("Training")
        self.began, self.heard = time.monotonic(), list[str]()
        self.said_s: float | None = None  # into the container's run, when the line was heard that takes it away
        stop_serving = self.jobs.serve(container.start(command, environment, port=self.jobs.port))
        logs = self.jobs.client_as("logs", self.role)
        stream = LogStream(
            logs, job.name, container.output, 0.0, group=self.log_group, start=start, hear=self.heard.append
        )
        try:
            ended, code = self._watch(container, self.uploads)
            stream.finish(5)
            return ended, code
        finally:
            stop_serving()
            job.running_s += time.monotonic() - self.began
            job.lines += self.heard

    def _kept(self, container: Container) -> list[tuple[dict[str, Any], Any]]:
        """What is kept in step with S3 while the container runs, with what lies there already."""
        wanted = self.job.request.get("CheckpointConfig")
        if wanted is None:
            return []
        folder = container.host(CHECKPOINTS)
        if any(True for _ in list_prefix(self.s3, *split_uri(wanted["S3Uri"]))):
            download(self.s3, wanted["S3Uri"], folder)
        return [({"S3Uri": wanted["S3Uri"], "S3UploadMode": "Continuous"}, folder)]

    def _why_end(self, running_s: float) -> str | None:
        found = self.interruption
        if found is not None and found.at_line and any(found.at_line in line for line in self.heard):
            self.said_s = self.said_s or running_s
        if found is not None and self.said_s is not None and running_s >= self.said_s + found.after_s:
            self.uploads.send(end_of_job=False)  # what was there when the line was said is in S3 by now
            return "warned" if found.warned else "interrupted"
        if self._waited_s() > self._most_s("MaxWaitTimeInSeconds"):
            return "limit"
        return super()._why_end(self.job.running_s + running_s)

    def _end(self, container: Container, ended: str | None, code: int) -> tuple[str, str | None]:
        self.job.enter("Uploading")
        self.uploads.send(end_of_job=True)
        for name in ("model", "output/data"):
            if any(container.host(f"/opt/ml/{name}").iterdir()):
                raise TransferError(f"InternalServerError: this double puts nothing of /opt/ml/{name} away")
        status, reason = self._conclude(container, ended, code)
        if ended == "limit":
            late = self._waited_s() > self._most_s("MaxWaitTimeInSeconds")
            self.job.enter(LIMITS[1] if late else LIMITS[0])
        return status, reason

    def _conclude(self, container: Container | Machines, ended: str | None, code: int) -> tuple[str, str | None]:
        status, reason = super()._conclude(container, ended, code)
        failure = container.host("/opt/ml/output/failure")
        if code and ended is None:
            said = failure.read_text(errors="replace")[:MAX_FAILURE] if failure.is_file() else ""
            return "Failed", f"AlgorithmError: {said}, exit code: {code}"
        return status, reason

    def _waited_s(self) -> float:
        return time.time() - self.job.created

    def _most_s(self, name: str) -> float:
        return float(self.job.request.get("StoppingCondition", {}).get(name, math.inf))


class TrainingActions:
    def __init__(self, jobs: TrainingJobs) -> None:
        self.jobs = jobs

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("sagemaker", "CreateTrainingJob"): self.create,
            ("sagemaker", "DescribeTrainingJob"): self.describe,
            ("sagemaker", "StopTrainingJob"): self.stop,
        }

    def create(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return {"TrainingJobArn": self.jobs.create(call.parameters).arn}

    def describe(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return self.jobs.get(call.parameters["TrainingJobName"]).describe()

    def stop(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        self.jobs.stop(call.parameters["TrainingJobName"])
        return {}
