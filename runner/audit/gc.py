"""Removing what nothing needs: old runs, and objects that no kept run refers to.

Kept for good: the runs of every version that was ever approved, and runs with a pinned tag. Who removed which run, when
and how is written down before anything of it goes; see `runner.run.removal`.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from runner.content import file_fact
from runner.errors import RunnerError
from runner.failpoint import reach
from runner.manifest import RunManifest
from runner.model.registry import LocalRegistry
from runner.model.versions import ModelVersion, Registry
from runner.records import FileFact
from runner.run import removal
from runner.run.cache import CACHE, Cache
from runner.run.sources import FETCHED
from runner.run.store import ELSEWHERE, MANIFEST, Store, facts_of

PINNED = "pinned"


@dataclass(frozen=True)
class Freed:
    runs: tuple[str, ...]
    objects: int
    size_bytes: int
    kept: dict[str, str]  # run -> why


def collect(
    store: Store,
    registry: Registry,
    *,
    keep: int,
    tags: Iterable[str],
    project: Path,
    who: str,
    command: str,
    dry_run: bool = False,
) -> Freed:
    """Remove all but the newest `keep` runs, those ever approved, and those with one of `tags` (or `pinned`).

    A run whose manifest cannot be read is kept. `command` is what the removal is recorded by. With `dry_run`, says what
    would go. Raises Refused while somebody else works in the store.
    """
    pins = {*tags, PINNED}
    with store.shared() if dry_run else store.alone():
        versions = list(registry.list())  # while no run can add to it
        wanted = {version.run for version in versions if version.status == "pending"}  # somebody may still approve it
        for name in {version.name for version in versions}:
            approved = {event.version for event in registry.events(name) if event.kind == "approved"}
            wanted |= {version.run for version in versions if version.name == name and version.version in approved}
        kept: dict[str, str] = {}
        manifests: list[RunManifest] = []
        gone: list[str] = []
        for number, run in enumerate(store.runs()):
            why = _why(store, run, number, keep, wanted, pins, manifests)
            if why:
                kept[run] = why
            else:
                gone.append(run)
        needed = {fact.sha256 for manifest in manifests for fact in _facts(manifest)}
        needed |= {
            fact.sha256 for version in versions for fact in facts_of(version.artifact).values() if version.run in kept
        }
        unreadable = any(why == "cannot be read" for why in kept.values())
        objects = [] if unreadable else [path for path in _objects(store) if path.name not in needed]
        size = sum(path.stat().st_size for path in objects)
        if not dry_run:
            for run in gone:
                _remove(store, run, registry, versions, who=who, command=command)
            for path in objects:
                path.unlink()
            reach("objects removed")
            _tidy(store, needed)
            _remember(store, manifests, project)
        return Freed(tuple(gone), len(objects), size, kept)


def _remove(
    store: Store, run: str, registry: Registry, versions: Iterable[ModelVersion], *, who: str, command: str
) -> None:
    """Write down that the run goes, then take it away at once, then its files.

    Also in the histories of its versions, where they are kept here and not shared with people who have the run.
    """
    record = _removal(store, run, versions, who=who, command=command)
    if record is not None:
        for label in record.versions if isinstance(registry, LocalRegistry) else ():
            name, _, number = label.partition("/")
            registry.record(name, int(number), removal.EVENT, who=who, why=command, data={"run": run})
        removal.write(store.root, record)
    reach("removal recorded")
    aside = store.root / removal.REMOVED / f".{run}-{secrets.token_hex(4)}"
    aside.parent.mkdir(exist_ok=True)
    store.folder(run).rename(aside)
    reach("run moved away")
    shutil.rmtree(aside)


def _removal(
    store: Store, run: str, versions: Iterable[ModelVersion], *, who: str, command: str
) -> removal.Removal | None:
    """None for a run that never began, which has nothing to tell."""
    try:
        manifest = store.manifest(run)
    except RunnerError:
        return None
    return removal.Removal(
        run=run,
        at=_now(),
        who=who,
        command=command,
        started=manifest.started,
        started_by=manifest.started_by,
        status=manifest.status,
        verdict=manifest.verdict.outcome if manifest.verdict else None,
        versions=[version.label for version in versions if version.run == run],
        manifest_sha256=file_fact(store.folder(run) / MANIFEST).sha256,
    )


def _tidy(store: Store, needed: set[str]) -> None:
    """What killed writers left, the notes on downloads, and addresses of objects that nothing needs."""
    unfinished = (f"{removal.REMOVED}/.*", ".import-*", ".pack-*", ".registry.db-*")
    for leftover in (*store.objects.glob(".*"), *(path for form in unfinished for path in store.root.glob(form))):
        # the probe of a run that is about to begin goes by itself
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    shutil.rmtree(store.root / FETCHED, ignore_errors=True)
    for pointer in (store.root / ELSEWHERE).glob("*"):
        if pointer.name not in needed:
            pointer.unlink()


def _why(
    store: Store,
    run: str,
    number: int,
    keep: int,
    approved: set[str],
    pins: set[str],
    manifests: list[RunManifest],
) -> str:
    try:
        manifest = store.manifest(run)
    except RunnerError:
        return "cannot be read" if store.begun(run) or store.locked(run) else ""
    why = ""
    if store.locked(run):
        why = "going on"
    elif run in approved:
        why = "approved"
    elif pins & set(manifest.tags):
        why = f"tagged {', '.join(sorted(pins & set(manifest.tags)))}"
    elif number < keep:
        why = f"among the newest {keep}"
    if why:
        manifests.append(manifest)
    return why


def _facts(manifest: RunManifest) -> Iterable[FileFact]:
    for state in manifest.steps:
        for fact in state.job.inputs.values() if state.job else ():
            if fact.artifact is not None and fact.as_ == "path" and not fact.listed:
                yield from facts_of(fact.artifact).values()
        if state.result is not None:
            for artifact in (
                *state.result.outputs.values(),
                *([state.result.executed] if state.result.executed else []),
            ):
                yield from facts_of(artifact).values()
    for fact in manifest.sources.values():
        if fact.artifact is not None and fact.as_ == "path" and not fact.listed:
            yield from facts_of(fact.artifact).values()


def _objects(store: Store) -> list[Path]:
    return [path for path in store.objects.iterdir() if len(path.name) == 64] if store.objects.is_dir() else []


def _remember(store: Store, manifests: list[RunManifest], project: Path) -> None:
    """The cache anew, from the kept runs, oldest first. What ran elsewhere is nobody's result here."""
    for folder in (store.root / CACHE).glob("*/"):
        shutil.rmtree(folder)
    cache = Cache(store, project)
    for manifest in (manifest for manifest in reversed(manifests) if manifest.imported is None):
        for state in manifest.steps:
            if state.status in ("succeeded", "cached") and state.key is not None and state.result is not None:
                cache.remember(manifest.run, state)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
