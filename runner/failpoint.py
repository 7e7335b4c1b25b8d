"""Places where tests can kill the process, as by kill -9, to show that nothing is lost there.

RUNNER_FAILPOINT=NAME in the environment kills the process when it reaches NAME; RUNNER_FAILPOINT=NAME:STEP only for
that step.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "RUNNER_FAILPOINT"
NAMES = (
    "run folder made",
    "snapshot taken",
    "run begun",
    "step about to run",
    "notebook half saved",
    "notebook saved",
    "result written",
    "object half stored",
    "step sealed",
    "step recorded",
    "verdict written",
    "before registering",
    "registered",
    "version recorded",
    "before the end",
)
# of a mapped step
MAP_NAMES = ("key ended",)
# of a search, with the trial's number
SEARCH_NAMES = ("trial about to run", "trial ended", "trial recorded")
# of a step in SageMaker
JOB_NAMES = ("job about to be created", "job created", "job ended")
# of a registration or a decision in SageMaker's registry
SAGEMAKER_NAMES = (
    "group made",
    "facts written",
    "model uploaded",
    "package created",
    "registration recorded",
    "decision recorded",
    "decision carried out",
)
# of `init`
INIT_NAMES = ("project half written", "project written")
# of `gc`
GC_NAMES = ("removal recorded", "run moved away", "objects removed")


def reach(name: str, step: str = "") -> None:
    """Kill this process if the environment asks for it."""
    if os.environ.get(VARIABLE) in (name, f"{name}:{step}"):
        os.kill(os.getpid(), signal.SIGKILL)
