"""What lies in a run's folder, as its manifest says: records, and the places of objects; and whether that can be.

    run.json  pipeline.toml  verdict.json                                       of the run
    steps/<step>/notebook.ipynb  modules/…  job.json  result.json               of each step, as far as it came
    steps/<step>/in/<name>  out/…  executed.ipynb                               objects

Whatever else is there, pages, logs and locks, was made from these or is of the moment: it is not carried elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import msgspec

from runner.content import folder_artifact
from runner.errors import Tampered
from runner.manifest import RunManifest, StepState
from runner.records import Artifact
from runner.run import folder as run_folder
from runner.run.ids import RUN_ID
from runner.run.inputs import recorded_input
from runner.run.orchestrate import VERDICT_FILE
from runner.run.store import MANIFEST, files_of
from runner.step.execute import EXECUTED


def records(manifest: RunManifest) -> dict[str, str | None]:
    """The run's files that are not objects, by path in its folder; the hash where the manifest has it."""
    found: dict[str, str | None] = {MANIFEST: None, run_folder.PIPELINE: None}
    if manifest.verdict is not None:
        found[VERDICT_FILE] = None
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        found |= {f"{at}/{name}": sha256 for name, sha256 in state.snapshot.items()}
        if state.job is not None:
            found[f"{at}/{run_folder.JOB}"] = None
        if state.result is not None:
            found[f"{at}/{run_folder.RESULT}"] = None
    return found


def placed(manifest: RunManifest) -> Iterator[Artifact]:
    """What lies in the run's folder as objects, under its path there."""
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        for name in state.job.inputs if state.job is not None else ():
            artifact = given(manifest, state, name)
            if artifact is not None:
                slash = "/" if artifact.files is not None else ""
                yield msgspec.structs.replace(artifact, path=f"{at}/in/{name}{slash}")
        for artifact in state.result.artifacts() if state.result is not None else ():
            yield msgspec.structs.replace(artifact, path=f"{at}/{artifact.path}")


def given(manifest: RunManifest, state: StepState, name: str) -> Artifact | None:
    """An input of the step by content; None for one that is absent, an address, or known by its listing alone."""
    assert state.job is not None
    fact = recorded_input(manifest, state.name, name)
    if not state.job.inputs[name].present or fact.as_ == "uri" or fact.listed:
        return None
    return fact.artifact


def kept(manifest: RunManifest) -> Iterator[Artifact]:
    """Sources whose bytes stay with the run, also where no step has read them."""
    for fact in manifest.sources.values():
        if fact.present and fact.artifact is not None and fact.as_ == "path" and not (fact.stamp or fact.listed):
            yield fact.artifact


def check(manifest: RunManifest) -> None:
    """Raises Tampered where the manifest contradicts itself, or tells of files that no run has or two at one place."""
    if RUN_ID.match(manifest.run) is None:
        raise Tampered(f"{manifest.run!r} is not the id of a run.")
    names = [state.name for state in manifest.steps]
    if len(set(names)) < len(names) or not set(names) <= set(manifest.pipeline.steps):
        raise Tampered(f"The steps of run {manifest.run} are not those of its pipeline.")
    for state in manifest.steps:
        said = _contradiction(manifest, state)
        if said:
            raise Tampered(f"{manifest.run} {state.name}: {said}.")
    for artifact in (*placed(manifest), *kept(manifest)):
        _of_its_files(artifact)
    _apart(manifest)


def _contradiction(manifest: RunManifest, state: StepState) -> str:
    """What of a step's record cannot be, in words; "" for nothing."""
    spec = manifest.pipeline.steps[state.name]
    for name in state.snapshot:
        if name != run_folder.SOURCE and not name.startswith(f"{run_folder.MODULES}/"):
            return f"{name} is neither its notebook nor a module"
    if state.job is not None and (state.job.step != state.name or state.job.outputs != spec.outputs):
        return f"its {run_folder.JOB} is another step's"
    for name, fact in state.job.inputs.items() if state.job is not None else ():
        if fact.present and fact.as_ == "path" and fact.value != f"in/{name}":
            return f"input {name} lies at {fact.value!r}"
    if state.result is not None:
        for name, output in state.result.outputs.items():
            if output.path != f"out/{spec.outputs.get(name)}":
                return f"output {name} lies at {output.path!r}"
        if state.result.executed is not None and state.result.executed.path != EXECUTED:
            return f"its executed notebook lies at {state.result.executed.path!r}"
    return ""


def _of_its_files(artifact: Artifact) -> None:
    """Raises Tampered where a folder's hash is not the one of its files."""
    if artifact.files is None:
        return
    made = folder_artifact(artifact.path, artifact.files)
    if (made.sha256, made.size_bytes) != (artifact.sha256, artifact.size_bytes):
        raise Tampered(f"{artifact.path} has another hash than its files give.")


def _apart(manifest: RunManifest) -> None:
    """Raises Tampered where two files would lie at one place, or one in the place of another's folder."""
    paths = [*records(manifest), *(path for artifact in placed(manifest) for path, _ in files_of(artifact))]
    files = {PurePosixPath(path).as_posix() for path in paths}
    folders: set[str] = set()
    for path in files:
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    if len(files) < len(paths) or files & folders:
        raise Tampered(f"Two files of run {manifest.run} would lie at one place.")
