"""Removing what nothing needs: old runs, and objects that no kept run refers to.

Runs of every version that was ever approved, and runs with a pinned tag, are kept for good. Each removal is recorded
before anything is deleted; see `runner.run.removal`.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.content import file_fact
from runner.errors import RunnerError
from runner.failpoint import reach
from runner.manifest import KeyState, RunManifest, StepState
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, Registry
from runner.pipeline import mapping
from runner.records import FileFact, StepKey, StepResult, StepSpec, utc_text
from runner.run import folder as run_folder
from runner.run import removal
from runner.run.cache import Cache
from runner.run.keys import digest, of_one
from runner.run.mapped import states
from runner.run.sources import FETCHED
from runner.run.store import ELSEWHERE, MANIFEST, Store, facts_of

PINNED, UNREADABLE = "pinned", "cannot be read"


@dataclass(frozen=True)
class GcRequest:
    """Keep the newest `keep` runs and those with one of `tags`. `command` is what the removals are recorded by."""

    keep: int
    tags: tuple[str, ...]
    who: str
    command: str
    dry_run: bool = False


@dataclass(frozen=True)
class GcReport:
    runs: tuple[str, ...]
    objects: int
    size_bytes: int
    kept: dict[str, str]  # run -> why


def collect(store: Store, registry: Registry, project: Path, request: GcRequest) -> GcReport:
    """Remove all runs but those asked for, those ever approved, and those tagged `pinned`; then unneeded objects.

    A run whose manifest cannot be read is kept. With `dry_run`, only reports. Raises Refused while somebody else works
    in the store.
    """
    with store.shared() if request.dry_run else store.exclusive():
        versions = registry.list()  # while no run can add to it
        kept, removed, needed = _divide(store, request, _runs_of_versions(registry, versions))
        needed |= {
            fact.sha256 for version in versions for fact in facts_of(version.artifact).values() if version.run in kept
        }
        unreadable = UNREADABLE in kept.values()  # what such a run needs is not known
        objects = [] if unreadable else [path for path in store.objects.glob("?" * 64) if path.name not in needed]
        size = sum(path.stat().st_size for path in objects)
        if not request.dry_run:
            for run in removed:
                _remove(store, run, registry, versions, request)
            for path in objects:
                path.unlink()
            reach("objects removed")
            _tidy(store, needed)
            _refresh_cache(Cache(store, project), kept)
        return GcReport(tuple(removed), len(objects), size, kept)


def _runs_of_versions(registry: Registry, versions: Sequence[ModelVersion]) -> set[str]:
    """The runs of versions that were ever approved, or still may be."""
    approved = {
        (name, event.version)
        for name in {version.name for version in versions}
        for event in registry.events(name)
        if event.kind == "approved"
    }
    return {
        version.run
        for version in versions
        if version.status == "pending" or (version.name, version.version) in approved
    }


def _divide(store: Store, request: GcRequest, of_versions: set[str]) -> tuple[dict[str, str], list[str], set[str]]:
    """The runs to keep, each with its reason; those to remove; and the hashes of the objects that the former need.

    One manifest is in memory at a time: a store may have a hundred thousand.
    """
    kept: dict[str, str] = {}
    removed: list[str] = []
    needed: set[str] = set()
    for number, run in enumerate(store.runs()):
        try:
            manifest = store.manifest(run)
        except RunnerError:
            if store.begun(run) or store.locked(run):
                kept[run] = UNREADABLE
            else:
                removed.append(run)
            continue
        tags = {*request.tags, PINNED} & {*manifest.tags}
        if store.locked(run):
            kept[run] = "going on"
        elif run in of_versions:
            kept[run] = "approved"
        elif tags:
            kept[run] = f"tagged {', '.join(sorted(tags))}"
        elif number < request.keep:
            kept[run] = f"among the newest {request.keep}"
        else:
            removed.append(run)
            continue
        needed |= {fact.sha256 for fact in _facts(manifest, store)}
    return kept, removed, needed


def _remove(store: Store, run: str, registry: Registry, versions: Iterable[ModelVersion], request: GcRequest) -> None:
    """Record the removal, rename the run's folder away, then delete it.

    It is recorded in the histories of its versions too, where these are local: others may still have the run.
    """
    record = _removal(store, run, versions, request)
    if record is not None:
        for label in record.versions if isinstance(registry, LocalRegistry) else ():
            name, _, number = label.partition("/")
            registry.record(name, int(number), removal.EVENT, who=request.who, why=request.command, data={"run": run})
        removal.write(store.root, record)
    reach("removal recorded")
    aside = store.root / removal.REMOVED / f".{run}-{secrets.token_hex(4)}"
    aside.parent.mkdir(exist_ok=True)
    store.folder(run).rename(aside)
    reach("run moved away")
    shutil.rmtree(aside)


def _removal(store: Store, run: str, versions: Iterable[ModelVersion], request: GcRequest) -> removal.Removal | None:
    """None for a run that never began, of which nothing is known."""
    try:
        manifest = store.manifest(run)
    except RunnerError:
        return None
    return removal.Removal(
        run=run,
        at=utc_text(),
        who=request.who,
        command=request.command,
        started=manifest.started,
        started_by=manifest.started_by,
        status=manifest.status,
        verdict=manifest.verdict.outcome if manifest.verdict else None,
        versions=[version.label for version in versions if version.run == run],
        manifest_sha256=file_fact(store.folder(run) / MANIFEST).sha256,
    )


def _tidy(store: Store, needed: set[str]) -> None:
    """Remove what killed processes left, the index of downloads, and addresses of objects that nothing needs."""
    unfinished = (f"{removal.REMOVED}/.*", ".import-*", ".pack-*", ".registry.db-*")
    for leftover in (*store.objects.glob(".*"), *(path for form in unfinished for path in store.root.glob(form))):
        # the probe file of a run that is about to begin may vanish
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    shutil.rmtree(store.root / FETCHED, ignore_errors=True)
    for pointer in (store.root / ELSEWHERE).glob("*"):
        if pointer.name not in needed:
            pointer.unlink()


def _facts(manifest: RunManifest, store: Store) -> Iterator[FileFact]:
    """Every object that the run may need."""
    unsealed = [
        ended
        for state in manifest.steps
        if state.result is None and manifest.pipeline.steps[state.name].map
        for ended in states(run_folder.step_folder(store, manifest.run, state.name))
    ]
    jobs = [state.job for state in manifest.steps if state.job is not None]
    inputs = [*manifest.sources.values(), *(fact for job in jobs for fact in job.inputs.values())]
    artifacts = [fact.artifact for fact in inputs if fact.artifact and fact.as_ == "path" and not fact.listed]
    artifacts += [artifact for state in manifest.steps if state.result for artifact in state.result.artifacts()]
    artifacts += [artifact for ended in unsealed for artifact in ended.result.artifacts()]
    for artifact in artifacts:
        yield from facts_of(artifact).values()


def _refresh_cache(cache: Cache, kept: Iterable[str]) -> None:
    """Take the removed runs out of the cache. The newest kept run with an equal step takes their place.

    Imported runs do not count as results here.
    """
    lost = cache.forget_removed()
    steps, newest = {step for step, _ in lost}, dict[Hashable, Callable[[], None]]()
    latest = dict[str, Callable[[], None]]()  # of a step, whose `latest.json` may have been a removed run's too
    for run in sorted(kept) if lost else ():
        with contextlib.suppress(RunnerError):
            manifest = cache.store.manifest(run)
            for state in manifest.steps if manifest.imported is None else ():
                if state.name not in steps or state.key is None:
                    continue
                step_key = digest(state.key)
                if state.complete and state.result is not None:
                    remember = latest[state.name] = functools.partial(cache.remember, run, state)
                    if (state.name, step_key) in lost:
                        newest[state.name, step_key, _seen(state.result)] = remember
                for key, ended in _keys(cache.store, run, state, manifest.pipeline.steps[state.name]):
                    if (state.name, ended.step_key) in lost:
                        newest[state.name, ended.step_key, _seen(ended.result)] = functools.partial(
                            cache.remember_key, run, state.name, ended.folder, key, ended.result
                        )
    for write in (*newest.values(), *latest.values()):
        write()


def _seen(result: StepResult) -> Hashable:
    """The undeclared files that it read, by content: with others it is another result."""
    return tuple(sorted((name, opened.sha256) for name, opened in result.opened.items()))


def _keys(store: Store, run: str, state: StepState, spec: StepSpec) -> Iterator[tuple[StepKey, KeyState]]:
    """The keys of a mapped step that succeeded, also where the step as a whole did not."""
    if state.key is None or not spec.map:
        return
    parameter, _ = mapping.source(spec)
    for ended in states(run_folder.step_folder(store, run, state.name)):
        key = of_one(state.key, parameter, ended.key)
        if ended.result.error is None and digest(key) == ended.step_key:
            yield key, ended
