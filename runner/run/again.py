"""Going on with a run that has ended, from its own snapshot."""

from __future__ import annotations

from pathlib import Path

import msgspec

from runner.errors import Refused
from runner.records import RunManifest
from runner.run import folder as run_folder
from runner.run import registration
from runner.run.orchestrate import Steps
from runner.run.world import Options, World


def register(run_id: str, file: Path, options: Options, world: World) -> RunManifest:
    """Register the model of a run that passed and did not register; steps that were left out for it run now.

    Raises Refused where the run did not pass. A run that has registered is returned as it is.
    """
    store = world.store
    with store.lock(run_id):
        manifest = store.manifest(run_id)
        if manifest.model_version is not None:
            return manifest
        if manifest.status != "succeeded" or manifest.verdict is None or manifest.verdict.outcome != "pass":
            verdict = manifest.verdict.outcome if manifest.verdict else "none"
            raise Refused(
                f"Run {run_id} cannot be registered: its status is {manifest.status}, its verdict {verdict}. "
                "Only a run that passed its gate registers a model."
            )
        asked = next((state.result for state in manifest.steps if state.result and state.result.registration), None)
        if asked is not None:
            version = registration.commit(manifest, asked, world.registry)
            manifest = msgspec.structs.replace(manifest, model_version=version, register=True)
            store.write(manifest)
            return manifest
        plan = run_folder.plan_again(manifest, store, file)
        left_out = {step.name for step in plan.steps if step.needs_verdict}
        steps = [
            msgspec.structs.replace(state, status=None, why="") if state.name in left_out else state
            for state in manifest.steps
        ]
        manifest = msgspec.structs.replace(manifest, steps=steps, register=True, status="running", ended=None)
        manifest = Steps(plan, options, world, manifest).finish()
    if manifest.model_version is None:
        raise Refused(
            f"Run {run_id} has no step that calls runner.model.register, or it failed: `runner show {run_id}`."
        )
    return manifest
