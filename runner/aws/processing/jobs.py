"""One processing or training job: created once whatever happens to the client, followed with its logs, stopped.

The two APIs have the same names for the same things, with the job's kind before them.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from runner.aws.bucket import Bucket
from runner.aws.processing.request import HASH_TAG, digest
from runner.aws.s3 import split
from runner.aws.session import ABSENT, AwsError, Session
from runner.errors import Refused
from runner.step.execute import Progress

Kind = Literal["Processing", "Training"]
PROCESSING: Kind = "Processing"
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
OVER = ("Completed", "Failed", "Stopped")
TAKEN = "ResourceInUse"  # botocore: ResourceInUse, in the model without the suffix
EVERY_DESCRIBE = 4  # of the ticks that read logs, one asks for the job itself
LONGEST_MESSAGE = 4000
HOSTS = "algo-{}"  # the service's names for a job's machines, from 1; a log's stream begins with one
DRAINS = 8  # pages of logs at most that are read after a job has ended
LATE = {  # by the secondary status of a training job
    "MaxRuntimeExceeded": "its time limit of {MaxRuntimeInSeconds} s",
    "MaxWaitTimeExceeded": "{MaxWaitTimeInSeconds} s, with waiting for spot instances",
}


@dataclass(frozen=True)
class JobEnd:
    """`status` is Completed, Failed or Stopped; `billed_s` the seconds between start and end, 0 where it never ran.

    `stopped_before`: it was asked to stop before it was first described; `goes_on`: only one of its steps has ended.
    `late`: the limit that a training job ran into, in words.
    """

    status: str
    reason: str
    message: str
    billed_s: float
    stopped_before: bool = False
    goes_on: bool = False
    late: str = ""


def kind_of(request: dict[str, Any]) -> Kind:
    """The kind of the job that request.json creates or orders a step from."""
    return "Training" if "TrainingJobName" in request else PROCESSING


def name_in(request: dict[str, Any]) -> str:
    return str(request[f"{kind_of(request)}JobName"])


def machines_in(request: dict[str, Any]) -> int:
    """How many machines the job has."""
    return int(request.get("ProcessingResources", {}).get("ClusterConfig", {}).get("InstanceCount", 1))


def log_group(kind: Kind) -> str:
    return f"/aws/sagemaker/{kind}Jobs"


class Jobs:
    """Jobs of one kind."""

    def __init__(self, session: Session, *, poll_s: float, kind: Kind = PROCESSING) -> None:
        self.session, self.poll_s, self.kind = session, poll_s, kind

    def ensure(self, request: dict[str, Any]) -> None:
        """Create the job, unless this very request has created it before. Raises Refused where another request has."""
        name = request[f"{self.kind}JobName"]
        try:
            self._call("create_{}_job", name, **request)
        except AwsError as error:
            if not error.code.startswith(TAKEN):
                raise
            arn = self.describe(name)[f"{self.kind}JobArn"]
            tags = {tag["Key"]: tag["Value"] for tag in self._call("list_tags", name, ResourceArn=arn)["Tags"]}
            if tags.get(HASH_TAG) != digest(request):
                raise Refused(
                    f"A {self.kind.lower()} job {name} is there already, made by another request. "
                    "Set another [sagemaker] prefix, or start a new run."
                ) from error

    def describe(self, name: str) -> dict[str, Any]:
        return self._call("describe_{}_job", name, **{f"{self.kind}JobName": name})

    def find(self, name: str) -> dict[str, Any] | None:
        """The job's description; None where there is none of that name."""
        try:
            return self.describe(name)
        except AwsError as error:
            if error.code in ABSENT or "ValidationException" in error.code:  # what the service answers for it
                return None
            raise

    def status(self, description: dict[str, Any]) -> str:
        """InProgress, Stopping, or one of OVER."""
        return str(description[f"{self.kind}JobStatus"])

    def message(self, description: dict[str, Any]) -> str:
        """The job's message about its failure: its ExitMessage or, where its user may not write that, the object
        below its output in S3 (`_run.leave_message`). A training job's is in its FailureReason, if it could write."""
        message = str(description.get("ExitMessage", ""))
        outputs = description.get("ProcessingOutputConfig", {}).get("Outputs", [])
        addresses = [output["S3Output"]["S3Uri"] for output in outputs]
        addresses += [description["OutputDataConfig"]["S3OutputPath"]] if "OutputDataConfig" in description else []
        if message or self.status(description) != "Failed" or not addresses:
            return message
        name, key = split(addresses[0])
        with contextlib.suppress(AwsError):  # a message that cannot be read must not be the error
            content = Bucket(self.session, name, f"{key.rstrip('/')}/").get("message") or b""
            return content[:LONGEST_MESSAGE].decode(errors="replace")
        return ""

    def billed_s(self, description: dict[str, Any]) -> float:
        """Seconds to be paid at the usual price, also on spot; 0 where the job never ran."""
        start, end = description.get(f"{self.kind}StartTime"), description.get(f"{self.kind}EndTime")
        ran_s = (end - start).total_seconds() if isinstance(start, datetime) and isinstance(end, datetime) else 0.0
        return float(description.get("BillableTimeInSeconds", ran_s))

    def end(self, description: dict[str, Any], first_status: str) -> JobEnd:
        """The end of the described job; `first_status` is what it had when it was first looked at."""
        return JobEnd(
            status=self.status(description),
            reason=description.get("FailureReason", ""),
            message=self.message(description),
            billed_s=self.billed_s(description),
            stopped_before=first_status in ("Stopping", "Stopped"),
            late=LATE.get(description.get("SecondaryStatus", ""), "").format_map(
                description.get("StoppingCondition", {})
            ),
        )

    def stop(self, name: str) -> bool:
        """Ask the job to stop; False where it has ended or does not exist."""
        try:
            self._call("stop_{}_job", name, **{f"{self.kind}JobName": name})
        except AwsError as error:
            if error.code in ABSENT or "ValidationException" in error.code:
                return False
            raise
        return True

    def log(self, name: str, on_line: Callable[[str], None], *, host: str = "") -> LogReader:
        """The log of the job, or of one of its machines."""
        return LogReader(self.session, name, on_line, group=log_group(self.kind), host=host)

    def logs(self, name: str, on_line: Callable[[str], None], *, machines: int) -> Log:
        """The log of a job on so many machines; lines of all but the first begin with the machine's name."""
        if machines == 1:
            return self.log(name, on_line)

        def of(host: str) -> LogReader:
            first = host == HOSTS.format(1)
            return self.log(name, on_line if first else lambda line: on_line(f"{host} | {line}"), host=host)

        return MachineLogs([of(HOSTS.format(number + 1)) for number in range(machines)])

    def follow(
        self,
        name: str,
        *,
        detach: threading.Event,
        log: Log,
        part_ended: Callable[[int, bool], bool] = lambda _tick, _described: False,
    ) -> JobEnd | None:
        """Wait for the job's end and read its log; None once `detach` is set, while the job keeps running.

        One call each `poll_s`: for the log, where there is one, or for the job. `part_ended` is asked after each, with
        its number and whether the job was described, if only a part of the job is waited for.
        """
        first, tick = "", 0
        while True:
            described = tick % EVERY_DESCRIBE == 0 or not log.read()
            if described:
                description = self.describe(name)
                first = first or self.status(description)
                log.expected = log.expected or f"{self.kind}StartTime" in description
                statuses = [item["Status"] for item in description.get("SecondaryStatusTransitions", [])]
                log.began(statuses.count("Training"))
                if self.status(description) in OVER:
                    log.drain()
                    return self.end(description, first)
            if part_ended(tick, described):
                return JobEnd(status="Completed", reason="", message="", billed_s=0.0, goes_on=True)
            tick = 0 if log.ended else tick + 1  # after the last line of the log the job ends within moments
            if detach.wait(self.poll_s):
                return None

    def _call(self, action: str, name: str, **arguments: Any) -> dict[str, Any]:
        kind = self.kind.lower()
        return self.session.call("sagemaker", action.format(kind), about=f"{kind} job {name}", **arguments)


