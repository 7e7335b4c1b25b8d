"""The bytes a step was given, put somewhere again: from the store's objects, or from the source while it is unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

from runner.content import artifact, file_fact
from runner.errors import Refused, RunnerError, Tampered
from runner.manifest import RunManifest
from runner.notebook.source import read_notebook
from runner.pipeline.addresses import WITHHELD
from runner.pipeline.file import is_address
from runner.records import Artifact, InputFact, Value
from runner.run import folder as run_folder
from runner.run.store import Store, facts_of


def recorded(manifest: RunManifest, step: str, name: str) -> InputFact:
    """The input as it was pinned when the run started, or as it came from an earlier step.

    One whose bytes never came here is given as the step found it, where it ran.
    """
    state = next(state for state in manifest.steps if state.name == step)
    assert state.job is not None
    pinned = manifest.sources.get(f"{step}.{name}", state.job.inputs[name])
    if pinned.listed and pinned.as_ == "path" and state.result is not None:
        return state.result.inputs.get(name, pinned)
    return pinned


def parameters(manifest: RunManifest, step: str, store: Store) -> dict[str, Value]:
    """What the step's parameters were: those given, and the defaults of its own copy of the notebook; without secrets."""
    state = next(state for state in manifest.steps if state.name == step)
    assert state.job is not None
    own = read_notebook(run_folder.step_folder(store, manifest.run, step) / run_folder.SOURCE).parameters
    return {
        name: state.job.parameters.get(name, declared.default)
        for name, declared in own.items()
        if name not in state.job.inputs and name not in state.job.outputs and not declared.secret
        and (name in state.job.parameters or declared.has_literal_default)
    }  # fmt: skip


def held(found: Artifact, store: Store) -> bool:
    """Whether the store has all of its bytes (by size; `copy` reads them)."""
    try:
        for fact in facts_of(found).values():
            store.object(fact)
    except Tampered:
        return False
    return True


def origin(fact: InputFact, where: str, store: Store) -> Path | None:
    """None where the store has the bytes, otherwise the file or folder outside that still has them.

    Raises Refused where they are not to be had any more; `where` names the input.
    """
    assert fact.artifact is not None
    if held(fact.artifact, store):
        return None
    if is_address(fact.source):
        raise Refused(
            f"{where} was fetched from {fact.source} (sha256 {fact.artifact.sha256[:12]}), and its bytes are not in the "
            f"store any more. {_remedy(fact.source)}"
        )
    source = Path(fact.source)
    try:
        if source.is_absolute() and artifact(source, name=source.name).sha256 == fact.artifact.sha256:
            return source
    except (OSError, RunnerError):
        pass
    raise Refused(
        f"{where} was {fact.source} (sha256 {fact.artifact.sha256[:12]}), which has changed or is gone, and the run kept "
        "no copy. Put it back, or write `keep = true` at that input for runs to come."
    )


def _remedy(address: str) -> str:
    if WITHHELD in address:
        return f"What lets one in stands in no record ({WITHHELD}): start anew with `runner run` and the whole address."
    return "Start anew with `runner run`, which fetches it again."


def copy(fact: InputFact, target: Path, where: str, store: Store) -> None:
    """Write the input's bytes to `target` as files of their own, checked; what is there is replaced.

    Raises Refused as `origin`, and Tampered where an object has other bytes than its name says.
    """
    assert fact.artifact is not None
    outside = origin(fact, where, store)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    for relative, part in facts_of(fact.artifact).items():
        place = target / relative if relative else target
        source = store.object(part) if outside is None else outside / relative if relative else outside
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copyfile(source, place)
        if file_fact(place) != part:
            raise Tampered(f"{source} has other bytes than were recorded ({part.sha256[:12]}).")
