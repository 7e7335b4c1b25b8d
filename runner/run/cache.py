"""Results of earlier runs by what they depended on: looked up, checked by content, and linked into the new run.

runs/cache/<step>/<key>.json   the runs whose step had that key, with the other project files it read
runs/cache/<step>/latest.json  the step's last success, to say in words what is different now
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact, stamp
from runner.errors import RunnerError, Tampered, UsageError
from runner.manifest import KeyState, StepState
from runner.paths import FileName, RelativePath
from runner.pipeline.plan import PlannedStep
from runner.records import FileFact, Opened, Record, StepJob, StepKey, StepResult, encode, read
from runner.run import folder as run_folder
from runner.run.keys import differences, digest
from runner.run.sources import changed_objects
from runner.run.store import MANIFEST, Store, facts_of, files_of

CACHE, LATEST, INDEX, PACKAGES = "cache", "latest.json", "checked.json", "packages.json"
NEVER, ALTERED = "never run", "an output was altered"
FRESH_S = 2.0  # a younger file is read again: two changes within a clock tick of the file system have equal stamps
KEPT = 20  # entries a key keeps: same code and inputs, other undeclared files


class _Entry(Record, frozen=True, kw_only=True):
    run: FileName
    folder: FileName | None = None  # of a key of a mapped step
    key: StepKey
    opened: dict[RelativePath, Opened] = {}


class _Entries(Record, frozen=True, kw_only=True):
    format: int = 1
    entries: list[_Entry] = []


@dataclass(frozen=True)
class Hit:
    """An earlier result of the step that can be used again, and the `run` that executed it."""

    step: str
    run: str
    job: StepJob
    result: StepResult


@dataclass(frozen=True)
class Miss:
    """No earlier result can be used; `why` says what is different."""

    why: str


class Cache:
    """The cache of one store for one project folder. Damage to its files makes misses, never wrong hits."""

    def __init__(self, store: Store, project: Path) -> None:
        self.store, self.project = store, project
        self.folder = store.root / CACHE
        self.packages_file = self.folder / PACKAGES
        self.hashes = HashCache(self.folder / INDEX)

    def find(self, step: PlannedStep, key: StepKey) -> Hit | Miss:
        """The earlier result that is good for this key, or why there is none."""
        match = self.find_key(step.name, key)
        return match if isinstance(match, Hit) else Miss(match.why or self._difference(step, key))

    def find_key(self, step: str, key: StepKey) -> Hit | Miss:
        """As `find`, also of one key of a mapped step; `why` is "" where nothing with this key was kept."""
        why = ""
        for entry in reversed(self._read(step, f"{digest(key)}.json")):
            changed = self.changed(entry.opened)
            try:
                if not changed:
                    return self._hit(entry, step)
            except Tampered:
                why = ALTERED
            except (RunnerError, OSError):
                has_manifest = (self.store.folder(entry.run) / MANIFEST).exists()
                changed = f"run {entry.run} {'did not end well' if has_manifest else 'is gone'}"
            why = why or changed
        return Miss(why)

    def undeclared(self, step: str) -> dict[str, Opened]:
        """Files of the project that the step's last success read without their being inputs."""
        latest = self._read(step, LATEST)
        return latest[-1].opened if latest else {}

    def stands_on(self, step: str, key: StepKey) -> Iterator[Path]:
        """Every file that decides which earlier result `find` gives, outputs apart."""
        yield self.folder / step / f"{digest(key)}.json"
        for entry in self._read(step, f"{digest(key)}.json"):
            yield self.store.folder(entry.run) / MANIFEST
            yield from (self.project / name for name in entry.opened)

    def remember(self, run: str, state: StepState) -> None:
        """Keep a success under its key; a step without key or result is not kept."""
        if state.key is None or state.result is None:
            return
        entry = _Entry(run=run, key=state.key, opened=state.result.opened)
        if state.result.mapped is None or not state.result.mapped.failed:  # else its keys alone are of use
            self._keep(state.name, entry)
        atomic_write(self._made(state.name) / LATEST, encode(_Entries(entries=[entry])))

    def remember_key(self, run: str, step: str, folder: str, key: StepKey, result: StepResult) -> None:
        """Keep the success of one key of a mapped step; after a crash of the machine it may be executed once more.

        Safe to call from several threads for different keys.
        """
        self._keep(step, _Entry(run=run, folder=folder, key=key, opened=result.opened), lasting=False)

    def forget_removed(self) -> set[tuple[str, str]]:
        """Take out the entries of runs that are not here any more; (step, hash of the step key) of each."""
        lost, runs = set[tuple[str, str]](), set(self.store.runs())
        for path in self.folder.glob("*/*.json"):
            step, entries = path.parent.name, self._read(path.parent.name, path.name)
            left = [entry for entry in entries if entry.run in runs]
            if left and len(left) == len(entries):
                continue
            if len(left) < len(entries):
                lost.add((step, path.stem if path.name != LATEST else digest(entries[-1].key)))
            if left:
                atomic_write(path, encode(_Entries(entries=left)))
            else:
                path.unlink()
        return lost

    def _keep(self, step: str, entry: _Entry, *, lasting: bool = True) -> None:
        name = f"{digest(entry.key)}.json"
        others = [other for other in self._read(step, name) if other.opened != entry.opened]
        atomic_write(self._made(step) / name, encode(_Entries(entries=[*others[-KEPT:], entry])), lasting=lasting)

    def _made(self, step: str) -> Path:
        (self.folder / step).mkdir(parents=True, exist_ok=True)
        return self.folder / step

    def link(self, hit: Hit, run: str) -> None:
        """Put the earlier step's folder into the new run: records copied, outputs and executed notebook linked."""
        source = run_folder.step_folder(self.store, hit.run, hit.step)
        target = run_folder.step_folder(self.store, run, hit.step)
        for artifact in hit.result.artifacts():
            if all(self.store.has(fact) for fact in facts_of(artifact).values()):  # the rest is fetched when needed
                self.store.link(artifact, target / artifact.path.rstrip("/"))
        atomic_write(target / run_folder.JOB, encode(hit.job))
        atomic_write(target / run_folder.RESULT, encode(hit.result))
        for name in ("executed.html", "job.log"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(source / name, target / name)

    def _hit(self, entry: _Entry, step: str) -> Hit:
        """The step's result in that run. Raises Tampered where an output or the executed notebook is not what it was.

        What lies elsewhere is checked when it is fetched.
        """
        run, state = entry.run, self._state(entry, step)
        if state.result is None or state.job is None or state.result.error is not None:
            raise UsageError(f"Step {step} of run {run} did not succeed.")
        for artifact in state.result.artifacts():
            for _, fact in files_of(artifact):
                if not self.store.has(fact) and self.store.address(fact) is not None:
                    continue
                path = self.store.object(fact)
                if self.hashes.fact(path) != fact:
                    raise Tampered(f"{path} was altered.")
        return Hit(step, state.from_run or run, state.job, state.result)

    def _state(self, entry: _Entry, step: str) -> StepState | KeyState:
        if entry.folder is not None:
            folder = run_folder.step_folder(self.store, entry.run, step)
            return read(KeyState, folder / run_folder.KEYS / entry.folder / run_folder.STATE)
        state = self.store.manifest(entry.run).step(step)
        if not state.complete:
            raise UsageError(f"Step {step} of run {entry.run} did not succeed.")
        return state

    def _difference(self, step: PlannedStep, key: StepKey) -> str:
        """What is not as it was when the step last succeeded."""
        latest = self._read(step.name, LATEST)
        if not latest:
            return NEVER
        sources = {name: spec.from_ for name, spec in step.spec.inputs.items()}
        changes = differences(latest[-1].key, key, sources, lambda old, new: changed_objects(old, new, self.store))
        return ", ".join(changes) or self.changed(latest[-1].opened) or NEVER

    def changed(self, opened: Mapping[str, Opened]) -> str:
        """A sentence about the first undeclared file that is not as it was when the step read it; "" for none."""
        for name, before in sorted(opened.items()):
            reader = f"cell [{before.cell}]" if before.cell is not None else "the step"
            try:
                if file_fact(self.project / name).sha256 != before.sha256:
                    return f"{name}, read by {reader}, changed"
            except (OSError, RunnerError):
                return f"{name}, read by {reader}, is gone"
        return ""

    def _read(self, step: str, name: str) -> list[_Entry]:
        with contextlib.suppress(OSError, RunnerError, msgspec.MsgspecError):
            return read(_Entries, self.folder / step / name).entries
        return []


class HashCache:
    """Hashes of files by size, time and inode, kept in runs/cache/checked.json. Losing it costs time, never truth."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[str, str]] = {}
        self._changed = False
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[str, str]])

    def fact(self, path: Path) -> FileFact:
        """Hash and size of the file, read only where its stamp is new. Raises as `runner.content.file_fact`."""
        status, now = path.stat(), stamp(path)
        name = str(path.absolute())
        known_stamp, sha256 = self._known.get(name, ("", ""))
        if known_stamp == now:
            return FileFact(sha256=sha256, size_bytes=status.st_size)
        fact = file_fact(path)
        if time.time() - status.st_mtime > FRESH_S:
            self._known[name] = (now, fact.sha256)
            self._changed = True
        return fact

    def save(self) -> None:
        if self._changed:
            with contextlib.suppress(OSError):
                atomic_write(self.path, msgspec.json.encode(self._known))
            self._changed = False
