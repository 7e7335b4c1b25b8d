"""What a run leaves for the next one of the same command line, should nothing have changed by then."""

from __future__ import annotations

import sys

import msgspec

from runner.cli.display import headline, step_line
from runner.cli.options import json_text, run_json
from runner.cli.text import hint, summary
from runner.escape import terminal
from runner.manifest import RunManifest, StepState
from runner.pipeline.plan import Plan
from runner.records import encode
from runner.run import unchanged
from runner.run.provenance import VARIABLES
from runner.run.store import OBJECTS, Store, facts_of


def leave(plan: Plan, manifest: RunManifest, *, as_json: bool, pages: bool, code: int) -> None:
    """Note everything the run depended on. Nothing is left after a failed run, or one with remote sources."""
    if manifest.status != "succeeded" or any(_is_remote(fact.source) for fact in manifest.sources.values()):
        return
    runs = plan.root / "runs"
    steps = [_cached(state, manifest.run) for state in manifest.steps]
    template = msgspec.structs.replace(
        manifest, run=unchanged.RUN, started=unchanged.STARTED, ended=unchanged.ENDED, steps=steps
    )
    folder = Store(runs).folder(unchanged.RUN)
    words = summary(template, folder, pages=pages)
    out = json_text(run_json(template, folder)) if as_json else terminal(words)
    lines = [headline(template), *(step_line(state, None, started=None) for state in steps)]
    lines += [*([words] if as_json else []), *hint(template)]
    files = [plan.file, *(step.notebook.path for step in plan.steps)]
    files += [path for step in plan.steps for path in step.modules.values()]
    for fact in manifest.sources.values():
        if fact.artifact is None or fact.source.startswith("approved:"):
            continue  # the registry's file stands for what is approved
        if fact.artifact.files is not None:
            return  # a folder may get new files without any of the old ones changing
        files.append(plan.root / fact.source)
    for state in manifest.steps:
        if state.result is None:
            continue
        files += [plan.root / name for name in state.result.opened]
        executed = [state.result.executed] if state.result.executed else []
        for artifact in (*state.result.outputs.values(), *executed):
            files += [runs / OBJECTS / fact.sha256 for fact in facts_of(artifact).values()]
    registry = runs / "registry.db"
    git = plan.root / ".git"
    files += [registry, git / "HEAD", git / "index"]
    unchanged.remember(
        str(runs),
        sys.argv[2:],
        run=manifest.run,
        manifest=encode(template).decode(),
        out=out + "\n",
        err=terminal("\n".join(lines)) + "\n",
        code=code,
        files=[str(path) for path in dict.fromkeys(files)],
        folders=[str(folder) for folder in dict.fromkeys(step.notebook.path.parent for step in plan.steps)],
        variables=manifest.environment.variables,
        names=VARIABLES,
    )


def _cached(state: StepState, run: str) -> StepState:
    if state.status != "succeeded":
        return state
    return msgspec.structs.replace(state, status="cached", from_run=run, why="")


def _is_remote(source: str) -> bool:
    return "://" in source
