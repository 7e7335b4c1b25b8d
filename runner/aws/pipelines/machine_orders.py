"""The machines of a Pipeline's job beyond the first: they are told by it what to work on, and when to end.

    <execution>/<step>/machines/<job>/1.json, 2.json, …     an attempt at the step each; the last one ends the machines

A step's values and the addresses of its inputs are known in the job only, and so is whether it is executed at all, as
an earlier execution may have its result. Each number is put once. The job's name is a part of the place, because a
step that is executed again in its execution has the same folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from runner.aws.bucket import Bucket
from runner.aws.pipelines.execution_job import ExecutionJob
from runner.aws.processing import inside
from runner.aws.processing._run import TERMINATED
from runner.aws.processing.request import INPUT, JobPlace
from runner.aws.session import Session
from runner.paths import FileName
from runner.records import FORMAT, Record, StepJob, decode, encode

LOOK_S = 0.5  # between two looks for an order


class MachineOrder(Record, frozen=True, kw_only=True):
    """What a machine adds its workers to; without `job` it ends. `inputs` are addresses of those read by path."""

    format: int = FORMAT
    job: StepJob | None = None
    place: JobPlace | None = None
    inputs: dict[FileName, str] = {}


class OtherMachines:
    """The other machines of this job, as the first one has them; does nothing where there are none."""

    def __init__(self, execution_job: ExecutionJob, session: Session) -> None:
        self._any = execution_job.machines > 1
        self._bucket, self._at = _orders(execution_job, session)

    def order(self, attempt: int, job: StepJob, place: JobPlace, inputs: Mapping[str, str]) -> None:
        """Have them work on this attempt, from 1. Idempotent."""
        self._put(attempt, MachineOrder(job=job, place=place, inputs=dict(inputs)))

    def end(self, attempts: int) -> None:
        """End them after so many attempts. Idempotent."""
        self._put(attempts + 1, MachineOrder())

    def _put(self, number: int, order: MachineOrder) -> None:
        if self._any:
            self._bucket.put(f"{self._at}{number}.json", encode(order), once=True)


def add_workers(execution_job: ExecutionJob, session: Session, start_again: Callable[[], None]) -> int:
    """Be another machine of the job: its workers in each attempt, until it is told to end; the exit code.

    `start_again` starts this program with the packages that workers need, where it runs without.
    """
    stop = inside.stop_event()
    bucket, at = _orders(execution_job, session)
    number, paths = 1, dict[str, Path]()
    while (order := _next(bucket, f"{at}{number}.json", stop)) is not None:
        if order.job is None or order.place is None:
            return 0
        if os.environ["RUNNER_ENVIRONMENT"] == "none":
            start_again()
        paths = paths or {name: _input(name, address, execution_job, session) for name, address in order.inputs.items()}
        if code := inside.add_workers(order.job, order.place, session, stop, paths=paths):
            return code
        number += 1
    return TERMINATED


def _orders(execution_job: ExecutionJob, session: Session) -> tuple[Bucket, str]:
    """The bucket, and the key below which the orders of this job lie."""
    return execution_job.folder(session), f"machines/{execution_job.name}/"


def _next(bucket: Bucket, key: str, stop: threading.Event) -> MachineOrder | None:
    """The order, once it is there; None where the job is told to end before."""
    while not stop.is_set():
        if (content := bucket.get(key)) is not None:
            return decode(MachineOrder, content, where=bucket.address(key))
        stop.wait(LOOK_S)
    return None


def _input(name: str, address: str, execution_job: ExecutionJob, session: Session) -> Path:
    """The input on this machine: put there by the service, or downloaded now."""
    if f"in/{name}" in execution_job.inputs:
        folder = Path(INPUT) / "in" / name
        return folder if address.endswith("/") else folder / PurePosixPath(address).name
    return inside.fetch(address, inside.work() / "arrived" / name, session)
