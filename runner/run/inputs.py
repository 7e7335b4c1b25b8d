"""The bytes that a step read, copied again: from the store's objects, or from the source while it is unchanged."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from runner.content import artifact, file_fact
from runner.errors import Refused, RunnerError, Tampered
from runner.manifest import RunManifest
from runner.notebook.source import read_notebook
from runner.pipeline.addresses import WITHHELD
from runner.pipeline.file import is_address
from runner.records import InputFact, Value
from runner.run import folder as run_folder
from runner.run.store import Store, facts_of


def recorded_input(manifest: RunManifest, step: str, name: str) -> InputFact:
    """The input as it was pinned when the run started, or as an earlier step made it.

    One whose bytes were never on this machine is given as the step found it, where it ran.
    """
    state = manifest.step(step)
    assert state.job is not None
    pinned = manifest.sources.get(f"{step}.{name}", state.job.inputs[name])
    if pinned.listed and pinned.as_ == "path" and state.result is not None:
        return state.result.inputs.get(name, pinned)
    return pinned


def parameters(manifest: RunManifest, step: str, store: Store) -> dict[str, Value]:
    """The step's parameters: those of its job, and the defaults of its copy of the notebook; without secrets."""
    state = manifest.step(step)
    assert state.job is not None
    job, notebook = state.job, read_notebook(run_folder.step_folder(store, manifest.run, step) / run_folder.SOURCE)
    return {
        name: job.parameters.get(name, declared.default)
        for name, declared in notebook.parameters.items()
        if name not in {*job.inputs, *job.outputs}
        and not declared.secret
        and (name in job.parameters or declared.has_literal_default)
    }


def origin(fact: InputFact, where: str, store: Store) -> Path | None:
    """None where the store has the bytes (by size; `copy` reads them), otherwise the source that still has them.

    Raises Refused where they are not available any more; `where` names the input.
    """
    assert fact.artifact is not None
    with contextlib.suppress(Tampered):
        for part in facts_of(fact.artifact).values():
            store.object(part)
        return None
    if is_address(fact.source):
        raise Refused(
            f"{where} was fetched from {fact.source} (sha256 {fact.artifact.sha256[:12]}), and its bytes are not in "
            f"the store any more. {_remedy(fact.source)}"
        )
    source = Path(fact.source)
    with contextlib.suppress(OSError, RunnerError):
        if source.is_absolute() and artifact(source, name=source.name).sha256 == fact.artifact.sha256:
            return source
    raise Refused(
        f"{where} was {fact.source} (sha256 {fact.artifact.sha256[:12]}), which has changed or is gone, and the run "
        "kept no copy. Put it back, or write `keep = true` at that input for runs to come."
    )


def _remedy(address: str) -> str:
    if WITHHELD in address:
        return f"Its credentials are in no record ({WITHHELD}): start anew with `runner run` and the whole address."
    return "Start anew with `runner run`, which fetches it again."


def copy(fact: InputFact, target: Path, where: str, store: Store) -> None:
    """Copy the input's bytes to `target`, checked; what is there is replaced.

    Raises Refused as `origin`, and Tampered where the bytes do not have their recorded hash.
    """
    assert fact.artifact is not None
    outside = origin(fact, where, store)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    for relative, part in facts_of(fact.artifact).items():
        place = target / relative
        source = store.object(part) if outside is None else outside / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copyfile(source, place)
        if file_fact(place) != part:
            raise Tampered(f"{source} has other bytes than were recorded ({part.sha256[:12]}).")
