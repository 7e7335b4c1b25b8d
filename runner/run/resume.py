"""Continuing a run that has ended, from its own snapshot of code and parameters."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from runner.content import artifact
from runner.errors import Refused, RunnerError
from runner.manifest import RunManifest, StepState
from runner.notebook.source import read_notebook
from runner.records import InputFact
from runner.run import folder as run_folder
from runner.run import registration
from runner.run.contents import check_code
from runner.run.orchestrate import Steps
from runner.run.ports import Options, World
from runner.run.store import OWNED, Store, check


def resume(run_id: str, file: Path, options: Options, world: World) -> RunManifest:
    """Continue an interrupted or failed run from its first unsealed step. A run that succeeded is returned unchanged.

    Raises Refused where another process works on it, or a source it still needs has changed; Tampered where a sealed
    file was altered, or code that is still to run was altered or added.
    """
    store = world.store
    store.prepare()  # the run may be the first in this checkout
    if options.take_over:
        (store.folder(run_id) / OWNED).unlink(missing_ok=True)
    with store.lock(run_id):
        manifest = store.manifest_as_written(run_id)
        if manifest.status == "succeeded":
            if world.shared is not None:
                world.shared.push(manifest, ended=True)
            return manifest
        plan = run_folder.plan_again(manifest, store, file)
        for state in manifest.steps:
            for sealed in state.result.artifacts() if state.complete and state.result is not None else ():
                check(run_folder.step_folder(store, run_id, state.name), sealed, store)
        steps = [state if state.complete or state.status == "skipped" else _reopen(state) for state in manifest.steps]
        open_steps = {state.name for state in steps if state.status is None}
        for name in open_steps:
            check_code(manifest, name, store)
        for key, fact in manifest.sources.items():
            if key.partition(".")[0] in open_steps:
                _check_source(key, fact)
        manifest = replace(manifest, steps=steps, status="running", ended=None)
        options = dataclasses.replace(
            options, register=manifest.register, profile=manifest.profile, force=manifest.chosen.force
        )
        return Steps(plan, options, world, manifest).finish()


def register(run_id: str, file: Path, options: Options, world: World) -> RunManifest:
    """Register the model of a run that passed and did not register; steps that wait for the verdict run now.

    Raises Refused where the run did not pass. A run that has registered is returned unchanged.
    """
    store = world.store
    with store.lock(run_id):
        manifest = store.manifest_as_written(run_id)
        if manifest.model_version is not None:
            return manifest
        if manifest.status != "succeeded" or manifest.verdict is None or manifest.verdict.outcome != "pass":
            verdict = manifest.verdict.outcome if manifest.verdict else "none"
            raise Refused(
                f"Run {run_id} cannot be registered: its status is {manifest.status}, its verdict {verdict}. "
                "Only a run that passed its gate registers a model."
            )
        version = None
        if (request := registration.step_request(manifest)) is not None:
            version = registration.commit(manifest, request, world.registry, content=store.object)
        elif (request := registration.own_request(manifest)) is not None:
            version = registration.commit_unasked(manifest, request, world.registry, content=store.object)
        if version is not None:
            manifest = replace(manifest, model_version=version, register=True)
            store.write(manifest)
            return manifest
        plan = run_folder.plan_again(manifest, store, file)
        left_out = {step.name for step in plan.steps if step.needs_verdict}
        for name in left_out:
            check_code(manifest, name, store)
        steps = [replace(state, status=None, why="") if state.name in left_out else state for state in manifest.steps]
        manifest = replace(manifest, steps=steps, register=True, status="running", ended=None)
        manifest = Steps(plan, options, world, manifest).finish()
    if manifest.model_version is None:
        raise Refused(
            f"No step of run {run_id} called runner.model.register, and there is no model to register: "
            f"`runner show {run_id}`. Run the step that [model] from names, then `runner register` that run."
        )
    return manifest


def working_tree_differs(manifest: RunManifest, store: Store, root: Path) -> Iterator[str]:
    """Notebooks whose code in the working tree is not the run's own."""
    for state in manifest.steps:
        try:
            own = read_notebook(run_folder.step_folder(store, manifest.run, state.name) / run_folder.SOURCE)
            now = read_notebook(root / state.notebook)
        except RunnerError:
            yield state.notebook
            continue
        if [cell.source for cell in own.code] != [cell.source for cell in now.code]:
            yield state.notebook


def stop(manifest: RunManifest, store: Store) -> list[str]:
    """Stop the process that works on the run, and name it; without one, mark the run as interrupted."""
    try:
        with store.lock(manifest.run):
            manifest = store.manifest_as_written(manifest.run)
            steps = [
                replace(state, status="interrupted", attempt=state.attempt + 1) if state.status == "running" else state
                for state in manifest.steps
            ]
            if manifest.status == "running":
                store.write(replace(manifest, status="interrupted", steps=steps))
            return []
    except Refused:
        if (store.folder(manifest.run) / OWNED).exists():
            raise
        pid, host = store.owner(manifest.run)
        if host != socket.gethostname():
            raise
        os.kill(pid, signal.SIGINT)
        return [f"process {pid}"]


def _reopen(state: StepState) -> StepState:
    """A step that is to run: a new attempt if it had ended, otherwise the same one, which may still be running."""
    attempt = state.attempt + (state.result is not None)
    return replace(state, status=None, why="", result=None, attempt=attempt)


def _check_source(key: str, fact: InputFact) -> None:
    """Raises Refused where a source outside the store is not what the run was started with."""
    if fact.artifact is None or fact.as_ == "uri" or not fact.stamp:  # objects are checked when they are linked
        return
    try:
        now = artifact(Path(fact.source), name="source").sha256
    except RunnerError as error:
        raise Refused(f"{key}: {fact.source} cannot be read any more: {error} Start anew with `runner run`.") from error
    if now != fact.artifact.sha256:
        raise Refused(
            f"{key}: {fact.source} has changed since the run was started, so going on would mix two tables. "
            "Start anew with `runner run`."
        )
