"""Whether everything that was sealed is still what it was: files, records, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from runner.content import file_fact
from runner.errors import RunnerError
from runner.gate import judge
from runner.manifest import KeyState, RunManifest, StepState, recorded
from runner.model.events import verify_chain
from runner.model.registry import LocalRegistry
from runner.model.versions import Event, ModelVersion, Registry
from runner.notebook.recorded import read_scraps
from runner.records import Artifact, FileFact, KeyResult, StepJob, StepResult, encode, read
from runner.run import folder as run_folder
from runner.run import mapped, removal
from runner.run.contents import unknown_files
from runner.run.orchestrate import VERDICT_FILE
from runner.run.registration import model_artifact
from runner.run.store import Store, facts_of, files_of, is_fetched
from runner.step.execute import EXECUTED


@dataclass
class Verification:
    """`findings` are what is not as it was sealed; `notes` what could not be checked for a good reason."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings


def verify(store: Store, registry: Registry, reference: str | None) -> Verification:
    """One run or version, or every run, version and event where `reference` is None."""
    result, verifier = Verification(), Verifier(store)
    name, slash, number = (reference or "").partition("/")
    versions: Sequence[ModelVersion] = []
    if slash and number.isdecimal():
        versions = [registry.get(name, int(number))]
        runs = [version.run for version in versions if store.folder(version.run).exists()]
    elif reference is not None:
        runs = [store.find(reference)]
    else:
        runs = [run for run in store.runs() if store.begun(run)]
        try:
            versions = registry.list()
        except RunnerError as error:
            result.findings.append(str(error))
    for run in runs:
        try:
            result.findings += verifier.run(store.manifest(run))
        except RunnerError as error:
            result.findings.append(str(error))
    histories = {model: registry.events(model) for model in sorted({version.name for version in versions})}
    for model, events in histories.items():
        broken = verify_chain(events)
        if broken is not None:
            result.findings.append(f"{model}: {broken}")
    for version in versions:
        try:
            if store.folder(version.run).exists():
                result.findings += verifier.version(version, store.manifest(version.run))
            else:
                _without_run(version, histories[version.name], registry, store, result)
        except RunnerError as error:
            result.findings.append(f"{version.label}: {error}")
    if isinstance(registry, LocalRegistry) and (versions or reference is None):
        result.findings += registry.differences(name if reference is not None else None)
    result.files, result.size_bytes = verifier.files, verifier.size_bytes
    return result


