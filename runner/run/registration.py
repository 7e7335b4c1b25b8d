"""Registering the model of a run that passed, once, by the run's owner; and the status of its version now.

A step asks for it, or, where no step of the pipeline does, the run itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from runner.errors import Refused, RunnerError, Tampered, UsageError
from runner.manifest import ModelVersionRef, RunManifest
from runner.model.events import verify_chain
from runner.model.files import check_files
from runner.model.registry_rules import versions_of
from runner.model.versions import Claim, Event, ModelVersion, NewVersion, Registry
from runner.pipeline.registering import registers_itself
from runner.records import Artifact, FileFact, Registration
from runner.run.card import card, description
from runner.run.store import facts_of


def commit(
    manifest: RunManifest,
    request: Registration,
    registry: Registry,
    *,
    content: Callable[[FileFact], Path] | None,
    from_run: str | None = None,
) -> ModelVersionRef:
    """Register what the step asked for. Idempotent.

    `content` gives a file of the model by its fact; None where the registry checks the files itself. For a cached
    result the version that `from_run` registered is returned, unless the registry no longer has it.

    Raises Refused as `new_version`, and where the files are not a model that can be approved.
    """
    new = new_version(manifest, request)
    known = versions_of(registry, new.name) if from_run is not None else ()
    same = (v for v in known if (v.run, v.sha256) == (from_run, new.sha256))
    return _registered(new, registry, same, content)


def commit_unasked(
    manifest: RunManifest, request: Registration, registry: Registry, *, content: Callable[[FileFact], Path] | None
) -> ModelVersionRef:
    """Register what the run itself asks for, its `own_request`. Idempotent.

    A model that came from an earlier run, with the same metrics on the same data, stays the version that it is. Raises
    as `commit`.
    """
    new = new_version(manifest, request)
    assert manifest.pipeline.model is not None
    is_new = manifest.step(manifest.pipeline.model.from_.partition(".")[0]).status != "cached"
    evidence = (new.sha256, new.metrics, new.sources)
    known = () if is_new else versions_of(registry, new.name)
    same = (v for v in known if (v.sha256, v.metrics, v.sources) == evidence)
    return _registered(new, registry, (version for version in same if version.imported is None), content)


def own_request(manifest: RunManifest) -> Registration | None:
    """What a run that passed asks to register by itself, with a card made from its records; None where a step does
    that, or there is no model."""
    registering = [state.name for state in manifest.steps if state.registers]
    model = model_artifact(manifest)
    passed = manifest.verdict is not None and manifest.verdict.outcome == "pass"
    if model is None or not passed or not registers_itself(manifest.pipeline, registering):
        return None
    return Registration(model_sha256=model.sha256, card=card(manifest, model), description=description(manifest))


def _registered(
    new: NewVersion,
    registry: Registry,
    same: Iterator[ModelVersion],
    content: Callable[[FileFact], Path] | None,
) -> ModelVersionRef:
    if content is not None:
        _check_approvable(new.artifact, content)
    version = next(same, None) or registry.register(new)
    return ModelVersionRef(name=version.name, version=version.version, status=version.status)


def new_version(manifest: RunManifest, request: Registration) -> NewVersion:
    """What is to be registered. The version of an imported run is created by whoever imported it.

    Raises Refused where the run did not pass, has no [model], or the notebook registered other bytes than
    [model] from names.
    """
    model = manifest.pipeline.model
    if model is None:
        raise Refused("A notebook called runner.model.register, but pipeline.toml has no [model] to say its name.")
    if manifest.verdict is None or manifest.verdict.outcome != "pass":
        outcome = manifest.verdict.outcome if manifest.verdict else "none"
        remedy = "There is no [[gate]] in pipeline.toml; write what the model has to reach."
        raise Refused(
            f"Only a run that passed its gate registers a model; the verdict of {manifest.run} is {outcome}."
            + ("" if manifest.pipeline.gate else f" {remedy}")
        )
    artifact = model_artifact(manifest)
    if artifact is None or artifact.sha256 != request.model_sha256:
        raise Refused(
            f"The folder handed to runner.model.register is not the one that [model] from = {model.from_!r} names. "
            "Pass the input that comes from it."
        )
    imported = manifest.imported
    claim = Claim(project=manifest.pipeline.name, started_by=manifest.started_by, identity=manifest.identity)
    return NewVersion(
        name=model.name,
        run=manifest.run,
        sha256=artifact.sha256,
        artifact=artifact,
        metrics=manifest.metrics,
        created_by=manifest.started_by if imported is None else imported.who,
        identity=manifest.identity if imported is None else imported.identity,
        commit=manifest.git.commit if manifest.git else None,
        sources={key: fact.artifact.sha256 for key, fact in manifest.sources.items() if fact.artifact},
        description=f"Profile {manifest.profile}: {request.description}" if manifest.profile else request.description,
        card=request.card,
        imported=None if imported is None else claim,
    )


def claimed(manifest: RunManifest, events: Sequence[Event]) -> NewVersion:
    """The version of an imported run, with its history elsewhere: those of `events`, its name's, that are about it.

    Raises Tampered where the history is broken or not the run's, Refused as `new_version`.
    """
    broken = verify_chain(events)
    if broken is not None:
        raise Tampered(f"The history of {events[0].name} was altered: {broken}")
    registered = [event for event in events if event.kind == "registered" and event.data.get("run") == manifest.run]
    request = step_request(manifest) or own_request(manifest)
    if not registered or request is None or any(event.name != registered[0].name for event in events):
        raise Tampered(f"The history of {events[0].name} that came with run {manifest.run} does not know that run.")
    new, event = new_version(manifest, request), registered[0]
    if (new.name, new.sha256) != (event.name, event.data.get("sha256")):
        raise Tampered(f"{event.name}/{event.version} is not the model that run {manifest.run} made.")
    own = [other for other in events if other.version == event.version]
    assert new.imported is not None
    return replace(new, imported=replace(new.imported, version=event.version, events=own))


def step_request(manifest: RunManifest) -> Registration | None:
    """What the step that called runner.model.register asks for."""
    results = (state.result for state in manifest.steps if state.result is not None)
    return next((result.registration for result in results if result.registration is not None), None)


def not_registered(manifest: RunManifest) -> str:
    """Why a run that passed its gate has registered no model, and how one is; "" where there is nothing to say."""
    passed = manifest.verdict is not None and manifest.verdict.outcome == "pass"
    if not passed or manifest.status != "succeeded" or manifest.pipeline.model is None or manifest.model_version:
        return ""
    by = f", judged by the gate of profile {manifest.profile}" if manifest.profile else ""
    afterwards = f"`runner register {manifest.run}` does it now{by}."
    registering = [state for state in manifest.steps if state.registers]
    asked = step_request(manifest) is not None
    left_out = [state for state in registering if state.status == "skipped"]
    if not registering and not asked and model_artifact(manifest) is None:
        maker = manifest.pipeline.model.from_.partition(".")[0]
        return f"No model was registered: step {maker}, which makes it, did not run."
    if manifest.imported is not None:
        return f"No model was registered here: the run was imported without a version. {afterwards}"
    if not manifest.register and (asked or left_out or not registering):
        says = "--no-register says" if manifest.pipeline.model.register else "[model] register = false says"
        return f"No model was registered, as {says}. {afterwards}"
    if asked or not registering:  # the registration was refused, or the process ended before it
        return f"No model was registered. {afterwards}"
    if left_out:
        return f"No model was registered: step {left_out[0].name} did not run ({left_out[0].why}). {afterwards}"
    name = registering[0].name
    return f"No model was registered: step {name} ended without having called runner.model.register."


def _check_approvable(artifact: Artifact, content: Callable[[FileFact], Path]) -> None:
    path = Path(artifact.path)
    try:
        files = {name or path.name: content(fact).read_bytes() for name, fact in facts_of(artifact).items()}
        check_files(files, path)
    except Refused as error:
        raise Refused(
            f"{error} Nobody could approve it, so it is not registered. Write the folder with runner.model.save alone, "
            "which takes models of XGBoost, LightGBM and scikit-learn; for another model remove [model] from "
            "pipeline.toml, and the call of runner.model.register where a notebook has one: the run keeps it as an "
            "output of its step."
        ) from error


def model_artifact(manifest: RunManifest) -> Artifact | None:
    """The folder that [model] from names, with its path relative to the run's folder; None where there is none yet."""
    if manifest.pipeline.model is None:
        return None
    step, _, output = manifest.pipeline.model.from_.partition(".")
    state = manifest.find_step(step)
    if state is None or state.result is None or output not in state.result.outputs:
        return None
    artifact = state.result.outputs[output]
    return replace(artifact, path=f"steps/{step}/{artifact.path.rstrip('/')}")


