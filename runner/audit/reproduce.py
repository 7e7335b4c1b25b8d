"""Executing a run again from its records, and comparing the results.

Every step runs in a fresh folder from the run's own notebook, modules and parameters, on the recorded bytes of its
inputs. The comparison stops at the first step that differs, because the steps after it must differ too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.manifest import Environment, RunManifest, StepState
from runner.records import InputFact, Metric, StepResult
from runner.run import folder as run_folder
from runner.run.contents import copy_code
from runner.run.inputs import origin, recorded_input
from runner.run.mapped import of_key
from runner.run.ports import Executor
from runner.run.store import Store


@dataclass(frozen=True)
class Reproduction:
    """`differences` are empty where the run was reproduced; `environment` lists what differs on this machine."""

    run: str
    environment: tuple[str, ...]
    steps: tuple[str, ...]  # those that gave equal results
    step: str | None = None  # the first that did not
    differences: tuple[str, ...] = ()
    cause: str = ""


def reproduce(
    manifest: RunManifest,
    *,
    original: Store,
    scratch: Store,
    root: Path,
    executor: Executor,
    now: Environment,
    tolerance: float = 0.0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Execute the run again in `scratch` and compare outputs byte for byte and metrics within `tolerance`.

    Raises Refused where an input's bytes are not available any more, Tampered where the run's own code was altered.
    """
    scratch.prepare()
    plan = run_folder.plan_again(manifest, original, root / manifest.pipeline_file)
    same: list[str] = []
    environment = tuple(environment_differences(manifest.environment, now))
    for step in plan.steps:
        state = manifest.step(step.name)
        if state.job is None or state.result is None or not state.complete:
            continue
        on_step(step.name)
        for key, part in _executions(state, original):
            assert part.result is not None
            first = _execute(manifest, part, original, scratch, executor, root, below=f"{key or 'step'}-1")
            differences = tuple(compare(part.result, first, tolerance))
            if differences:
                second = _execute(manifest, part, original, scratch, executor, root, below=f"{key or 'step'}-2")
                cause = _cause(part, first, second, environment, tolerance)
                differences = tuple(f"key {key}: {difference}" if key else difference for difference in differences)
                return Reproduction(manifest.run, environment, tuple(same), step.name, differences, cause)
        same.append(step.name)
    return Reproduction(manifest.run, environment, tuple(same))


def _executions(state: StepState, store: Store) -> Iterator[tuple[str, StepState]]:
    """The step, or each key of a mapped one that has succeeded, as a step with its folder's name."""
    if state.result is None or state.result.mapped is None:
        yield "", state
        return
    for line in state.result.mapped.keys:
        if line.complete:
            yield line.folder, of_key(state, line.folder, store)


def compare(before: StepResult, now: StepResult, tolerance: float) -> Iterator[str]:
    """How outputs, metrics and the end of `now` differ from those of `before`."""
    if now.error is not None:
        yield f"it failed: {now.error.ename}: {now.error.evalue}"
        return
    for name, output in before.outputs.items():
        again = now.outputs.get(name)
        if again is None or again.sha256 != output.sha256:
            files = _files(output.files, again.files if again else None)
            yield f"output {name} differs{files}"
    for name in sorted({*before.metrics, *now.metrics}):
        old, new = before.metrics.get(name), now.metrics.get(name)
        if old is None or new is None:
            yield f"metric {name} is {'new' if old is None else 'missing'}"
        elif not _close(old, new, tolerance):
            yield f"metric {name} is {new.value!r}, was {old.value!r}"


def environment_differences(before: Environment, now: Environment) -> Iterator[str]:
    """Interpreter, platform, cores and packages that differ."""
    for name in ("implementation", "python", "platform", "cpus"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            yield f"{name} {old} → {new}"
    for name in sorted({*before.packages, *now.packages}):
        old, new = before.packages.get(name), now.packages.get(name)
        if old != new:
            yield f"{name} {old or 'not there'} → {new or 'not there'}"


def _execute(
    manifest: RunManifest,
    state: StepState,
    original: Store,
    scratch: Store,
    executor: Executor,
    root: Path,
    *,
    below: str,
) -> StepResult:
    """The step once more, in a folder of its own below the scratch store."""
    assert state.job is not None
    source = run_folder.step_folder(original, manifest.run, state.name)
    target = run_folder.step_folder(scratch, f"{manifest.run}-{below}", state.name)
    (target / run_folder.MODULES).mkdir(parents=True)
    copy_code(state, source, target)
    inputs = {name: _input(manifest, state, name, fact, original) for name, fact in state.job.inputs.items()}
    run_folder.write_job(state.job, inputs, folder=target, store=original)
    cwd = (root / state.notebook).parent
    return executor.run(target, cwd=cwd, stop=threading.Event(), on_progress=lambda _: None)


def _input(manifest: RunManifest, state: StepState, name: str, fact: InputFact, original: Store) -> InputFact:
    """The input as it was recorded, if its bytes are still available."""
    pinned = recorded_input(manifest, state.name, name)
    if pinned.artifact is None or pinned.as_ == "uri":
        return pinned
    if origin(pinned, f"Input {name} of step {state.name}", original) is not None:
        return pinned
    return InputFact(source=fact.source, artifact=pinned.artifact, version=pinned.version)


def _cause(
    state: StepState, first: StepResult, second: StepResult, environment: tuple[str, ...], tolerance: float
) -> str:
    """The likely reason, from the environment and from whether a second try differs from the first."""
    if any(compare(first, second, tolerance)):
        return "two executions here differ from each other: something is not seeded (or depends on the time)"
    imported = state.key.packages if state.key else {}
    changed = [line for line in environment if line.partition(" ")[0] in imported]
    if changed:
        return f"package versions: {', '.join(changed)}; try --env recorded"
    if state.result is not None and first.threads != state.result.threads:
        return f"threads: {state.result.threads} then, {first.threads} now"
    if environment:
        return f"the machine: {', '.join(environment[:5])}"
    return "not known: two executions here agree with each other, in the recorded environment"


def _close(old: Metric, new: Metric, tolerance: float) -> bool:
    pairs = [(old.value, new.value), (old.low, new.low), (old.high, new.high)]
    return all(
        (a is None and b is None) or (a is not None and b is not None and abs(a - b) <= tolerance) for a, b in pairs
    )


def _files(before: Mapping[str, object] | None, now: Mapping[str, object] | None) -> str:
    if before is None or now is None:
        return ""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f" ({', '.join(names)})"
