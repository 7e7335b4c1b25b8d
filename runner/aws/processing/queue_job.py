"""Inside a processing job that several steps share: its own step first, then each step as it is ordered.

A step that fails is the last one, and the job fails with it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.aws.processing import inside
from runner.aws.processing.jobs import step_line
from runner.aws.processing.request import JobPlace
from runner.aws.processing.step_queue import LINGER_S, StepOrder, put_order, read_order
from runner.aws.session import Session
from runner.records import StepJob, decode
from runner.step.execute import JOB

LOOK_S = 0.5  # between two looks for an order; a thousand of them are less than a cent


def main() -> int:
    stop = inside.stop_event()
    job, place, session = inside.own_job()
    bucket, orders, number = Bucket(session, place.bucket), f"{place.key}queue/", 0
    since, code, paths = float(os.environ["RUNNER_BEGAN"]), None, inside.service_inputs(place)
    executed: dict[str, str] = {}  # address of a step's results -> the step
    inside.log(step_line(job.step, job.attempt))
    while True:
        failed = inside.execute_and_send(job, place, session, stop, paths=paths, code=code, since=since)
        executed[f"s3://{place.bucket}/{place.key}"] = job.step
        inside.keep_outputs(job.step)
        if failed or stop.is_set():
            return failed
        number, since = number + 1, time.time()
        order = next_order(bucket, orders, number, stop, LINGER_S)
        if order.step is None:
            return 0
        job = decode(StepJob, inside.read_object(bucket, f"{order.attempt}job/{JOB}"), where=order.attempt)
        place = decode(JobPlace, inside.read_object(bucket, f"{order.attempt}job/place.json"), where=order.attempt)
        inside.log(step_line(job.step, job.attempt))
        code = inside.fetch(order.code, inside.work() / "code" / f"{job.step}-{job.attempt}", session)
        paths = {name: _input(name, address, job, executed, session) for name, address in order.inputs.items()}


def next_order(bucket: Bucket, at: str, number: int, stop: threading.Event, linger_s: float) -> StepOrder:
    """The order of this number; the end, where none comes."""
    until = time.monotonic() + linger_s
    while not stop.wait(LOOK_S):
        order = read_order(bucket, at, number)
        if order is not None:
            return order
        if time.monotonic() > until and put_order(bucket, at, number, StepOrder()):
            inside.log(f"runner: no step was ordered for {linger_s:.0f} s")
            break
    return StepOrder()


def _input(name: str, address: str, job: StepJob, executed: dict[str, str], session: Session) -> Path:
    """The input on this machine: the output of a step before, or downloaded now."""
    for results, step in executed.items():
        outputs = inside.kept_outputs(step)
        if address.startswith(results) and outputs is not None:
            return outputs / address.removeprefix(results)
    return inside.fetch(address, inside.work() / "arrived" / f"{job.step}-{job.attempt}" / name, session)


if __name__ == "__main__":
    inside.exit_with(main)
