"""run.json: everything that is true of one run, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from runner.errors import UsageError
from runner.paths import AnyPath, FileName, RelativePath, Sha256
from runner.records import (
    FORMAT,
    USUAL_KERNEL,
    InputFact,
    Key,
    KeyResult,
    Metric,
    Pipeline,
    Record,
    RunStatus,
    StepJob,
    StepKey,
    StepResult,
    StepStatus,
    Value,
    Verdict,
)


class StepState(Record, frozen=True, kw_only=True):
    name: FileName
    notebook: AnyPath
    status: StepStatus | None = None  # None until it starts
    why: str = ""  # why it ran, or why not
    snapshot: dict[RelativePath, Sha256] = {}  # sha256 of notebook.ipynb and each of modules/
    parameters: dict[str, Value] = {}  # as resolved; the cell's defaults stay in the cell
    registers: bool = False  # calls runner.model.register, as far as its code says
    from_run: FileName | None = None  # the run whose result was reused, when cached
    attempt: int = 0
    key: StepKey | None = None
    job: StepJob | None = None
    result: StepResult | None = None

    @property
    def complete(self) -> bool:
        """Whether the step has succeeded, in this run or in the one whose result was reused."""
        return self.status in ("succeeded", "cached")


class KeyState(Record, frozen=True, kw_only=True):
    """state.json of one key of a mapped step, written when it has ended."""

    format: int = FORMAT
    key: Key
    folder: FileName
    step_key: Sha256  # hash of the step key with this key in it
    from_run: FileName | None = None  # the run whose result was reused
    job: StepJob
    result: StepResult


class Champion(Record, frozen=True, kw_only=True):
    """The approved version as it was pinned when the run started."""

    name: FileName
    version: int
    run: FileName
    sha256: Sha256


class GitState(Record, frozen=True, kw_only=True):
    commit: str
    branch: str | None
    modified: dict[str, list[str]]  # notebook -> code cells that differ from the commit, as "[7]"
    dirty: bool  # anything else tracked differs


class Environment(Record, frozen=True, kw_only=True):
    python: str
    implementation: str
    platform: str
    cpus: int
    packages: dict[str, str]
    variables: dict[str, str] = {}  # by allow-list


class ModelVersionRef(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The version at the end of the run. `runner.run.registration` adds its status now, which is not stored."""

    name: FileName
    version: int
    status: Literal["pending", "approved", "rejected", "unknown"]
    status_at_end: Literal["pending", "approved", "rejected"] | None = None
    decided_by: str | None = None
    decided: str | None = None  # UTC
    unknown: str = ""  # why the status now is not known

    @property
    def label(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def words(self) -> str:
        """ "pending", or "pending when it ended; now approved by ana@desk on 2026-11-22 10:16 UTC"."""
        if self.status_at_end in (None, self.status):
            return self.status
        when = f"on {self.decided[:16].replace('T', ' ')} UTC" if self.decided else ""
        now = self.unknown or f"now {self.status} by {self.decided_by or 'somebody'} {when}".rstrip()
        return f"{self.status_at_end} when it ended; {now}"


class Imported(Record, frozen=True, kw_only=True):
    """Who imported a run from elsewhere, and when. What the run says of itself is not checked here."""

    who: str
    identity: str = ""  # the ARN, where AWS keeps the registry
    at: str  # UTC


class RunSettings(Record, frozen=True, kw_only=True):
    """How to carry out the run, by the options of its command; `resume` uses the same."""

    jobs: int = 1
    kernel: str = USUAL_KERNEL
    force: bool = False  # reuse no results of earlier runs
    report: bool = True  # write the report's pages


class RunManifest(Record, frozen=True, kw_only=True):
    """run.json: the only truth about a run. Replaced atomically; all paths relative to the run's folder."""

    format: int = FORMAT
    run: FileName
    pipeline_file: FileName
    pipeline: Pipeline
    targets: list[str] = []  # the steps asked for; empty for all
    overrides: dict[str, str] = {}  # -p, as given
    profile: str | None = None
    note: str = ""
    tags: list[str] = []
    started_by: str
    identity: str = ""  # the ARN of who started it, where AWS keeps the registry
    started: str
    ended: str | None = None
    on: str = "local"
    register: bool = True
    chosen: RunSettings = RunSettings()
    status: RunStatus
    steps: list[StepState]
    sources: dict[FileName, InputFact] = {}  # "step.input" -> what came from outside the run, as pinned when it started
    champion: Champion | None = None
    metrics: dict[str, Metric] = {}  # "step.name"
    problems: dict[str, str] = {}
    verdict: Verdict | None = None
    model_version: ModelVersionRef | None = None
    imported: Imported | None = None  # None where it ran in this project
    git: GitState | None = None
    environment: Environment
    runner_version: str

    def find_step(self, name: str) -> StepState | None:
        return next((state for state in self.steps if state.name == name), None)

    def step(self, name: str) -> StepState:
        """Raises UsageError where the run has no step of that name."""
        state = self.find_step(name)
        if state is None:
            raise UsageError(f"Run {self.run} has no step {name!r}; it has: {', '.join(s.name for s in self.steps)}.")
        return state

    def present_inputs(self) -> set[str]:
        """The inputs that steps were given, as "step.input", without those that were absent."""
        jobs = {state.name: state.job for state in self.steps if state.job is not None}
        return {f"{step}.{name}" for step, job in jobs.items() for name, fact in job.inputs.items() if fact.present}

    def keyed(self) -> dict[str, list[KeyResult]]:
        """The keys of each mapped step that has ended, by step."""
        results = {state.name: state.result for state in self.steps if state.result is not None}
        return {name: result.mapped.keys for name, result in results.items() if result.mapped is not None}

    def all_metrics(self) -> dict[str, Metric]:
        """The metrics with those of each key of mapped steps, as "fit.error[north]"."""
        of_keys = {
            f"{step}.{name}[{line.key}]": metric
            for step, lines in self.keyed().items()
            for line in lines
            for name, metric in line.metrics.items()
        }
        return self.metrics | of_keys

    @property
    def why_not_judged(self) -> str:
        """Why a run that has succeeded has no verdict."""
        if not self.pipeline.gate:
            return f"{self.pipeline_file} has no [[gate]]"
        return "not all steps that the gate judges were run"


def recorded(results: Mapping[str, StepResult]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics and problems under the names that a manifest gives them, from the steps' results by name."""
    return (
        {f"{step}.{name}": metric for step, result in results.items() for name, metric in result.metrics.items()},
        {f"{step}.{name}": problem for step, result in results.items() for name, problem in result.problems.items()},
    )


def failures_first(keys: Sequence[KeyResult]) -> list[KeyResult]:
    """The keys of a mapped step for a reader: those that failed, those that did not run, then the others in order."""
    return sorted(keys, key=lambda key: (key.complete, key.status == "skipped"))
