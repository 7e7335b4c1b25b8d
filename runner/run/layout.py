"""What is in a run's folder by its manifest: records, and the paths of objects; and whether the manifest is possible.

    run.json  pipeline.toml  verdict.json                                       of the run
    steps/<step>/notebook.ipynb  modules/…  job.json  result.json               of each step, as far as it came
    steps/<step>/in/<name>  out/…  executed.ipynb                               objects
    steps/<step>/keys/<folder>/state.json  executed.ipynb                       objects, of a mapped step

Everything else there, pages, logs and locks, is made from these or temporary, and is not copied elsewhere.
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
    hashes: dict[str, str | None] = {MANIFEST: None, run_folder.PIPELINE: None}
    if manifest.verdict is not None:
        hashes[VERDICT_FILE] = None
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        hashes |= {f"{at}/{name}": sha256 for name, sha256 in state.snapshot.items()}
        if state.job is not None:
            hashes[f"{at}/{run_folder.JOB}"] = None
        if state.result is not None:
            hashes[f"{at}/{run_folder.RESULT}"] = None
    return hashes


def placed(manifest: RunManifest) -> Iterator[Artifact]:
    """The objects in the run's folder, each under its path there."""
    for state in manifest.steps:
        at = f"{run_folder.STEPS}/{state.name}"
        for name in state.job.inputs if state.job is not None else ():
            artifact = input_artifact(manifest, state, name)
            if artifact is not None:
                slash = "/" if artifact.files is not None else ""
                yield msgspec.structs.replace(artifact, path=f"{at}/in/{name}{slash}")
        for artifact in state.result.artifacts() if state.result is not None else ():
            yield msgspec.structs.replace(artifact, path=f"{at}/{artifact.path}")


def input_artifact(manifest: RunManifest, state: StepState, name: str) -> Artifact | None:
    """An input of the step by content; None for one that is absent, an address, or known by its listing alone."""
    assert state.job is not None
    fact = recorded_input(manifest, state.name, name)
    if not state.job.inputs[name].present or fact.as_ == "uri" or fact.listed:
        return None
    return fact.artifact


def kept(manifest: RunManifest) -> Iterator[Artifact]:
    """Sources whose bytes stay with the run, also those that no step has read."""
    for fact in manifest.sources.values():
        if fact.kept is not None:
            yield fact.kept


def check(manifest: RunManifest) -> None:
    """Raises Tampered where the manifest contradicts itself, or names impossible files or two at one path."""
    if RUN_ID.match(manifest.run) is None:
        raise Tampered(f"{manifest.run!r} is not the id of a run.")
    names = [state.name for state in manifest.steps]
    if len(set(names)) < len(names) or not set(names) <= set(manifest.pipeline.steps):
        raise Tampered(f"The steps of run {manifest.run} are not those of its pipeline.")
    for state in manifest.steps:
        contradiction = _contradiction(manifest, state)
        if contradiction:
            raise Tampered(f"{manifest.run} {state.name}: {contradiction}.")
    for artifact in (*placed(manifest), *kept(manifest)):
        again = artifact if artifact.files is None else folder_artifact(artifact.path, artifact.files)
        if (again.sha256, again.size_bytes) != (artifact.sha256, artifact.size_bytes):
            raise Tampered(f"{artifact.path} has another hash than its files give.")
    _check_paths(manifest)


def _contradiction(manifest: RunManifest, state: StepState) -> str:
    """What is impossible in a step's record, in words; "" for nothing."""
    spec = manifest.pipeline.steps[state.name]
    for name in state.snapshot:
        if name != run_folder.SOURCE and not name.startswith(f"{run_folder.MODULES}/"):
            return f"{name} is neither its notebook nor a module"
    if state.job is not None and (state.job.step != state.name or state.job.outputs != spec.outputs):
        return f"its {run_folder.JOB} is another step's"
    for name, fact in state.job.inputs.items() if state.job is not None else ():
        if fact.is_file and fact.value != f"in/{name}":
            return f"input {name} lies at {fact.value!r}"
    if state.result is not None:
        for name, output in state.result.outputs.items():
            if output.path != (f"out/{name}/" if spec.map else f"out/{spec.outputs.get(name)}"):
                return f"output {name} lies at {output.path!r}"
        mapped = state.result.mapped
        if mapped is not None and (not spec.map or mapped.files.path != f"{run_folder.KEYS}/"):
            return f"its keys lie at {mapped.files.path!r}"
        if state.result.executed is not None and state.result.executed.path != EXECUTED:
            return f"its executed notebook lies at {state.result.executed.path!r}"
    return ""


def _check_paths(manifest: RunManifest) -> None:
    """Raises Tampered where two files would have one path, or a file the path of another's folder."""
    paths = [*records(manifest), *(path for artifact in placed(manifest) for path, _ in files_of(artifact))]
    files = {PurePosixPath(path).as_posix() for path in paths}
    folders: set[str] = set()
    for path in files:
        while (path := path.rpartition("/")[0]) and path not in folders:
            folders.add(path)
    if len(files) < len(paths) or files & folders:
        raise Tampered(f"Two files of run {manifest.run} would lie at one place.")
