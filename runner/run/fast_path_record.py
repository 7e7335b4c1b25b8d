"""What a run keeps for the fast path: all it depended on, for the next run of the same command line.

Everything is read once more. Where something has changed already, because somebody edited, committed or approved during
the run, nothing is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner import failpoint
from runner.content import file_fact
from runner.errors import RunnerError
from runner.manifest import ModelVersionRef, RunManifest, StepState
from runner.model.versions import Registry
from runner.notebook.source import module_places, project_modules
from runner.pipeline.file import APPROVED, AT_TARGET, is_address
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import StepKey, StepResult, encode
from runner.run import editable, fast_path, keys, provenance
from runner.run.cache import Cache, Miss
from runner.run.checkout import git_fingerprint
from runner.run.fast_path import Changed, Repeatable
from runner.run.folder import JOB, MODULES, PIPELINE, RESULT, SOURCE, STEPS
from runner.run.machine import ACCOUNT
from runner.run.orchestrate import VERDICT_FILE
from runner.run.ports import World
from runner.run.store import Store, facts_of

REPORT, PAGE = "report.html", "executed.html"


def template(manifest: RunManifest) -> RunManifest:
    """The manifest of a run that reuses everything of this one, with placeholders for what differs."""
    steps = [
        state
        if state.status != "succeeded"
        else msgspec.structs.replace(state, status="cached", from_run=manifest.run, why="", attempt=0)
        for state in manifest.steps
    ]
    return msgspec.structs.replace(
        manifest, run=fast_path.RUN, started=fast_path.STARTED, ended=fast_path.ENDED, steps=steps
    )


def page_of(store: Store, run: str) -> Path:
    """The report of the run's repetition, with placeholders."""
    return store.root / fast_path.PAGES / f"{run}.html"


@dataclass(frozen=True)
class Invocation:
    """A command, and what its repetition prints, with placeholders. `git` is `git_fingerprint` from before the run."""

    arguments: Sequence[str]
    variables: Sequence[str]  # the environment variables that its options read
    git: dict[str, object] | None
    out: str
    err: str
    code: int
    pages: bool


def keep(plan: Plan, manifest: RunManifest, world: World, command: Invocation) -> None:
    """Keep all that the run depended on, and what the next one consists of.

    Nothing is kept of a failed run, or of one that asked a service for its sources or a registry.
    """
    store = world.store
    page = page_of(store, manifest.run)
    local = plan.pipeline.model is None or plan.pipeline.model.registry == "local"
    if manifest.status == "succeeded" and local:
        with contextlib.suppress(Changed, RunnerError, OSError):
            recorder = _Recorder(plan, manifest, store, command, page if command.pages else None)
            recorder.project()
            recorder.store()
            recorder.registry(world.registry)
            if command.git is None or command.git != git_fingerprint(str(plan.root)):
                raise Changed(".git")
            if provenance.environment() != manifest.environment:
                raise Changed("environment")
            names = (*provenance.VARIABLES, *ACCOUNT, *command.variables, failpoint.VARIABLE)
            secret = [variable for step in plan.steps for variable in step.secrets.values()]
            repeatable = recorder.repeatable
            repeatable.environment(dict.fromkeys(names), present=dict.fromkeys(secret), git=command.git)
            fast_path.keep(str(store.root), command.arguments, repeatable)
            return
    page.unlink(missing_ok=True)


