"""One processing or training job: made once whatever happens to the client, followed with its logs, stopped when told to.

The two APIs call the same things by the same names, with the job's kind before them.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from runner.aws.bucket import Bucket
from runner.aws.processing.request import HASH_TAG, digest
from runner.aws.s3 import split
from runner.aws.session import ABSENT, AwsError, Session
from runner.errors import Refused

Kind = Literal["Processing", "Training"]
PROCESSING: Kind = "Processing"
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
OVER = ("Completed", "Failed", "Stopped")
TAKEN = "ResourceInUse"  # botocore: ResourceInUse, in the model without the suffix
EVERY_DESCRIBE = 4  # of the ticks that read logs, one asks for the job itself
LONGEST_MESSAGE = 4000
DRAINS = 8  # pages of logs at most that are read once a job has ended


@dataclass(frozen=True)
class JobEnd:
    """`status` is Completed, Failed or Stopped; `billed_s` the seconds between start and end, 0 where it never ran.

    `stopped_before`: it had been told to stop when it was first looked at; `goes_on`: only one of its steps has ended.
    `late`: which of its limits a training job ran into, in words.
    """

    status: str
    reason: str
    message: str
    billed_s: float
    stopped_before: bool = False
    goes_on: bool = False
    late: str = ""


LATE = {  # by the secondary status
    "MaxRuntimeExceeded": "its time limit of {MaxRuntimeInSeconds} s",
    "MaxWaitTimeExceeded": "{MaxWaitTimeInSeconds} s, with waiting for spot instances",
}


def kind_of(request: dict[str, Any]) -> Kind:
    """Of a request that was made, or of what is kept of a step that was ordered."""
    return "Training" if "TrainingJobName" in request else PROCESSING


def name_in(request: dict[str, Any]) -> str:
    return str(request[f"{kind_of(request)}JobName"])


def log_group(kind: Kind) -> str:
    return f"/aws/sagemaker/{kind}Jobs"


class Jobs:
    """Jobs of one kind."""

    def __init__(self, session: Session, *, poll_s: float, kind: Kind = PROCESSING) -> None:
        self.session, self.poll_s, self.kind = session, poll_s, kind

    def ensure(self, request: dict[str, Any]) -> bool:
        """Create the job; False where it was there already from this very request, as when a reply was lost.

        Raises Refused where another request has the name.
        """
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
            return False
        return True

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

    def status(self, found: dict[str, Any]) -> str:
        """InProgress, Stopping, or one of OVER, of a described job."""
        return str(found[f"{self.kind}JobStatus"])

    def message(self, found: dict[str, Any]) -> str:
        """What the described job said of its failure: its ExitMessage or, where its user may not write that, what lies
        below its output in S3 (`_run.leave_message`). Of a training job the FailureReason has what it could write."""
        said = str(found.get("ExitMessage", ""))
        outputs = [one["S3Output"]["S3Uri"] for one in found.get("ProcessingOutputConfig", {}).get("Outputs", [])]
        outputs += [found["OutputDataConfig"]["S3OutputPath"]] if "OutputDataConfig" in found else []
        if said or self.status(found) != "Failed" or not outputs:
            return said
        name, key = split(outputs[0])
        with contextlib.suppress(AwsError):  # a message that cannot be read must not be the error
            content = Bucket(self.session, name, f"{key.rstrip('/')}/").get("message") or b""
            return content[:LONGEST_MESSAGE].decode(errors="replace")
        return ""

    def stop(self, name: str) -> bool:
        """Ask the job to stop; False where it is over or never was."""
        try:
            self._call("stop_{}_job", name, **{f"{self.kind}JobName": name})
        except AwsError as error:
            if error.code in ABSENT or "ValidationException" in error.code:
                return False
            raise
        return True

    def follow(
        self, name: str, *, left: threading.Event, on_line: Callable[[str], None], on_status: Callable[[str], None]
    ) -> JobEnd | None:
        """Wait for the job's end with its log lines as they come; None once `left` is set, with the job going on.

        One call each `poll_s`: the logs, where there are any, or the job.
        """
        logs = LogReader(self.session, name, on_line, group=log_group(self.kind))
        tick = 0
        first = ""
        while True:
            if tick % EVERY_DESCRIBE == 0 or not logs.read():
                found = self.describe(name)
                first = first or self.status(found)
                on_status(self.status(found))
                logs.expected = logs.expected or f"{self.kind}StartTime" in found
                logs.began(sum(one["Status"] == "Training" for one in found.get("SecondaryStatusTransitions", [])))
                if self.status(found) in OVER:
                    logs.drain()
                    return ended(
                        found, self.message(found), stopped_before=first in ("Stopping", "Stopped"), kind=self.kind
                    )
            tick += 1
            if logs.ended:  # its last line was seen: the end is a matter of moments
                tick = 0
            if left.wait(self.poll_s):
                return None

    def _call(self, action: str, name: str, **arguments: Any) -> dict[str, Any]:
        kind = self.kind.lower()
        return self.session.call("sagemaker", action.format(kind), about=f"{kind} job {name}", **arguments)


def ended(found: dict[str, Any], message: str, *, stopped_before: bool, kind: Kind = PROCESSING) -> JobEnd:
    """The end of the job as described; `message` is what it said of it."""
    start, end = found.get(f"{kind}StartTime"), found.get(f"{kind}EndTime")
    billed = (end - start).total_seconds() if isinstance(start, datetime) and isinstance(end, datetime) else 0.0
    return JobEnd(
        status=found[f"{kind}JobStatus"],
        reason=found.get("FailureReason", ""),
        message=message,
        billed_s=float(found.get("BillableTimeInSeconds", billed)),  # on spot, what is to be paid at the usual price
        stopped_before=stopped_before,
        late=LATE.get(found.get("SecondaryStatus", ""), "").format_map(found.get("StoppingCondition", {})),
    )


class LogReader:
    """The job's lines in CloudWatch Logs. What is late, or cannot be read, is not an error: a run goes on without it.

    There is a stream for each start of the job, named by when that was.
    """

    def __init__(self, session: Session, job: str, on_line: Callable[[str], None], *, group: str = LOG_GROUP) -> None:
        self.session, self.job, self.on_line, self.group = session, job, on_line, group
        self.expected = False  # the job has started, so a stream may be there
        self.readable = True  # as far as is known
        self.ended = False
        self._stream = ""
        self._token: str | None = None
        self._read = set[str]()  # streams of earlier starts

    def read(self) -> bool:
        """One call: find the stream, or read on in it. False where no call was made."""
        if not (self.expected and self.readable) or self.ended:
            return False
        if self._stream:
            self._page()
            return True
        found = self._call("describe_log_streams", logGroupName=self.group, logStreamNamePrefix=f"{self.job}/")
        streams = sorted(one["logStreamName"] for one in found.get("logStreams", []))
        self._stream = next((name for name in streams if name not in self._read), "")
        return True

    def began(self, starts: int) -> None:
        """The job has begun so many times: what is left of earlier starts is read, and then comes the last one."""
        if starts > 1 and not self._stream:
            self.read()
        while self._stream and len(self._read) + 1 < starts:
            self.drain()
            self._read.add(self._stream)
            self._stream, self._token, self.ended = "", None, False
            self.read()

    def drain(self) -> None:
        """All that is left of a job that is over."""
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
        found = self._call(
            "get_log_events", logGroupName=self.group, logStreamName=self._stream, startFromHead=True, **more
        )
        for event in found.get("events", []):
            line = event["message"].rstrip("\n")
            self.ended = self.ended or line.startswith(END)
            self.on_line(line)
        self._token = found.get("nextForwardToken", self._token)

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
    """What a job says in its log before the lines of a step."""
    return f"{STEP}{step} {attempt}"


def progress_line(done: int, total: int, cell: int | None, first_line: str) -> str:
    """What a job says of its progress, in its log."""
    return PROGRESS + json.dumps([done, total, cell, first_line])


def read_progress(line: str) -> tuple[int, int, int | None, str] | None:
    """The progress in a line of the log; None where it is any other line."""
    if not line.startswith(PROGRESS):
        return None
    try:
        done, total, cell, first_line = json.loads(line.removeprefix(PROGRESS))
    except ValueError:
        return None
    return done, total, cell, first_line
