"""run.json: everything that is true of one run, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from runner.paths import AnyPath, FileName, RelativePath, Sha256
from runner.records import (
    FORMAT,
    USUAL_KERNEL,
    InputFact,
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
    from_run: FileName | None = None  # the run it was taken from, when cached
    attempt: int = 0
    key: StepKey | None = None
    job: StepJob | None = None
    result: StepResult | None = None


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
    """The version as the run left it; as it is now where somebody looks (`runner.run.current_version`), which is not written."""

    name: FileName
    version: int
    status: Literal["pending", "approved", "rejected", "unknown"]
    status_at_end: Literal["pending", "approved", "rejected"] | None = None
    decided_by: str | None = None
    decided: str | None = None  # UTC
    unknown: str = ""  # why it is not known what the version is now

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
    """Who took a run in that ran elsewhere, and when; what the run says of itself is that place's word."""

    who: str
    identity: str = ""  # the ARN, where AWS keeps the registry
    at: str  # UTC


class Chosen(Record, frozen=True, kw_only=True):
    """How the run was to be carried out, by the options of its command; `resume` goes on so."""

    jobs: int = 1
    kernel: str = USUAL_KERNEL
    force: bool = False  # take nothing from earlier runs
    report: bool = True  # write its pages


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
    chosen: Chosen = Chosen()
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

    @property
    def why_not_judged(self) -> str:
        """Why a run that has succeeded has no verdict."""
        if not self.pipeline.gate:
            return f"{self.pipeline_file} has no [[gate]]"
        return "not all steps that the gate judges were run"


def recorded(results: Mapping[str, StepResult]) -> tuple[dict[str, Metric], dict[str, str]]:
    """Metrics and problems as a manifest has them, of the results of steps by name."""
    return (
        {f"{step}.{name}": metric for step, result in results.items() for name, metric in result.metrics.items()},
        {f"{step}.{name}": said for step, result in results.items() for name, said in result.problems.items()},
    )
