"""What a run leaves for the next one of the same command line, should nothing have changed by then.

Everything is looked at once more, by what the run itself asked; where it is another already, because somebody edited,
committed or approved while the run was going on, nothing is left.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from runner import failpoint
from runner.errors import RunnerError
from runner.manifest import ModelVersionRef, RunManifest, StepState
from runner.notebook.source import module_places, project_modules
from runner.pipeline.file import APPROVED, is_address
from runner.pipeline.plan import ENVIRONMENT, Plan, PlannedStep
from runner.records import encode
from runner.run import editable, fast_path, keys, provenance
from runner.run.cache import Cache
from runner.run.checkout import standing
from runner.run.fast_path import Changed, Dependencies
from runner.run.folder import JOB, MODULES, RESULT, SOURCE, STEPS, produced
from runner.run.machine import ACCOUNT, facts
from runner.run.orchestrate import VERDICT_FILE
from runner.run.ports import Registry, World
from runner.run.store import Store, facts_of

REPORT, PAGE = "report.html", "executed.html"


def template(manifest: RunManifest) -> RunManifest:
    """The manifest of a run that takes everything from this one, with placeholders for what is its own."""
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
    """Where the report of a repetition of the run waits to be filled in."""
    return store.root / fast_path.PAGES / f"{run}.html"


def leave(
    plan: Plan,
    manifest: RunManifest,
    world: World,
    arguments: Sequence[str],
    *,
    git: dict[str, object] | None,
    texts: Mapping[str, str],
    code: int,
    pages: bool,
    variables: Sequence[str],
) -> None:
    """Note all that the run depended on, and what the next one consists of.

    `git` is what `standing` said before the run began; `variables` are those that options read.

    Nothing is left after a failed run, or one that asked a service for its sources or for a registry.
    """
    store = world.store
    waiting = page_of(store, manifest.run)
    elsewhere = plan.pipeline.model is not None and plan.pipeline.model.registry != "local"
    if manifest.status == "succeeded" and not elsewhere:
        with contextlib.suppress(Changed, RunnerError, OSError):
            left = _Left(plan, manifest, store, waiting if pages else None)
            machine = facts()
            left.project(variables)
            left.store()
            left.registry(world.registry)
            if git is None or git != standing(str(plan.root)):
                raise Changed(".git")
            if provenance.environment() != manifest.environment:
                raise Changed("environment")
            fast_path.remember(
                str(store.root), arguments, left.depends, machine=machine, git=git, code=code,
                texts={**texts, "manifest": encode(template(manifest)).decode()},
                folders=left.folders, links=left.links, pages=left.pages,
            )  # fmt: skip
            return
    waiting.unlink(missing_ok=True)


class _Left:
    """The dependencies of one run, and the folder of the next."""

    def __init__(self, plan: Plan, manifest: RunManifest, store: Store, report: Path | None) -> None:
        self.plan, self.manifest, self.runs, self.report = plan, manifest, store, report
        self.cache = Cache(store, plan.root)
        self.depends = Dependencies()
        self.folders: list[str] = []
        self.links: dict[str, str] = {}
        self.pages: dict[str, tuple[str, str]] = {}

    def project(self, variables: Sequence[str]) -> None:
        """The pipeline file, notebooks, modules, sources and variables, each as the run has it."""
        own = self.runs.folder(self.manifest.run)
        self.depends.file(str(self.plan.file), _sha256(own / "pipeline.toml"))
        self._link("pipeline.toml", own / "pipeline.toml")
        for step in self.plan.steps:
            state = self._state(step)
            self.depends.file(str(step.notebook.path), state.snapshot[SOURCE])
            if project_modules(step.notebook) != step.modules:
                raise Changed(step.name)
            for place in module_places(step.notebook):
                self.depends.file(str(place), self._snapshot(step, place))
            index = self.cache.packages_file
            for name, written in keys.written(step, index_file=index).items():
                for place in editable.candidates(name):
                    self.depends.file(str(place), fast_path.ANY if place.is_file() else None)
                if written is not None:
                    self.depends.code(str(written))
            if state.key and keys.packages_of(step, index_file=index).items() - state.key.packages.items():
                raise Changed(step.name)
            if not step.skip:
                self._sources(step)
        names = (*provenance.VARIABLES, *ACCOUNT, *variables, failpoint.VARIABLE)
        secret = [name for step in self.plan.steps for name in _secrets(step)]
        self.depends.environment(dict.fromkeys(names), present=dict.fromkeys(secret))

    def _snapshot(self, step: PlannedStep, place: Path) -> str | None:
        """The content of a module of the step; None for a place where there is none, or one that is not a module."""
        relative = place.relative_to(step.notebook.path.parent).as_posix()
        if relative in step.modules:
            return self._state(step).snapshot[f"{MODULES}/{relative}"]
        return None if not place.is_file() else fast_path.ANY

    def _sources(self, step: PlannedStep) -> None:
        for name, spec in step.spec.inputs.items():
            fact = self.manifest.sources.get(f"{step.name}.{name}")
            if fact is None or not spec.from_:
                continue  # of a step before, or nothing
            if is_address(spec.from_):
                raise Changed(name)  # its service would have to be asked
            if spec.from_.startswith(APPROVED):
                for part in facts_of(fact.artifact).values() if fact.artifact else ():
                    self.depends.file(str(self.runs.objects / part.sha256), part.sha256)
                continue
            path = self.plan.root / Path(spec.from_).expanduser()
            if fact.artifact is None:
                self.depends.file(str(path), None)
                continue
            if fact.artifact.files is not None:
                raise Changed(name)  # a folder may get new files without any of the old ones changing
            self.depends.source(str(path), fact.source, fact.stamp)
            self.depends.file(fact.source, fact.artifact.sha256)
            if not fact.stamp:
                self._object(fact.artifact.sha256)

    def store(self) -> None:
        """Results and records, each as the ordinary way would find and link them."""
        for state, step in zip(self.manifest.steps, self.plan.steps, strict=True):
            inside = f"{STEPS}/{state.name}"
            own = self.runs.folder(self.manifest.run) / inside
            self.folders.append(f"{inside}/{MODULES}")
            for name in state.snapshot:
                self._link(f"{inside}/{name}", own / name)
            if state.status in ("succeeded", "cached"):
                self._result(step, state, inside)
        if self.manifest.verdict is not None:
            self._link(VERDICT_FILE, self.runs.folder(self.manifest.run) / VERDICT_FILE)
        if self.report is not None:
            self.depends.sealed(str(self.report))
            self.pages[REPORT] = (str(self.report), "")

    def _result(self, step: PlannedStep, state: StepState, inside: str) -> None:
        assert state.key is not None
        assert state.result is not None
        for path in self.cache.stands_on(step.name, state.key):
            self.depends.file(str(path))
        found = self.cache.find(step, state.key)
        taken = state.from_run or self.manifest.run
        if found.run != taken or found.state is None or found.state.result != state.result:
            raise Changed(state.name)
        for artifact in produced(state.result):
            target = f"{inside}/{artifact.path.rstrip('/')}"
            if artifact.files is not None:
                self.folders.append(target)
            for relative, fact in facts_of(artifact).items():
                self.links[f"{target}/{relative}" if relative else target] = str(self._object(fact.sha256))
        own = self.runs.folder(self.manifest.run) / inside
        for name in (JOB, RESULT):
            self._link(f"{inside}/{name}", own / name)
        earlier = self.runs.folder(taken) / inside
        if (earlier / "job.log").exists():
            self._link(f"{inside}/job.log", earlier / "job.log")
        if self.report is not None:
            self.depends.sealed(str(own / PAGE))
            self.pages[f"{inside}/{PAGE}"] = (str(own / PAGE), self.manifest.run)
        elif (earlier / PAGE).exists():
            self._link(f"{inside}/{PAGE}", earlier / PAGE)
        else:
            self.depends.file(str(earlier / PAGE), None)

    def registry(self, registry: Registry) -> None:
        """The registry's file stands for what is approved and registered; both must be what the run was told."""
        for name in ("registry.db", "registry.db-journal"):
            path = self.runs.root / name
            self.depends.file(str(path), fast_path.ANY if path.exists() else None)
        for key, fact in self.manifest.sources.items():
            if fact.source.startswith(APPROVED):
                version = registry.approved(fact.source.removeprefix(APPROVED))
                if fact.version != (version.label if version else None):
                    raise Changed(key)
        made = self.manifest.model_version
        if made is not None and made not in [
            ModelVersionRef(name=found.name, version=found.version, status=found.status)
            for found in registry.list(made.name)
        ]:
            raise Changed(made.name)

    def _state(self, step: PlannedStep) -> StepState:
        return next(state for state in self.manifest.steps if state.name == step.name)

    def _object(self, sha256: str) -> Path:
        path = self.runs.objects / sha256
        self.depends.sealed(str(path), sha256)
        return path

    def _link(self, name: str, source: Path) -> None:
        self.depends.sealed(str(source))
        self.links[name] = str(source)


def _secrets(step: PlannedStep) -> Iterator[str]:
    """The variables that have the values of its secret parameters."""
    for name, value in step.parameters.items():
        if name in step.notebook.parameters and step.notebook.parameters[name].secret:
            yield str(value).removeprefix(ENVIRONMENT)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
