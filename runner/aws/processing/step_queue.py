"""Steps of a run that share a job: the job executes one, and waits for an order of the next.

    <bucket>/<prefix>runs/<run>/<step>/attempts/<n>/       of the step that the job was made for
        queue/1.json, 2.json, …                            the steps ordered after it; each is put once

The client puts an order under the next number; the client or the job puts an empty order there to end the queue. As
each number is put once only, no step is ordered from a job that will not execute it. All other objects of a step have
the same places as for a step with a job of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from runner.aws.bucket import Bucket
from runner.aws.processing.jobs import END, STEP, JobEnd, Jobs, LogReader, step_line
from runner.paths import FileName
from runner.records import FORMAT, Record, StepJob, decode, encode

MODULE = "runner.aws.processing.queue_job"
LINGER_S = 120  # that a job waits for an order
EVERY_LOOK = 24  # of the ticks that find no line of the step, one looks for its result
ORDER = "RunnerOrder"  # key beside the job's name in the request.json of a step that was ordered


class StepOrder(Record, frozen=True, kw_only=True):
    """What a job executes next; without `step`, it ends."""

    format: int = FORMAT
    step: FileName | None = None
    attempt: str = ""  # the key that its job.json and place.json lie below
    code: str = ""  # addresses
    inputs: dict[FileName, str] = {}


@dataclass
class JobQueue:
    """A job that executes steps as they are ordered. `number` is that of the next order, `step` its first step."""

    job: str
    at: str  # the key that the orders lie below, ending in `/`
    step: str
    limit: dict[str, Any]  # StoppingCondition of the job
    number: int = 1
    on_line: Callable[[str], None] = print
    log: LogReader | None = None  # continued where the step before ended

    def request(self, order: StepOrder, name: str) -> dict[str, Any]:
        """request.json of a step that is ordered here; `name` is that of the job which it would have had."""
        place = {"for": name, "at": self.at, "number": self.number, "first": self.step, "order": to_builtins(order)}
        return {"ProcessingJobName": self.job, "StoppingCondition": self.limit, ORDER: place}

    def end(self, bucket: Bucket) -> None:
        put_order(bucket, self.at, self.number, StepOrder())


def put_order(bucket: Bucket, at: str, number: int, order: StepOrder) -> bool:
    """Whether the number has this order, put there now or, if a reply was lost, before."""
    key, content = f"{at}{number}.json", encode(order)
    return bucket.put(key, content, once=True) or bucket.get(key) == content


def read_order(bucket: Bucket, at: str, number: int) -> StepOrder | None:
    key = f"{at}{number}.json"
    content = bucket.get(key)
    return None if content is None else decode(StepOrder, content, where=bucket.address(key))


def follow(
    queue: JobQueue,
    jobs: Jobs,
    job: StepJob,
    *,
    detach: threading.Event,
    on_line: Callable[[str], None],
    is_done: Callable[[], bool],
) -> JobEnd | None:
    """Wait for the end of the step, or of its job; None once `detach` is set, while both keep running.

    As `Jobs.follow`, one call each `poll_s`, and one for the result when the log says that the step has ended, or when
    the log cannot be read.
    """
    reader = _StepLog(job, on_line, own=job.step == queue.step)
    log = queue.log = queue.log or jobs.log(queue.job, lambda line: queue.on_line(line))
    queue.on_line = reader.line

    def step_ended(tick: int, described: bool) -> bool:
        unseen = described and log.expected and not reader.began and (not log.readable or tick % EVERY_LOOK == 0)
        look = reader.ended or unseen
        # other steps follow, or the step has failed and the job will fail too
        log.ended = reader.ended = False
        return look and is_done()

    return jobs.follow(queue.job, detach=detach, log=log, part_ended=step_ended)


class _StepLog:
    """The lines of one step among those of its job; lines before the first step's belong to the first step."""

    def __init__(self, job: StepJob, on_line: Callable[[str], None], *, own: bool) -> None:
        self.mark, self.on_line, self.open = step_line(job.step, job.attempt), on_line, own
        self.began = self.ended = False

    def line(self, line: str) -> None:
        if line.startswith(STEP):
            self.open = self.began = line == self.mark
            return
        if self.open:
            self.on_line(line)
            self.ended = self.ended or line.startswith(END)
            self.open = not self.ended
