"""Inside a processing job that several steps share: the first as in a job of its own, then each as it is ordered.

A step that fails is the last one, and the job fails with it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.aws.processing import inside
from runner.aws.processing.arrivals import fetch
from runner.aws.processing.jobs import step_line
from runner.aws.processing.request import JobPlace
from runner.aws.processing.step_queue import LINGER_S, StepOrder, put_order, read_order
from runner.aws.session import Session
from runner.errors import RemoteError, RunnerError
from runner.escape import terminal
from runner.records import StepJob, decode
from runner.step.execute import JOB

LOOK_S = 0.5  # between two looks for an order; a thousand of them are less than a cent


def main() -> int:
    try:
        return _main()
    except RunnerError as error:
        return inside.say_failure(error)


def _main() -> int:
    stop = inside.told_to_stop()
    job, place, session = inside.given()
    since = float(os.environ["RUNNER_BEGAN"])
    _say(job)
    code = inside.carry_out(job, place, session, stop, arrived=inside.by_service(place), since=since)
    bucket, at, number = Bucket(session, place.bucket), f"{place.key}queue/", 0
    made = {f"s3://{place.bucket}/{place.key}": job.step}  # address of the step's results -> the step
    inside.keep_outputs(job.step)
    while code == 0 and not stop.is_set():
        number, since = number + 1, time.time()
        order = next_order(bucket, at, number, stop, LINGER_S)
        if order.step is None:
            break
        job = decode(StepJob, _content(bucket, f"{order.attempt}job/{JOB}"), where=order.attempt)
        place = decode(JobPlace, _content(bucket, f"{order.attempt}job/place.json"), where=order.attempt)
        _say(job)
        folder = inside.work() / "code" / f"{job.step}-{job.attempt}"
        fetch(order.code, folder, session)
        arrived = {name: _arrived(name, address, job, made, session) for name, address in order.inputs.items()}
        code = inside.carry_out(job, place, session, stop, arrived=arrived, code=folder, since=since)
        made[f"s3://{place.bucket}/{place.key}"] = job.step
        inside.keep_outputs(job.step)
    return code


def next_order(bucket: Bucket, at: str, number: int, stop: threading.Event, linger_s: float) -> StepOrder:
    """The order of this number; the end, where none comes."""
    until = time.monotonic() + linger_s
    while not stop.wait(LOOK_S):
        order = read_order(bucket, at, number)
        if order is not None:
            return order
        if time.monotonic() > until and put_order(bucket, at, number, StepOrder()):
            sys.stdout.write(terminal(f"runner: no step was ordered for {linger_s:.0f} s") + "\n")
            break
    return StepOrder()


def _arrived(name: str, address: str, job: StepJob, made: dict[str, str], session: Session) -> Path:
    """The input on this machine: where a step before has made it, or brought now."""
    for results, step in made.items():
        kept = inside.kept_outputs(step)
        if address.startswith(results) and kept is not None:
            return kept / address.removeprefix(results)
    return fetch(address, inside.work() / "arrived" / f"{job.step}-{job.attempt}" / name, session)


def _content(bucket: Bucket, key: str) -> bytes:
    content = bucket.get(key)
    if content is None:
        raise RemoteError(f"There is no {bucket.address(key)}, which the job was ordered to read.")
    return content


def _say(job: StepJob) -> None:
    sys.stdout.write(terminal(step_line(job.step, job.attempt)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
