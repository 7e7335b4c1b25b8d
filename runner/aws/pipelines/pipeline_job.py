"""Inside a job of a SageMaker Pipeline: one step or some, one after the other, or the gate alone.

A job knows its execution from where its output is to go, which is not part of what the service caches it by; the pins of
that execution lie beside it, put there once by whichever of the jobs that wait for no other came first. What a job is
started with identifies its inputs, so that a cached one is one that would come to the same. The service cannot know that
of a job that makes the pins; it looks for an earlier result itself, before it has any package.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec

from runner.aws.bucket import Bucket
from runner.aws.pipelines.execution_job import OWN, ExecutionJob, here
from runner.aws.pipelines.pin import pins
from runner.aws.pipelines.pushed import LEFT, PIN, PINS, PUSHED, RULES, STEPS, GateRules, JobReport, Pins, Pushed
from runner.aws.pipelines.step_sequence import StepSequence, judged, results_before
from runner.aws.processing import inside
from runner.aws.processing.request import INPUT
from runner.aws.s3 import split
from runner.aws.session import Session
from runner.aws.settings import settings
from runner.errors import RemoteError, RunnerError
from runner.records import decode, encode, read
from runner.run.orchestrate import VERDICT_FILE


def main() -> int:
    try:
        found = here()
        session = Session(found.region, kms_key=found.kms_key)
        if sys.argv[1] == STEPS:
            return StepSequence(found, session, pinned(found, session)).run(sys.argv[2:])
        return _gate(found, session)
    except RunnerError as error:
        return inside.say_failure(error)


def pinned(found: ExecutionJob, session: Session) -> Pins:
    """What the execution is held to; made where no other job was first and this one may."""
    whole, key = Bucket(session, found.bucket), f"{split(found.execution)[1]}{PIN}/{PINS}"
    content = whole.get(key)
    if content is None and "RUNNER_EXECUTION" in os.environ:
        content = encode(_pins(found, session))
        if not whole.put(key, content, once=True):  # another job was first, or the reply was lost
            content = whole.get(key)
    if content is None:
        raise RemoteError(f"There is no {whole.address(key)}. Start the whole Pipeline, whose first job puts it there.")
    return decode(Pins, content, where=whole.address(key))


def _pins(found: ExecutionJob, session: Session) -> Pins:
    pushed = read(Pushed, Path(INPUT) / "pushed" / PUSHED)
    values = {
        parameter.key: os.environ[f"RUNNER_VALUE_{number}"] for number, parameter in enumerate(pushed.parameters, 1)
    }
    made = pins(
        pushed,
        values,
        Bucket(session, found.bucket, settings(pushed.pipeline).prefix),
        execution=os.environ["RUNNER_EXECUTION"],
        started=os.environ["RUNNER_STARTED"],
    )
    if os.environ["RUNNER_ENVIRONMENT"] != "none":
        return made
    # the steps run with the lock's packages, of which this job has none yet
    packages = json.loads((Path(INPUT) / "bundle" / "environment.json").read_bytes())["pins"]
    return msgspec.structs.replace(made, environment=msgspec.structs.replace(made.environment, packages=packages))


def _gate(found: ExecutionJob, session: Session) -> int:
    results = results_before(session)
    left = judged(dict(results), read(GateRules, OWN / RULES).rules)
    found.folder(session).put(VERDICT_FILE, encode(left.verdict))
    found.folder(session).put(LEFT, encode(JobReport(outcome=left.verdict.outcome, reasons=left.reasons)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