class _Recorder:
    """Notes the dependencies of one run, and the folder of the next."""

    def __init__(
        self, plan: Plan, manifest: RunManifest, store: Store, command: Invocation, report: Path | None
    ) -> None:
        self.plan, self.manifest, self.runs, self.report = plan, manifest, store, report
        self.cache = Cache(store, plan.root)
        text = encode(template(manifest)).decode()
        self.repeatable = Repeatable(manifest=text, out=command.out, err=command.err, code=command.code)

    def project(self) -> None:
        """The pipeline file, notebooks, modules and sources, each as the run has it."""
        own = self.runs.folder(self.manifest.run)
        self._file(self.plan.file, file_fact(own / PIPELINE).sha256)
        self.repeatable.link(PIPELINE, str(own / PIPELINE))
        for step in self.plan.steps:
            state = self.manifest.step(step.name)
            self._file(step.notebook.path, state.snapshot[SOURCE])
            if project_modules(step.notebook) != step.modules:
                raise Changed(step.name)
            for place in module_places(step.notebook):
                self._file(place, self._snapshot(step, place))
            index = self.cache.packages_file
            for name, written in keys.written(step, index_file=index).items():
                for place in editable.candidates(name):
                    self._file(place, fast_path.ANY if place.is_file() else None)
                if written is not None:
                    self.repeatable.code(str(written))
            if state.key and keys.packages_of(step, index_file=index).items() - state.key.packages.items():
                raise Changed(step.name)
            if not step.skip:
                self._sources(step)

    def _snapshot(self, step: PlannedStep, place: Path) -> str | None:
        """The content of a module of the step; None for a place where there is none, or one that is not a module."""
        relative = place.relative_to(step.notebook.path.parent).as_posix()
        if relative in step.modules:
            return self.manifest.step(step.name).snapshot[f"{MODULES}/{relative}"]
        return None if not place.is_file() else fast_path.ANY

    def _sources(self, step: PlannedStep) -> None:
        for name, spec in step.spec.inputs.items():
            fact = self.manifest.sources.get(f"{step.name}.{name}")
            if fact is None or not spec.from_:
                continue  # of a step before, or nothing
            if is_address(spec.from_) or spec.from_.startswith(AT_TARGET):
                raise Changed(name)  # its service would have to be asked, or has been asked more since
            if spec.from_.startswith(APPROVED):
                for part in facts_of(fact.artifact).values() if fact.artifact else ():
                    self._file(self.runs.objects / part.sha256, part.sha256)
                continue
            path = self.plan.root / Path(spec.from_).expanduser()
            if fact.artifact is None:
                self._file(path, None)
                continue
            if fact.artifact.files is not None:
                raise Changed(name)  # a folder may get new files without any of the old ones changing
            self.repeatable.source(str(path), fact.source, fact.stamp)
            self._file(Path(fact.source), fact.artifact.sha256)
            if not fact.stamp:
                self.repeatable.sealed(str(self.runs.objects / fact.artifact.sha256), fact.artifact.sha256)

    def store(self) -> None:
        """Results and records, each as the ordinary path would find and link them."""
        run = self.runs.folder(self.manifest.run)
        for state, step in zip(self.manifest.steps, self.plan.steps, strict=True):
            inside = f"{STEPS}/{state.name}"
            self.repeatable.folder(f"{inside}/{MODULES}")
            for name in state.snapshot:
                self.repeatable.link(f"{inside}/{name}", str(run / inside / name))
            if state.complete and state.key is not None and state.result is not None:
                self._result(step, state, state.key, state.result)
        if self.manifest.verdict is not None:
            self.repeatable.link(VERDICT_FILE, str(run / VERDICT_FILE))
        if self.report is not None:
            self.repeatable.page(REPORT, str(self.report), "")

    def _result(self, step: PlannedStep, state: StepState, key: StepKey, result: StepResult) -> None:
        for path in self.cache.stands_on(step.name, key):
            self._file(path)
        match, executed_by = self.cache.find(step, key), state.from_run or self.manifest.run
        if isinstance(match, Miss) or (match.run, match.result) != (executed_by, result):
            raise Changed(state.name)
        inside = f"{STEPS}/{state.name}"
        own, earlier = (self.runs.folder(run) / inside for run in (self.manifest.run, executed_by))
        for artifact in result.artifacts():
            target = f"{inside}/{artifact.path.rstrip('/')}"
            if artifact.files is not None:
                self.repeatable.folder(target)
            for relative, fact in facts_of(artifact).items():
                name = f"{target}/{relative}" if relative else target
                self.repeatable.link(name, str(self.runs.objects / fact.sha256), fact.sha256)
        for name in (JOB, RESULT):
            self.repeatable.link(f"{inside}/{name}", str(own / name))
        if (earlier / "job.log").exists():
            self.repeatable.link(f"{inside}/job.log", str(earlier / "job.log"))
        if self.report is not None:
            self.repeatable.page(f"{inside}/{PAGE}", str(own / PAGE), self.manifest.run)
        elif (earlier / PAGE).exists():
            self.repeatable.link(f"{inside}/{PAGE}", str(earlier / PAGE))
        else:
            self._file(earlier / PAGE, None)

    def registry(self, registry: Registry) -> None:
        """The registry's file decides what is approved and registered; both must be as the run recorded them."""
        for name in ("registry.db", "registry.db-journal"):
            path = self.runs.root / name
            self._file(path, fast_path.ANY if path.exists() else None)
        for key, fact in self.manifest.sources.items():
            if fact.source.startswith(APPROVED):
                version = registry.approved(fact.source.removeprefix(APPROVED))
                if fact.version != (version.label if version else None):
                    raise Changed(key)
        registered = self.manifest.model_version
        if registered is not None and registered not in [
            ModelVersionRef(name=version.name, version=version.version, status=version.status)
            for version in registry.list(registered.name)
        ]:
            raise Changed(registered.name)

    def _file(self, path: Path, sha256: str | None = fast_path.ANY) -> None:
        self.repeatable.file(str(path), sha256)
