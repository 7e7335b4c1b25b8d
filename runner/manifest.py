"""run.json: everything that is true of one run, as frozen records."""

from __future__ import annotations

from typing import Literal

from runner.records import (
    FORMAT,
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
    name: str
    notebook: str
    status: StepStatus | None = None  # None until it starts
    why: str = ""  # why it ran, or why not
    snapshot: dict[str, str] = {}  # sha256 of notebook.ipynb and each of modules/
    parameters: dict[str, Value] = {}  # as resolved; the cell's defaults stay in the cell
    from_run: str | None = None  # the run it was taken from, when cached
    attempt: int = 0
    key: StepKey | None = None
    job: StepJob | None = None
    result: StepResult | None = None


class Champion(Record, frozen=True, kw_only=True):
    """The approved version as it was pinned when the run started."""

    name: str
    version: int
    run: str
    sha256: str


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


class ModelVersionRef(Record, frozen=True, kw_only=True):
    name: str
    version: int
    status: Literal["pending", "approved", "rejected"]


class RunManifest(Record, frozen=True, kw_only=True):
    """run.json: the only truth about a run. Replaced atomically; all paths relative to the run's folder."""

    format: int = FORMAT
    run: str
    pipeline_file: str
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
    status: RunStatus
    steps: list[StepState]
    sources: dict[str, InputFact] = {}  # "step.input" -> what came from outside the run, as pinned when it started
    champion: Champion | None = None
    metrics: dict[str, Metric] = {}  # "step.name"
    problems: dict[str, str] = {}
    verdict: Verdict | None = None
    model_version: ModelVersionRef | None = None
    git: GitState | None = None
    environment: Environment
    runner_version: str
