"""Removing what nothing needs: old runs, and objects that no kept run refers to.

Kept for good: the runs of every version that was ever approved, and runs with a pinned tag.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.errors import RunnerError
from runner.manifest import RunManifest
from runner.model.versions import ModelVersion
from runner.records import FileFact
from runner.run.cache import CACHE, Cache
from runner.run.sources import FETCHED
from runner.run.store import ELSEWHERE, Store, facts_of

PINNED = "pinned"


@dataclass(frozen=True)
class Freed:
    runs: tuple[str, ...]
    objects: int
    size_bytes: int
    kept: dict[str, str]  # run -> why


def collect(
    store: Store,
    *,
    approved_runs: Iterable[str],
    versions: Iterable[ModelVersion],
    keep: int,
    tags: Iterable[str],
    project: Path,
    dry_run: bool,
) -> Freed:
    """Remove all but the newest `keep` runs, those ever approved, and those with one of `tags` (or `pinned`).

    A run whose manifest cannot be read is kept. With `dry_run`, says what would go. Raises Refused while a run goes on.
    """
    with contextlib.nullcontext() if dry_run else store.alone():
        approved, pins = set(approved_runs), {*tags, PINNED}  # asked only now: nobody registers meanwhile
        kept: dict[str, str] = {}
        manifests: list[RunManifest] = []
        gone: list[str] = []
        for number, run in enumerate(store.runs()):
            why = _why(store, run, number, keep, approved, pins, manifests)
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
                shutil.rmtree(store.folder(run))
            for path in objects:
                path.unlink()
            for leftover in (*store.objects.glob(".*"), *store.root.glob(".import-*"), *store.root.glob(".pack-*")):
                # of writers that were killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            shutil.rmtree(store.root / FETCHED, ignore_errors=True)
            for pointer in (store.root / ELSEWHERE).glob("*"):
                if pointer.name not in needed:
                    pointer.unlink()
            _remember(store, manifests, project)
        return Freed(tuple(gone), len(objects), size, kept)


def _why(
    store: Store, run: str, number: int, keep: int, approved: set[str], pins: set[str], manifests: list[RunManifest]
) -> str:
    try:
        manifest = store.manifest(run)
    except RunnerError:
        return "" if not (store.folder(run) / "run.json").exists() and not store.locked(run) else "cannot be read"
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
