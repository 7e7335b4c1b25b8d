"""Results of earlier runs by what they depended on: found, checked by content, and put in place as links.

runs/cache/<step>/<key>.json   the runs whose step had that key, with the other project files it read
runs/cache/<step>/latest.json  the step's last success, to say in words what is different now
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runner.content import atomic_write, file_fact
from runner.errors import RunnerError, Tampered, UsageError
from runner.manifest import StepState
from runner.paths import FileName, RelativePath
from runner.pipeline.plan import PlannedStep
from runner.records import Opened, Record, StepKey, encode, read
from runner.run import folder as run_folder
from runner.run.hash_cache import Checked
from runner.run.keys import differences, digest
from runner.run.sources import changed_objects
from runner.run.store import MANIFEST, Store, facts_of, files_of

CACHE, LATEST, INDEX, PACKAGES = "cache", "latest.json", "checked.json", "packages.json"
NEVER, ALTERED = "never run", "an output was altered"
KEPT = 20  # entries a key keeps: same code and inputs, other undeclared files


class _Entry(Record, frozen=True, kw_only=True):
    run: FileName
    key: StepKey
    opened: dict[RelativePath, Opened] = {}


class _Entries(Record, frozen=True, kw_only=True):
    format: int = 1
    entries: list[_Entry] = []


@dataclass(frozen=True)
class Found:
    """A hit has `state`, the earlier step as it was; a miss has none. `why` is said either way."""

    why: str
    state: StepState | None = None
    run: str | None = None


class Cache:
    """The cache of one store for one project folder. Damage to its files makes misses, never wrong hits."""

    def __init__(self, store: Store, project: Path) -> None:
        self.store, self.project = store, project
        self.folder = store.root / CACHE
        self.packages_file = self.folder / PACKAGES
        self.checked = Checked(self.folder / INDEX)

    def find(self, step: PlannedStep, key: StepKey) -> Found:
        """The earlier result that is good for this key, or why there is none."""
        entries = self._read(step.name, f"{digest(key)}.json")
        why = ""
        for entry in reversed(entries):
            changed = self._changed(entry.opened)
            if changed is not None:
                why = why or changed
                continue
            try:
                state = self._state(entry.run, step.name)
                self._check(state)
            except (RunnerError, OSError, StopIteration) as error:
                there = (self.store.folder(entry.run) / MANIFEST).exists()
                lost = f"run {entry.run} {'did not end well' if there else 'is gone'}"
                why = ALTERED if isinstance(error, Tampered) else why or lost
                continue
            return Found(why="", state=state, run=state.from_run or entry.run)
        if not why:
            latest = self._read(step.name, LATEST)
            if not latest:
                return Found(why=NEVER)
            sources = {name: spec.from_ for name, spec in step.spec.inputs.items()}
            said = differences(latest[-1].key, key, sources, lambda old, new: changed_objects(old, new, self.store))
            why = ", ".join(said) or self._changed(latest[-1].opened) or NEVER
        return Found(why=why)

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
        """Keep a success under its key."""
        assert state.key is not None
        assert state.result is not None
        entry = _Entry(run=run, key=state.key, opened=state.result.opened)
        name = f"{digest(state.key)}.json"
        others = [other for other in self._read(state.name, name) if other.opened != entry.opened]
        place = self.folder / state.name
        place.mkdir(parents=True, exist_ok=True)
        for file, entries in ((name, [*others[-KEPT:], entry]), (LATEST, [entry])):
            atomic_write(place / file, encode(_Entries(entries=entries)))

    def link(self, found: Found, run: str) -> None:
        """Put the earlier step's folder into the new run: records copied, outputs and executed notebook linked."""
        assert found.state is not None
        assert found.run is not None
        source = run_folder.step_folder(self.store, found.run, found.state.name)
        target = run_folder.step_folder(self.store, run, found.state.name)
        result = found.state.result
        assert result is not None
        for artifact in run_folder.produced(result):
            if all(self.store.here(fact) for fact in facts_of(artifact).values()):  # the rest is fetched when asked for
                self.store.link(artifact, target / artifact.path.rstrip("/"))
        for name, record in ((run_folder.JOB, found.state.job), (run_folder.RESULT, result)):
            assert record is not None
            atomic_write(target / name, encode(record))
        for name in ("executed.html", "job.log"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(source / name, target / name)

    def _check(self, state: StepState) -> None:
        """Raises Tampered where an output or the executed notebook is not what it was. What lies elsewhere is checked
        by whoever fetches it."""
        assert state.result is not None
        for artifact in run_folder.produced(state.result):
            for _, fact in files_of(artifact):
                if not self.store.here(fact) and self.store.address(fact) is not None:
                    continue
                path = self.store.object(fact)
                if self.checked.fact(path) != fact:
                    raise Tampered(f"{path} was altered.")

    def _state(self, run: str, step: str) -> StepState:
        state = next(state for state in self.store.manifest(run).steps if state.name == step)
        if state.result is None or state.status not in ("succeeded", "cached"):
            raise UsageError(f"Step {step} of run {run} did not succeed.")
        return state

    def _changed(self, opened: Mapping[str, Opened]) -> str | None:
        """A sentence about the first undeclared file that is not as it was when the step read it."""
        for name, was in sorted(opened.items()):
            where = f"{name}, read by cell [{was.cell}]," if was.cell is not None else f"{name}, read by the step,"
            try:
                if file_fact(self.project / name).sha256 != was.sha256:
                    return f"{where} changed"
            except (OSError, RunnerError):
                return f"{where} is gone"
        return None

    def _read(self, step: str, name: str) -> list[_Entry]:
        with contextlib.suppress(OSError, RunnerError, msgspec.MsgspecError):
            return read(_Entries, self.folder / step / name).entries
        return []