class Log(Protocol):
    """What is read of a job's log while the job is followed."""

    expected: bool  # the job has started, so a stream may be there

    @property
    def ended(self) -> bool:
        """The job has written its last line."""

    def read(self) -> bool:
        """One call. False where none was made."""

    def began(self, starts: int) -> None:
        """The job has been started so many times."""

    def drain(self) -> None:
        """Read the rest of what has ended."""


class MachineLogs:
    """The logs of a job's machines, read in turn; the first machine says when the job has ended."""

    def __init__(self, readers: list[LogReader]) -> None:
        self._readers, self._turn, self.expected = readers, 0, False

    @property
    def ended(self) -> bool:
        return self._readers[0].ended

    def read(self) -> bool:
        reader = self._readers[self._turn % len(self._readers)]
        reader.expected, self._turn = self.expected, self._turn + 1
        return reader.read()

    def began(self, starts: int) -> None:
        """Nothing: a processing job is started once."""

    def drain(self) -> None:
        for reader in self._readers:
            reader.drain()


class LogReader:
    """The job's lines in CloudWatch Logs; late or unreadable logs are no error of a run.

    There is a stream for each start of the job, named by its time.
    """

    def __init__(
        self, session: Session, job: str, on_line: Callable[[str], None], *, group: str = LOG_GROUP, host: str = ""
    ) -> None:
        """`host` names one machine of several."""
        self.session, self.job, self.on_line, self.group = session, job, on_line, group
        self._prefix = f"{job}/{host}-" if host else f"{job}/"
        self.expected = False  # the job has started, so a stream may be there
        self.readable = True  # as far as is known
        self.ended = False
        self._stream = ""
        self._token: str | None = None
        self._read = set[str]()  # streams of earlier starts

    def read(self) -> bool:
        """One call: find the stream, or read its next page. False where no call was made."""
        if not (self.expected and self.readable) or self.ended:
            return False
        if self._stream:
            self._page()
            return True
        reply = self._call("describe_log_streams", logGroupName=self.group, logStreamNamePrefix=self._prefix)
        streams = sorted(stream["logStreamName"] for stream in reply.get("logStreams", []))
        self._stream = next((name for name in streams if name not in self._read), "")
        return True

    def began(self, starts: int) -> None:
        """The job has been started so many times: read the rest of the earlier starts' streams, then the last one's."""
        if starts > 1 and not self._stream:
            self.read()
        while self._stream and len(self._read) + 1 < starts:
            self.drain()
            self._read.add(self._stream)
            self._stream, self._token, self.ended = "", None, False
            self.read()

    def drain(self) -> None:
        """Read the rest of a log whose job, or whose start, has ended."""
        self.ended, self.expected = False, True
        if not self._stream:
            self.read()
        for _ in range(DRAINS):
            before = self._token
            if not self._stream or not self.readable:
                return
            self._page()
            if self._token == before:
                return
        self.on_line("(log cut)")

    def _page(self) -> None:
        more = {"nextToken": self._token} if self._token else {}
        page = self._call(
            "get_log_events", logGroupName=self.group, logStreamName=self._stream, startFromHead=True, **more
        )
        for event in page.get("events", []):
            line = event["message"].rstrip("\n")
            self.ended = self.ended or line.startswith(END)
            self.on_line(line)
        self._token = page.get("nextForwardToken", self._token)

    def _call(self, action: str, **arguments: Any) -> dict[str, Any]:
        try:
            return self.session.call("logs", action, about=f"log of {self.job}", **arguments)
        except AwsError as error:
            if error.code not in ABSENT:
                self.readable = False
                self.on_line(f"(the log cannot be read: {error})")
            return {}


PROGRESS, END, STEP = "runner:progress ", "runner:end", "runner:step "


def step_line(step: str, attempt: int) -> str:
    """The line in a job's log before those of a step."""
    return f"{STEP}{step} {attempt}"


def progress_line(progress: Progress) -> str:
    """The line in a job's log that reports its progress."""
    return PROGRESS + json.dumps([progress.done, progress.total, progress.cell, progress.first_line, progress.unit])


def read_progress(line: str, step: str) -> Progress | None:
    """The progress of the step in a line of the log; None where it is any other line."""
    if not line.startswith(PROGRESS):
        return None
    try:
        done, total, cell, first_line, unit = json.loads(line.removeprefix(PROGRESS))
    except ValueError:
        return None
    return Progress(step, done, total, cell, first_line, unit=unit)
