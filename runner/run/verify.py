"""Whether everything that was sealed is still what it was: files, records, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runner.content import file_fact
from runner.errors import RunnerError
from runner.gate import judge
from runner.manifest import RunManifest, StepState
from runner.model.versions import ModelVersion
from runner.pipeline.scraps import read_scraps
from runner.records import FileFact, StepJob, StepResult, encode, read
from runner.run import folder as run_folder
from runner.run.registration import model_artifact
from runner.run.store import Store, facts_of, files_of, found_here


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

    def version(self, version: ModelVersion, manifest: RunManifest) -> Iterator[str]:
        """A sentence about each way in which the version is not what its run made."""
        name = f"{version.name}/{version.version}"
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
        yield from self._record(folder / run_folder.RESULT, state.result, where)
        if state.job is not None:
            yield from self._record(folder / run_folder.JOB, state.job, where)
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

    def _record(self, path: Path, expected: StepJob | StepResult, where: str) -> Iterator[str]:
        try:
            found = read(type(expected), path)
        except FileNotFoundError:
            yield f"{where}: {path} is missing."
        except RunnerError as error:
            yield f"{where}: {error}"
        else:
            if found != expected:
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