def _without_run(
    version: ModelVersion, events: Sequence[Event], registry: Registry, store: Store, result: Verification
) -> None:
    """Add who removed the version's run, or the finding that no record says so."""
    label, removed = version.label, removal.find(store.root, version.run)
    own = [event for event in events if event.version == version.version]
    recorded = next((e for e in own if e.kind == removal.EVENT and e.data.get("run") == version.run), None)
    approved = next((event for event in own if event.kind == "approved"), None)
    if not isinstance(registry, LocalRegistry):  # several people have it, and each only some of the runs
        why = f" It was {removed}." if removed is not None else ""
        result.notes.append(f"{label} ({version.status}): its run {version.run} is not on this machine.{why}")
    elif removed is None:
        result.findings.append(
            f"{label}: its run {version.run} was removed; `runner gc` did not do it. Put it back from a copy."
        )
    elif recorded is None:
        result.findings.append(
            f"{label}: its run {version.run} was removed; {store.root / removal.REMOVED} has it that it was {removed}, "
            f"but the history of {version.name} does not say so. Put it back from a copy."
        )
    elif approved is not None and approved.seq < recorded.seq:
        result.findings.append(f"{label}: its run {version.run} was {removed}, though it was approved before.")
    else:
        result.notes.append(
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
        for state in manifest.steps:
            yield from self._step(manifest, state)
        for key, fact in manifest.sources.items():
            for part in facts_of(fact.kept).values() if fact.kept is not None else ():
                where = f"{manifest.run}: the bytes kept of {key}"
                yield from self._file(self.store.objects / part.sha256, part, where)
        if manifest.verdict is not None:
            verdict_file = self.store.folder(manifest.run) / VERDICT_FILE
            if not verdict_file.exists() or verdict_file.read_bytes() != encode(manifest.verdict):
                yield f"{manifest.run}: verdict.json is not the verdict in run.json."
            yield from _judged_again(manifest)
        for path in unknown_files(manifest, self.store):
            yield f"{manifest.run}: {path} was added; nothing that was recorded says what it is. Remove it."

    def version(self, version: ModelVersion, manifest: RunManifest) -> Iterator[str]:
        """A sentence about each way in which the version is not what its run made."""
        name = version.label
        model = model_artifact(manifest)
        if model is None or model.sha256 != version.sha256:
            yield f"{name}: run {manifest.run} made another model than the one registered."
        if version.metrics != manifest.metrics:
            yield f"{name}: its metrics are not those of run {manifest.run}."
        sources = {key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact}
        if version.sources != sources:
            yield f"{name}: the hashes of its data are not those of run {manifest.run}."
        yield from self._artifact(self.store.folder(version.run), version.artifact, name)

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
        if state.job is not None and state.result is not None:
            yield from self._record(folder / run_folder.JOB, [state.job], where)
        if state.result is not None:
            yield from self._result(folder, state.result, where)
            metrics = {name: metric for name, metric in manifest.metrics.items() if name.startswith(f"{state.name}.")}
            if metrics != recorded({state.name: state.result})[0]:
                yield f"{where}: its metrics in run.json are not those it recorded."

    def _result(self, folder: Path, result: StepResult, where: str) -> Iterator[str]:
        sealed = [result]
        if result.error is not None and result.error.kind == "refused":  # after it was sealed
            sealed.append(msgspec.structs.replace(result, error=None))
        yield from self._record(folder / run_folder.RESULT, sealed, where)
        for artifact in result.artifacts():
            yield from self._artifact(folder, artifact, where)
        if result.executed is not None and (folder / EXECUTED).exists():
            try:
                scraps = read_scraps(folder / EXECUTED)
            except RunnerError as error:
                yield f"{where}: {error}"
            else:
                if (scraps.metrics, scraps.problems) != (result.metrics, result.problems):
                    yield f"{where}: its metrics are not those in its executed notebook."
        for line in result.mapped.keys if result.mapped is not None else ():
            if mapped.state_path(folder, line.folder).exists():  # else its file is missing, or elsewhere
                yield from self._key(folder, line, f"{where} {line.folder}")

    def _key(self, folder: Path, line: KeyResult, where: str) -> Iterator[str]:
        """What a key's files say other than run.json."""
        path = mapped.state_path(folder, line.folder)
        try:
            state = read(KeyState, path)
            executed = path.with_name(EXECUTED)
            scraps = read_scraps(executed) if executed.exists() else None
        except RunnerError as error:
            yield f"{where}: {error}"
            return
        if mapped.line(state) != line:
            yield f"{where}: {path} does not say what run.json says."
        if scraps is not None and (scraps.metrics, scraps.problems) != (line.metrics, line.problems):
            yield f"{where}: its metrics are not those in its executed notebook."

    def _artifact(self, folder: Path, artifact: Artifact, where: str) -> Iterator[str]:
        fetched = is_fetched(folder, artifact, self.store)
        for relative, fact in files_of(artifact):
            yield from self._file(folder / relative, fact, where) if fetched else self._elsewhere(fact, where)

    def _record(self, path: Path, expected: Sequence[StepJob] | Sequence[StepResult], where: str) -> Iterator[str]:
        try:
            record = read(type(expected[0]), path)
        except FileNotFoundError:
            yield f"{where}: {path} is missing."
        except RunnerError as error:
            yield f"{where}: {error}"
        else:
            if record not in expected:
                yield f"{where}: {path} does not say what run.json says."

    def _file(self, path: Path, fact: FileFact, where: str) -> Iterator[str]:
        try:
            now = self._fact(path)
        except (OSError, RunnerError):
            yield f"{where}: {path} is missing."
            return
        if now != fact:
            yield f"{where}: {path} was altered: sha256 {now.sha256[:12]}, recorded {fact.sha256[:12]}."

    def _elsewhere(self, fact: FileFact, where: str) -> Iterator[str]:
        """Read the object at its address; the bytes are not kept."""
        address = self.store.address(fact)
        if self.store.has(fact) or address is None or self.store.remote is None:
            yield from self._file(self.store.objects / fact.sha256, fact, where)
            return
        try:
            now = self.store.remote.digest(address)
        except RunnerError as error:
            yield f"{where}: {error}"
            return
        self.files += 1
        self.size_bytes += now.size_bytes
        if now != fact:
            yield f"{where}: {address} was altered: sha256 {now.sha256[:12]}, recorded {fact.sha256[:12]}."

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
    present = manifest.present_inputs()
    again = judge(
        manifest.metrics,
        manifest.pipeline.gate,
        problems=manifest.problems,
        present=present,
        keyed=manifest.keyed(),
    )
    if again.outcome != manifest.verdict.outcome:
        yield f"{manifest.run}: its metrics give the verdict {again.outcome}, not {manifest.verdict.outcome}."
