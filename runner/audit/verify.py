"""Whether everything that was sealed is still what it was: files, records, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from runner.content import file_fact
from runner.errors import RunnerError
from runner.gate import judge
from runner.manifest import RunManifest, StepState
from runner.model.events import verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event, ModelVersion, Registry
from runner.notebook.recorded import read_scraps
from runner.records import FileFact, StepJob, StepResult, encode, read
from runner.run import folder as run_folder
from runner.run import removal
from runner.run.contents import strangers
from runner.run.registration import model_artifact
from runner.run.store import Store, facts_of, files_of, found_here


@dataclass
class Verified:
    """`findings` are what is not as it was sealed; `notes` what could not be checked, and why that is in order."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings


def verify(store: Store, registry: Registry, reference: str | None) -> Verified:
    """One run or version, or every run, version and event where `reference` is None."""
    made, verifier = Verified(), Verifier(store)
    name, slash, number = (reference or "").partition("/")
    if slash and number.isdecimal():
        chosen: Sequence[ModelVersion] = [registry.get(name, int(number))]
        runs = [chosen[0].run] if store.folder(chosen[0].run).exists() else []
    else:
        chosen = _versions(registry, made) if reference is None else []
        runs = [run for run in store.runs() if store.begun(run)] if reference is None else [store.find(reference)]
    for run in runs:
        try:
            made.findings += verifier.run(store.manifest(run))
        except RunnerError as error:
            made.findings.append(str(error))
    histories = {model: registry.events(model) for model in sorted({version.name for version in chosen})}
    for model, events in histories.items():
        broken = verify_chain(events)
        if broken is not None:
            made.findings.append(f"{model}: {broken}")
    for version in chosen:
        label = version.label
        try:
            if store.folder(version.run).exists():
                made.findings += verifier.version(version, store.manifest(version.run))
            else:
                _gone(version, histories[version.name], registry, store, made)
        except RunnerError as error:
            made.findings.append(f"{label}: {error}")
    if isinstance(registry, LocalRegistry) and (chosen or reference is None):
        made.findings += registry.differences(name if reference is not None else None)
    made.files, made.size_bytes = verifier.files, verifier.size_bytes
    return made


def _versions(registry: Registry, made: Verified) -> Sequence[ModelVersion]:
    """All of them; none where the registry cannot be believed, which is a finding."""
    try:
        return registry.list()
    except RunnerError as error:
        made.findings.append(str(error))
        return []


def _gone(version: ModelVersion, events: Sequence[Event], registry: Registry, store: Store, made: Verified) -> None:
    """A version whose run is not here: by whom it was removed, or that nobody says so."""
    label, removed = version.label, removal.find(store.root, version.run)
    own = [event for event in events if event.version == version.version]
    told = next((event for event in own if event.kind == removal.EVENT and event.data.get("run") == version.run), None)
    approved = next((event for event in own if event.kind == "approved"), None)
    if not isinstance(registry, LocalRegistry):  # several people have it, and each only some of the runs
        why = f" It was {removed}." if removed is not None else ""
        made.notes.append(f"{label} ({version.status}): its run {version.run} is not on this machine.{why}")
    elif removed is None or told is None:
        missing = (
            f"the history of {version.name} does not say so" if removed is not None else "`runner gc` did not do it"
        )
        said = f" {store.root / removal.REMOVED} has it that it was {removed}, but" if removed is not None else ""
        made.findings.append(f"{label}: its run {version.run} was removed;{said} {missing}. Put it back from a copy.")
    elif approved is not None and approved.seq < told.seq:
        made.findings.append(f"{label}: its run {version.run} was {removed}, though it was approved before.")
    else:
        made.notes.append(
            f"{label} ({version.status}): its run {version.run} was {removed}; its files cannot be checked any more."
        )


