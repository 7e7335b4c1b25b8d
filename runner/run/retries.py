"""How many further tries a step has, by how it ended."""

from __future__ import annotations

from runner.pipeline.plan import PlannedStep
from runner.records import StepError

# errors that a second try can cure; a notebook that stopped early or wrote no output will do so again
RETRIED = ("exception", "kernel died", "cluster lost", "timeout")
# jobs that the service ended: tried again whatever `retries` says, as the step did not cause it
TRANSIENT, TRANSIENT_RETRIES = ("InternalServerError", "CapacityError"), 2
# the error's name where a step was stopped before this process started: resuming its run executes it
STOPPED_BEFORE = "StoppedBefore"


def retries(error: StepError | None, step: PlannedStep) -> int:
    """How many further tries a step that ended so may have."""
    if error is None:
        return 0
    if error.ename == STOPPED_BEFORE:
        return 1
    if error.kind == "remote" and error.ename in TRANSIENT:
        return max(step.spec.retries, TRANSIENT_RETRIES)
    return step.spec.retries if error.kind in RETRIED else 0
