"""The step from a run that passed to a registered version, made once by the run's owner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from runner.errors import Refused, Tampered
from runner.manifest import ModelVersionRef, RunManifest
from runner.model.approval import check_files
from runner.model.events import verify_chain
from runner.model.versions import Claim, Event, NewVersion, Registry
from runner.pipeline.registering import HOW_TO_REGISTER
from runner.records import Artifact, FileFact, StepResult


def commit(
    manifest: RunManifest,
    result: StepResult,
    registry: Registry,
    *,
    content: Callable[[FileFact], Path] | None,
    from_run: str | None = None,
) -> ModelVersionRef:
    """Register what the step asked for; a second call gives the same version. `content` gives a file of the model by its
    fact, None where the registry looks at the files itself.

    A result taken `from_run` was registered by that run: that version is given, unless the registry no longer has it.

    Raises Refused as `new_version`, and where the files are not a model that can be approved.
    """
    new = new_version(manifest, result)
    if content is not None:
        _can_be_approved(new.artifact, content)
    known = registry.list() if from_run is not None else []
    for earlier in known:
        if (earlier.name, earlier.run, earlier.sha256) == (new.name, from_run, new.sha256):
            return ModelVersionRef(name=earlier.name, version=earlier.version, status=earlier.status)
    version = registry.register(new)
    return ModelVersionRef(name=version.name, version=version.version, status=version.status)


def new_version(manifest: RunManifest, result: StepResult) -> NewVersion:
    """What the step asks to register. Of an imported run it is whoever took it in who registers it here.

    Raises Refused where the run did not pass, has no [model], or the notebook registered other bytes than
    [model] from names.
    """
    model, asked = manifest.pipeline.model, result.registration
    assert asked is not None
    if model is None:
        raise Refused("A notebook called runner.model.register, but pipeline.toml has no [model] to say its name.")
    if manifest.verdict is None or manifest.verdict.outcome != "pass":
        said = manifest.verdict.outcome if manifest.verdict else "none"
        why = (
            ""
            if manifest.pipeline.gate
            else " There is no [[gate]] in pipeline.toml; write what the model has to reach."
        )
        raise Refused(
            f"Only a run that passed its gate registers a model; the verdict of {manifest.run} is {said}.{why}"
        )
    found = model_artifact(manifest)
    if found is None or found.sha256 != asked.model_sha256:
        raise Refused(
            f"The folder handed to runner.model.register is not the one that [model] from = {model.from_!r} names. "
            "Pass the input that comes from it."
        )
    here = manifest.imported
    claim = Claim(project=manifest.pipeline.name, started_by=manifest.started_by, identity=manifest.identity)
    return NewVersion(
        name=model.name,
        run=manifest.run,
        sha256=found.sha256,
        artifact=found,
        metrics=manifest.metrics,
        created_by=manifest.started_by if here is None else here.who,
        identity=manifest.identity if here is None else here.identity,
        commit=manifest.git.commit if manifest.git else None,
        sources={key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact},
        description=asked.description,
        card=asked.card,
        imported=None if here is None else claim,
    )


def claimed(manifest: RunManifest, events: Sequence[Event]) -> NewVersion:
    """The version that an imported run was where it comes from, with what `events`, its name's history, say of it.

    Raises Tampered where the history is not whole or not the run's, Refused as `new_version`.
    """
    broken = verify_chain(events)
    if broken is not None:
        raise Tampered(f"The history of {events[0].name} was altered: {broken}")
    made = next(
        (event for event in events if event.kind == "registered" and event.data.get("run") == manifest.run), None
    )
    asked = next((state.result for state in manifest.steps if state.result and state.result.registration), None)
    if made is None or asked is None or any(event.name != made.name for event in events):
        raise Tampered(f"The history of {events[0].name} that came with run {manifest.run} does not know that run.")
    new = new_version(manifest, asked)
    if (new.name, new.sha256) != (made.name, made.data.get("sha256")):
        raise Tampered(f"{made.name}/{made.version} is not the model that run {manifest.run} made.")
    own = [event for event in events if event.version == made.version]
    assert new.imported is not None
    return msgspec.structs.replace(
        new, imported=msgspec.structs.replace(new.imported, version=made.version, events=own)
    )


def not_registered(manifest: RunManifest) -> str:
    """Why a run that passed its gate has registered no model, and how one is; "" where there is nothing to say."""
    passed = manifest.verdict is not None and manifest.verdict.outcome == "pass"
    if not passed or manifest.status != "succeeded" or manifest.pipeline.model is None or manifest.model_version:
        return ""
    afterwards = f"`runner register {manifest.run}` does it now."
    registering = [state for state in manifest.steps if state.registers]
    asked = any(state.result is not None and state.result.registration is not None for state in manifest.steps)
    left_out = [state for state in registering if state.status == "skipped"]
    if not registering and not asked:
        return f"No model was registered: no step called runner.model.register. {HOW_TO_REGISTER}"
    if manifest.imported is not None:
        return f"No model was registered here: the run was taken in without a version. {afterwards}"
    if asked or (left_out and not manifest.register):
        return f"No model was registered, as --no-register says. {afterwards}"
    if left_out:
        return f"No model was registered: step {left_out[0].name} did not run ({left_out[0].why}). {afterwards}"
    name = registering[0].name
    return f"No model was registered: step {name} ended without having called runner.model.register."


def _can_be_approved(found: Artifact, content: Callable[[FileFact], Path]) -> None:
    facts = found.files or {Path(found.path).name: FileFact(sha256=found.sha256, size_bytes=found.size_bytes)}
    try:
        check_files({name: content(fact).read_bytes() for name, fact in facts.items()}, Path(found.path))
    except Refused as error:
        raise Refused(
            f"{error} Nobody could approve it, so it is not registered. Write the folder with runner.model.save alone, "
            "which takes XGBoost models; for another model remove [model] from pipeline.toml and the call of "
            "runner.model.register: the run keeps it as an output of its step."
        ) from error


def model_artifact(manifest: RunManifest) -> Artifact | None:
    """The folder that [model] from names, with its path relative to the run's folder; None where there is none yet."""
    if manifest.pipeline.model is None:
        return None
    step, _, output = manifest.pipeline.model.from_.partition(".")
    for state in manifest.steps:
        if state.name == step and state.result is not None and output in state.result.outputs:
            found = state.result.outputs[output]
            path = f"steps/{step}/{found.path.rstrip('/')}"
            return Artifact(path=path, sha256=found.sha256, size_bytes=found.size_bytes, files=found.files)
    return None
