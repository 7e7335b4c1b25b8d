"""Processing jobs: what the API promises about them, and their life from InProgress to an end.

A job that exceeds MaxRuntimeInSeconds ends as Stopped without a FailureReason: the reference says of the condition that
"the processing job is stopped"; what a real account adds to it is not known here. Outputs at EndOfJob are stored when the
exit code is 0 and nobody ended the job. A job on several instances has as many containers (machines.py), each with all
inputs, which come as files; the first one starts last, and the job ends when all have ended.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .calls import ACCOUNT, JOB_KEY, SERVICE_KEY, Call
from .container import SYSTEM_PATH, Container
from .errors import ServiceError, refuse
from .faults import Faults
from .images import Image
from .machines import Machines
from .permissions import Permissions
from .rights import name_of_role, pull, requests, writing_log
from .tags import Tags
from .transfer import LogStream, TransferError, Uploads, download

ENDS = ("Completed", "Failed", "Stopped")
KEPT = (
    "ProcessingInputs", "ProcessingOutputConfig", "ProcessingJobName", "ProcessingResources", "StoppingCondition",
    "AppSpecification", "Environment", "NetworkConfig", "RoleArn", "ExperimentConfig",
)  # fmt: skip
SUMMARY = (
    "ProcessingJobName", "ProcessingJobArn", "CreationTime", "ProcessingEndTime", "LastModifiedTime",
    "ProcessingJobStatus", "FailureReason", "ExitMessage",
)  # fmt: skip
DEFAULT_LIMIT_S = 86400
MAX_TEXT_BYTES = 1024  # ExitMessage and FailureReason
INPUT_ROOT = "/opt/ml/processing/"


@dataclass
class Settings:
    """What the test asked of this double."""

    images: Mapping[str, Image]
    region: str = "eu-west-1"
    pending_s: float = 0.05
    grace_s: float = 3.0
    poll_s: float = 0.1
    quotas: Mapping[str, int] = field(default_factory=dict)
    roles: tuple[str, ...] | None = None

    def find_image(self, uri: str) -> Image | None:
        return self.images.get(uri) or self.images.get("*")

    def name_arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{ACCOUNT}:{kind}/{name}"


@dataclass
class Job:
    """One job. `events` tells when it is asked to stop and when it has ended."""

    kind: ClassVar[str] = "Processing"
    request: dict[str, Any]
    arn: str
    status: str = "InProgress"
    failure_reason: str | None = None
    exit_message: str | None = None
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    modified: float = field(default_factory=time.time)
    stop_asked: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    logs_visible_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return str(self.request[f"{self.kind}JobName"])

    @property
    def instances(self) -> tuple[str, int]:
        """What it runs on: the type and how many."""
        cluster = self.request["ProcessingResources"]["ClusterConfig"]
        return cluster.get("InstanceType", ""), cluster.get("InstanceCount", 1)

    @property
    def usage(self) -> str:
        """What its quota is for."""
        return "processing job"

    def ask_stop(self) -> None:
        """Raises ValidationException for a job that has ended."""
        with self.lock:
            if self.status in ENDS:
                raise refuse(
                    f"The request was rejected because the {self.kind.lower()} job is in status {self.status}."
                )
            self.status, self.modified = "Stopping", time.time()
        self.stop_asked.set()

    def show_stopping(self) -> None:
        with self.lock:
            self.status, self.modified = "Stopping", time.time()

    def end(self, status: str, reason: str | None) -> None:
        with self.lock:
            if reason is not None:
                self.failure_reason = reason.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
            self.ended = self.modified = time.time()
            self.status = status
        self.over.set()

    def describe(self) -> dict[str, Any]:
        found = {key: self.request[key] for key in KEPT if key in self.request}
        found |= {
            "ProcessingJobArn": self.arn,
            "ProcessingJobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "ProcessingStartTime": self.started,
            "ProcessingEndTime": self.ended,
            "FailureReason": self.failure_reason,
            "ExitMessage": self.exit_message,
        }
        found.setdefault("StoppingCondition", {"MaxRuntimeInSeconds": DEFAULT_LIMIT_S})
        return {key: value for key, value in found.items() if value is not None}

    def summarize(self) -> dict[str, Any]:
        described = self.describe()
        return {key: described[key] for key in SUMMARY if key in described}


def check_request(request: Mapping[str, Any], settings: Settings) -> None:
    """The rules of CreateProcessingJob that the service model does not tell."""
    inputs = request.get("ProcessingInputs") or []
    outputs = (request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
    for kind, found in (("Input", inputs), ("Output", outputs)):
        names = [item[f"{kind}Name"] for item in found]
        if len(set(names)) < len(names):
            raise refuse(f"{kind} names must be unique within a processing job: {', '.join(names)}")
        for item in found:
            place = (item.get(f"S3{kind}") or {}).get("LocalPath")
            if place is not None and not f"{place}/".startswith(INPUT_ROOT):
                raise refuse(f"{kind} LocalPath must begin with {INPUT_ROOT}, found {place}")
    role = request["RoleArn"]
    if settings.roles is not None and role not in settings.roles:
        raise refuse(f"Could not assume role {role}. Please ensure that the role exists and allows principal "
                     "'sagemaker.amazonaws.com' to assume the role.")  # fmt: skip


def check_quota(job: Job, others: Iterable[Job], quotas: Mapping[str, int]) -> None:
    """Raises ResourceLimitExceeded where the account may not have so many instances at a time."""
    kind, count = job.instances
    beside = [other for other in others if (other.instances[0], other.usage) == (kind, job.usage)]
    used = sum(other.instances[1] for other in beside if other.status not in ENDS)
    name = f"{kind} for {job.usage} usage"
    most = quotas.get(kind if job.kind == "Processing" else name)
    if most is not None and used + count > most:
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The account-level service limit '{name}' is {most} Instances, with "
            f"current utilization of {used} Instances and a request delta of {count} Instances. Please use AWS Service "
            "Quotas to request an increase for this quota.",
        )


def check_input(item: Mapping[str, Any]) -> None:
    """Raises TransferError for what the service can do and this double cannot."""
    only = {"S3DataType": "S3Prefix", "S3InputMode": "File", "S3CompressionType": "None"}
    for key, known in (only | {"S3DataDistributionType": "FullyReplicated"}).items():
        if item.get(key, known) != known:
            raise TransferError(f"InternalServerError: this double knows {key} {known} only, not {item[key]}")


class Jobs:
    """All processing jobs of the account; those of another kind are a class of their own.

    `serve` answers the connections a container makes, `tell_trouble` takes what goes wrong in this double itself.
    """

    resource = "processing-job"  # in an ARN

    def __init__(
        self,
        settings: Settings,
        faults: Faults,
        tags: Tags,
        port: int,
        serve: Callable[[socket.socket], Callable[[], None]],
        tell_trouble: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.faults = faults
        self.tags = tags
        self.port = port
        self.serve = serve
        self.tell_trouble = tell_trouble
        self.s3: Any = None
        self.client_as: Callable[[str, str], Any]  # of a service, for what is done as the role of this ARN
        self.permissions: Permissions
        self.closing = threading.Event()
        self.job_class: type[Job] = Job
        self.run_class: type[Run] = Run
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def create_as(self, role: str, request: dict[str, Any]) -> Job:
        """As a Pipeline does it, in the name of its role, which also follows it."""
        self.require(role, "CreateProcessingJob", request)
        self.require(role, "DescribeProcessingJob", request)
        return self.create(request)

    def stop_as(self, role: str, job: Job) -> None:
        self.require(role, "StopProcessingJob", job.request)
        with contextlib.suppress(ServiceError):  # it has ended
            job.ask_stop()

    def require(self, role: str, action: str, request: dict[str, Any]) -> None:
        """Raises ServiceError where the role may not."""
        given = request if action.startswith("Create") else {"ProcessingJobName": request["ProcessingJobName"]}
        self.permissions.require(name_of_role(role), requests(Call("sagemaker", action, given, SERVICE_KEY)))

    def create(self, request: dict[str, Any]) -> Job:
        """Accepts or refuses a request and starts its job; the one way in for clients and for pipelines."""
        self.check(request)
        name = request[f"{self.job_class.kind}JobName"]
        with self._lock:
            if name in self._jobs:
                raise ServiceError(
                    "ResourceInUse",
                    "Job name must be unique within an AWS account and region, and a job with this name already "
                    f"exists ({self._jobs[name].arn})",
                )
            job = self.job_class(request, self.settings.name_arn(self.resource, name))
            check_quota(job, self._jobs.values(), self.settings.quotas)
            self._jobs[name] = job
        self.tags.keep(job.arn, request.get("Tags"))
        thread = threading.Thread(target=self.run_class(self, job).live, daemon=True, name=f"job {name}")
        self._threads.append(thread)
        thread.start()
        return job

    def check(self, request: dict[str, Any]) -> None:
        check_request(request, self.settings)

    def get(self, name: str) -> Job:
        job = self._jobs.get(name)
        if job is None:
            raise refuse(f"Could not find requested job with name: {name}")
        return job

    def stop(self, name: str) -> None:
        self.get(name).ask_stop()

    def delete(self, name: str) -> None:
        """One that has ended; its name may be taken again then, and its log stays."""
        if name not in self._jobs:
            raise ServiceError("ResourceNotFound", f"Could not find requested job with name: {name}")
        if (job := self._jobs[name]).status not in ENDS:
            raise ServiceError("ResourceInUse", f"The processing job {job.arn} is {job.status} and cannot be deleted.")
        with self._lock:
            del self._jobs[name]
        self.tags.forget(job.arn)

    def list_all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def hides_logs(self, prefix: str) -> bool:
        """Whether the stream that is asked for belongs to a job whose logs are held back."""
        name = prefix.partition("/")[0]
        return name in self._jobs and self._jobs[name].logs_visible_at > time.monotonic()

    def close(self) -> None:
        self.closing.set()
        for job in self.list_all():
            job.stop_asked.set()
        for thread in self._threads:
            thread.join(5)


class Run:
    """The life of one job, in a thread of its own."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self.jobs, self.job, self.settings = jobs, job, jobs.settings
        self.folder = Path(tempfile.mkdtemp(prefix="small-sagemaker-"))
        self.limit_s = (job.request.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds", DEFAULT_LIMIT_S)
        self.fault = jobs.faults.pick_job(job.name)
        self.role = job.request["RoleArn"]
        self.s3 = jobs.client_as("s3", self.role)
        self.log_group = f"/aws/sagemaker/{job.kind}Jobs"

    def live(self) -> None:
        job = self.job
        try:
            status, reason = self._run()
        except TransferError as error:
            status, reason = "Failed", str(error)
        except Exception as error:
            status, reason = "Failed", f"InternalServerError: {type(error).__name__}: {error}"
            if not self.jobs.closing.is_set():
                self.jobs.tell_trouble(f"job {job.name}\n{traceback.format_exc()}")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        job.end(status, reason)

    def _run(self) -> tuple[str, str | None]:
        job, uri = self.job, self.image_uri
        if job.stop_asked.wait(self.settings.pending_s):
            return "Stopped", None
        if self.fault is not None and not self.fault.after_s:
            return "Failed", self.fault.fail
        try:
            self.jobs.permissions.require(name_of_role(self.role), pull(uri))
            self.jobs.permissions.may(name_of_role(self.role), writing_log(self.log_group))
        except ServiceError as error:
            return "Failed", f"ClientError: Cannot pull image {uri}: {error.message}"
        image = self.settings.find_image(uri)
        if image is None:
            return "Failed", f"ClientError: Cannot pull image {uri}: the image does not exist"
        return self._run_image(image)

    @property
    def image_uri(self) -> str:
        return str(self.job.request["AppSpecification"]["ImageUri"])

    def _run_image(self, image: Image) -> tuple[str, str | None]:
        machines = Machines(self.folder, image, self.job.instances[1])
        try:
            return self._run_machines(machines)
        finally:
            machines.remove()

    def _run_machines(self, machines: Machines) -> tuple[str, str | None]:
        job, request = self.job, self.job.request
        outputs: list[tuple[dict[str, Any], Path]] = []
        for host, container in zip(machines.hosts, machines.containers, strict=True):
            outputs += self._fill(container, host, machines.hosts)
        application = request["AppSpecification"]
        command = [*application.get("ContainerEntrypoint", []), *application.get("ContainerArguments", [])]
        if not command:
            return "Failed", "ClientError: The image has no entry point of its own here; name one"
        if job.stop_asked.is_set():
            return "Stopped", None
        job.started = time.time()
        delay_s = self.jobs.faults.logs_delay_s(job.name)
        job.logs_visible_at = time.monotonic() + delay_s
        logs, streams, serving = self.jobs.client_as("logs", self.role), list[LogStream](), list[Callable[[], None]]()
        try:
            for host, container in reversed([*zip(machines.hosts, machines.containers, strict=True)]):
                listener = container.start(command, self._environment(container.image), port=self.jobs.port)
                serving.append(self.jobs.serve(listener))
                streams.append(LogStream(logs, job.name, container.output, delay_s, host=host))
            uploads = Uploads(self.s3, outputs, (request.get("ProcessingOutputConfig") or {}).get("KmsKeyId"))
            ended, code = self._watch(machines, uploads)
            for stream in streams:
                stream.finish(5)
            uploads.send(end_of_job=ended is None and code == 0)
            return self._conclude(machines, ended, code)
        finally:
            for stop_serving in serving:
                stop_serving()

    def _fill(self, container: Container, host: str, hosts: Sequence[str]) -> list[tuple[dict[str, Any], Path]]:
        """Brings a container its inputs and what it is; its outputs with their folders."""
        for item in self.job.request.get("ProcessingInputs") or []:
            if "S3Input" in item:
                check_input(item["S3Input"])
                download(self.s3, item["S3Input"]["S3Uri"], container.host(item["S3Input"]["LocalPath"]))
        found = (self.job.request.get("ProcessingOutputConfig") or {}).get("Outputs") or []
        outputs = [(item["S3Output"], container.host(item["S3Output"]["LocalPath"])) for item in found]
        for _, folder in outputs:
            folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration(container.host("/opt/ml/config"), host, hosts)
        return outputs

    def _watch(self, container: Container | Machines, uploads: Uploads) -> tuple[str | None, int]:
        """Waits for the end; why it was ended ("stop", "limit", "fault") or None, and the exit code."""
        why: str | None = None
        begun, ended_at = time.monotonic(), 0.0
        while (code := container.poll()) is None:
            uploads.send(end_of_job=False)
            now = time.monotonic()
            if why is None:
                why = self._why_end(now - begun)
                if why in ("fault", "interrupted"):
                    container.kill()
                elif why is not None:
                    if why != "warned":
                        self.job.show_stopping()
                    ended_at = now
                    container.terminate()
            elif now - ended_at > self.settings.grace_s or self.jobs.closing.is_set():
                container.kill()
            time.sleep(self.settings.poll_s if why is None else 0.02)
        return why, code

    def _why_end(self, running_s: float) -> str | None:
        if self.job.stop_asked.is_set():
            return "stop"
        if running_s > self.limit_s:
            return "limit"
        if self.fault is not None and running_s > self.fault.after_s:
            return "fault"
        return None

    def _conclude(self, container: Container | Machines, ended: str | None, code: int) -> tuple[str, str | None]:
        message = container.host("/opt/ml/output/message")
        if message.is_file() and not message.is_symlink():
            try:
                self.job.exit_message = message.read_bytes()[:MAX_TEXT_BYTES].decode()
            except UnicodeDecodeError:
                return "Failed", "AlgorithmError: The exit message is not UTF-8"
        if ended == "fault" and self.fault is not None:
            return "Failed", self.fault.fail
        if ended is not None:
            return "Stopped", None
        if code:
            return "Failed", f"AlgorithmError: See job logs for more information, exit code: {code}"
        return "Completed", None

    def _write_configuration(self, folder: Path, host: str, hosts: Sequence[str]) -> None:
        place = {"current_host": host, "hosts": list(hosts)}
        (folder / "resourceconfig.json").write_text(json.dumps(place))
        job = {"ProcessingJobArn": self.job.arn, **{key: self.job.request.get(key) for key in KEPT}}
        (folder / "processingjobconfig.json").write_text(json.dumps(job))

    def _environment(self, image: Image) -> dict[str, str]:
        return {
            "PATH": f"{image.path}/bin:{SYSTEM_PATH}",
            "HOME": image.home,
            "LANG": "C.UTF-8",
            "AWS_REGION": self.settings.region,
            "AWS_DEFAULT_REGION": self.settings.region,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.jobs.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ACCESS_KEY_ID": f"{JOB_KEY}.{name_of_role(self.role)}",
            "AWS_SECRET_ACCESS_KEY": "secret",
            f"{self.job.kind.upper()}_JOB_ARN": self.job.arn,
            **(self.job.request.get("Environment") or {}),
        }