class Verifier:
    """Checks runs of one store, reading each object once however many runs link it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.files = 0
        self.size_bytes = 0
        self._read: dict[tuple[int, int], FileFact] = {}

    def run(self, manifest: RunManifest) -> Iterator[str]:
        """A sentence about each thing in the run that is not as it was sealed."""
        folder = self.store.folder(manifest.run)
        for state in manifest.steps:
            yield from self._step(manifest, state)
        for key, fact in manifest.sources.items():
            if fact.present and not (fact.stamp or fact.listed) and fact.artifact is not None and fact.as_ == "path":
                for part in facts_of(fact.artifact).values():
                    yield from self._file(
                        self.store.objects / part.sha256, part, f"{manifest.run}: the bytes kept of {key}"
                    )
        if manifest.verdict is not None:
            verdict_file = folder / "verdict.json"
            if not verdict_file.exists() or verdict_file.read_bytes() != encode(manifest.verdict):
                yield f"{manifest.run}: verdict.json is not the verdict in run.json."
            yield from _judged_again(manifest)
        for path in strangers(manifest, self.store):
            yield f"{manifest.run}: {path} was added; nothing that was recorded says what it is. Remove it."

    def version(self, version: ModelVersion, manifest: RunManifest) -> Iterator[str]:
        """A sentence about each way in which the version is not what its run made."""
        name = version.label
        made = model_artifact(manifest)
        if made is None or made.sha256 != version.sha256:
            yield f"{name}: run {manifest.run} made another model than the one registered."
        if version.metrics != manifest.metrics:
            yield f"{name}: its metrics are not those of run {manifest.run}."
        sources = {key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact}
        if version.sources != sources:
            yield f"{name}: the hashes of its data are not those of run {manifest.run}."
        here = found_here(self.store.folder(version.run), version.artifact, self.store)
        for relative, fact in files_of(version.artifact):
            place = self.store.folder(version.run) / relative
            yield from self._file(place, fact, name) if here else self._elsewhere(fact, name)

    def _step(self, manifest: RunManifest, state: StepState) -> Iterator[str]:
        folder = run_folder.step_folder(self.store, manifest.run, state.name)
        where = f"{manifest.run} {state.name}"
        for name, sha256 in state.snapshot.items():
            path = folder / name
            try:
                if self._fact(path).sha256 != sha256:
                    yield f"{where}: {path} was altered."
            except (OSError, RunnerError):
                yield f"{where}: {path} is missing."
        if state.result is None:
            return
        sealed = [state.result]
        if state.result.error is not None and state.result.error.kind == "refused":  # after it was sealed
            sealed.append(msgspec.structs.replace(state.result, error=None))
        yield from self._record(folder / run_folder.RESULT, sealed, where)
        if state.job is not None:
            yield from self._record(folder / run_folder.JOB, [state.job], where)
        executed = [state.result.executed] if state.result.executed else []
        for artifact in (*state.result.outputs.values(), *executed):
            here = found_here(folder, artifact, self.store)
            for relative, fact in files_of(artifact):
                yield from self._file(folder / relative, fact, where) if here else self._elsewhere(fact, where)
        if state.result.executed is not None and (folder / "executed.ipynb").exists():
            try:
                scraps = read_scraps(folder / "executed.ipynb")
            except RunnerError as error:
                yield f"{where}: {error}"
                return
            if (scraps.metrics, scraps.problems) != (state.result.metrics, state.result.problems):
                yield f"{where}: its metrics are not those in its executed notebook."
        recorded = {
            name.partition(".")[2]: m for name, m in manifest.metrics.items() if name.startswith(f"{state.name}.")
        }
        if recorded != state.result.metrics:
            yield f"{where}: its metrics in run.json are not those it recorded."

    def _record(self, path: Path, expected: Sequence[StepJob] | Sequence[StepResult], where: str) -> Iterator[str]:
        try:
            found = read(type(expected[0]), path)
        except FileNotFoundError:
            yield f"{where}: {path} is missing."
        except RunnerError as error:
            yield f"{where}: {error}"
        else:
            if found not in expected:
                yield f"{where}: {path} does not say what run.json says."

    def _file(self, path: Path, fact: FileFact, where: str) -> Iterator[str]:
        try:
            found = self._fact(path)
        except (OSError, RunnerError):
            yield f"{where}: {path} is missing."
            return
        if found != fact:
            yield f"{where}: {path} was altered: sha256 {found.sha256[:12]}, recorded {fact.sha256[:12]}."

    def _elsewhere(self, fact: FileFact, where: str) -> Iterator[str]:
        """Read where it lies; the bytes are not kept."""
        address = self.store.address(fact)
        if self.store.here(fact) or address is None or self.store.remote is None:
            yield from self._file(self.store.objects / fact.sha256, fact, where)
            return
        try:
            found = self.store.remote.digest(address)
        except RunnerError as error:
            yield f"{where}: {error}"
            return
        self.files += 1
        self.size_bytes += found.size_bytes
        if found != fact:
            yield f"{where}: {address} was altered: sha256 {found.sha256[:12]}, recorded {fact.sha256[:12]}."

    def _fact(self, path: Path) -> FileFact:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in self._read:
            self._read[key] = file_fact(path)
            self.files += 1
            self.size_bytes += status.st_size
        return self._read[key]


def _judged_again(manifest: RunManifest) -> Iterator[str]:
    assert manifest.verdict is not None
    present = {
        f"{state.name}.{name}"
        for state in manifest.steps
        if state.job is not None
        for name, fact in state.job.inputs.items()
        if fact.present
    }
    again = judge(manifest.metrics, manifest.pipeline.gate, problems=manifest.problems, present=present)
    if again.outcome != manifest.verdict.outcome:
        yield f"{manifest.run}: its metrics give the verdict {again.outcome}, not {manifest.verdict.outcome}."