def as_of_now(manifests: Sequence[RunManifest], registry: Registry) -> list[RunManifest]:
    """The runs with their versions' status now, to show, not to store; "unknown" if the registry cannot be read."""
    known: dict[str, Sequence[ModelVersion] | RunnerError] = {}
    for name in {manifest.model_version.name for manifest in manifests if manifest.model_version}:
        try:
            known[name] = registry.list(name)
        except UsageError:  # it has no such model
            known[name] = []
        except RunnerError as error:
            known[name] = error
    return [
        replace(manifest, model_version=_with_status_now(manifest, manifest.model_version, known))
        if manifest.model_version
        else manifest
        for manifest in manifests
    ]


def _with_status_now(
    manifest: RunManifest, then: ModelVersionRef, known: dict[str, Sequence[ModelVersion] | RunnerError]
) -> ModelVersionRef:
    versions, model = known[then.name], model_artifact(manifest)
    why = "the registry here does not have it"
    if isinstance(versions, RunnerError):
        versions, why = [], f"what it is now cannot be read: {versions}"
    for version in versions:
        if version.version == then.version and model is not None and version.sha256 == model.sha256:
            decision = {"decided_by": version.decided_by, "decided": version.decided}
            return replace(then, status=version.status, status_at_end=then.status, **decision)
    return replace(then, status="unknown", status_at_end=then.status, unknown=why)
