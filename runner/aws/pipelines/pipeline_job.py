"""Inside a job of a SageMaker Pipeline: one step or some, one after the other, or the gate alone.

A job knows its execution from the address of its output, which is not part of the service's cache key. The pins of
that execution lie beside the output, put there once by the first of the jobs that wait for no other. The arguments of a
job identify its inputs, so that a cached job has equal results. The service cannot know that of a job that makes the
pins; such a job looks for an earlier result itself, before it has any package.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.pipelines.execution_job import OWN, ExecutionJob, own_description
from runner.aws.pipelines.job_registration import register_unasked
from runner.aws.pipelines.machine_orders import add_workers
from runner.aws.pipelines.pin import pins
from runner.aws.pipelines.pushed import LEFT, PIN, PINS, PUSHED, RULES, STEPS, GateRules, JobReport, Pins, Pushed
from runner.aws.pipelines.step_sequence import (
    StepSequence,
    folders_before,
    gate_report,
    jobs_of,
    results_before,
    start_again,
)
from runner.aws.processing import inside
from runner.aws.processing.request import INPUT
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.errors import RemoteError
from runner.records import decode, encode, read
from runner.run.orchestrate import VERDICT_FILE


def main() -> int:
    job = own_description()
    session = Session(job.region, kms_key=job.kms_key)
    if job.machines > 1:
        machines = inside.named_machines(job.machines)
        if machines.own != machines.hosts[0]:
            return add_workers(job, session, start_again)
    if sys.argv[1] == STEPS:
        return StepSequence(job, session, execution_pins(job, session)).run(sys.argv[2:])
    gate, results = read(GateRules, OWN / RULES), results_before(session)
    report = gate_report(results, gate.rules)
    job.folder(session).put(VERDICT_FILE, encode(report.verdict))
    job.folder(session).put(LEFT, encode(JobReport(outcome=report.verdict.outcome, reasons=report.reasons)))
    if gate.model is not None:
        made_by, jobs = execution_pins(job, session), jobs_of(folders_before(), session)
        bucket = Bucket(session, job.bucket, settings(made_by.pushed.pipeline).prefix)
        register_unasked(results, jobs, job, made_by, bucket, report.verdict)
    return 0


def execution_pins(job: ExecutionJob, session: Session) -> Pins:
    """The pins of the execution; made where this job may make them and no other was first."""
    bucket, key = Bucket(session, job.bucket), f"{split(job.execution)[1]}{PIN}/{PINS}"
    content = bucket.get(key)
    if content is None and "RUNNER_EXECUTION" in os.environ:
        content = encode(_new_pins(job, session))
        if not bucket.put(key, content, once=True):  # another job was first, or the reply was lost
            content = bucket.get(key)
    if content is None:
        raise RemoteError(
            f"There is no {bucket.address(key)}. Start the whole Pipeline, whose first job puts it there."
        )
    return decode(Pins, content, where=bucket.address(key))


def _new_pins(job: ExecutionJob, session: Session) -> Pins:
    pushed = read(Pushed, Path(INPUT) / "pushed" / PUSHED)
    keys = [parameter.key for parameter in pushed.parameters]
    new = pins(
        pushed,
        {key: os.environ[f"RUNNER_VALUE_{number}"] for number, key in enumerate(keys, 1)},
        Bucket(session, job.bucket, settings(pushed.pipeline).prefix),
        execution=os.environ["RUNNER_EXECUTION"],
        started=os.environ["RUNNER_STARTED"],
    )
    if os.environ["RUNNER_ENVIRONMENT"] != "none":
        return new
    # the steps run with the lock's packages, of which this job has none yet
    packages = json.loads((Path(INPUT) / "bundle" / "environment.json").read_bytes())["pins"]
    return msgspec.structs.replace(new, environment=msgspec.structs.replace(new.environment, packages=packages))


if __name__ == "__main__":
    inside.exit_with(main)
