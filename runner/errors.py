"""The errors a caller can tell apart, each with the exit code of its kind.

RunnerError                  1  internal
├── UsageError               2  command line, configuration, parameters
│   └── PipelineError        2  pipeline.toml or a notebook of it cannot be run as written
├── StepFailed               3  a step raised, stopped early, or left an output missing
├── AnswerIsNo               4  the gate said no
├── GateUndecided            5  the gate is inconclusive or in error
├── KernelDied               6  the kernel died or ran out of time
├── RemoteError              7  a remote service failed or refused
├── Detached               130  a job that was started elsewhere keeps running
└── Refused                  8  unapproved, tampered, already decided, locked
    ├── Tampered             8  bytes differ from their recorded hash, or are not a record
    ├── NewerStore           8  written by a newer version of this program
    └── RegistryUnusable     8  the registry file is corrupt, or stayed locked
"""

from __future__ import annotations


class RunnerError(Exception):
    """What happened, where, and what to do about it, as one message."""

    exit_code = 1
    headline = "internal error"


class UsageError(RunnerError):
    exit_code = 2
    headline = "cannot run as asked"


class PipelineError(UsageError):
    """One or more findings in pipeline.toml and its notebooks; `findings` has a sentence for each."""

    headline = "the pipeline cannot run as written"

    def __init__(self, *findings: str) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


class StepFailed(RunnerError):
    exit_code = 3
    headline = "a step failed"


class AnswerIsNo(RunnerError):
    exit_code = 4
    headline = "the answer is no"


class GateUndecided(RunnerError):
    exit_code = 5
    headline = "the gate could not decide"


class KernelDied(RunnerError):
    exit_code = 6
    headline = "the kernel died or ran out of time"


class RemoteError(RunnerError):
    exit_code = 7
    headline = "a remote service failed"


class Detached(RunnerError):
    exit_code = 130
    headline = "detached"

    def __init__(self, message: str, *, run: str, goes_on: bool = True) -> None:
        """`goes_on`: whether something keeps running elsewhere, or had not been started yet."""
        super().__init__(message)
        self.run, self.goes_on = run, goes_on


class Refused(RunnerError):
    exit_code = 8
    headline = "refused"


class Tampered(Refused):
    headline = "altered or damaged"


class NewerStore(Refused):
    headline = "written by a newer version"


class RegistryUnusable(Refused):
    headline = "the registry cannot be used"


def counted(number: int, thing: str) -> str:
    """As a sentence says it: "1 row", "2,000 rows"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"
