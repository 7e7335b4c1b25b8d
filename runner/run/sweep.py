"""One step with many values: a run for each combination of them, ranked by a metric that the step itself records.

Steps before it run once; only the winner goes on to the steps after it, so that the test rows are used once. Nothing
registers. As each combination is a run, a sweep that was stopped continues when it is started again, and `runner run`
with the winner's values finds everything cached.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.errors import StepFailed, UsageError
from runner.manifest import RunManifest
from runner.pipeline.file import nearest
from runner.pipeline.plan import Plan
from runner.pipeline.plan import plan as make_plan
from runner.records import Metric
from runner.run.orchestrate import run
from runner.run.ports import Options, RunWatcher, World
from runner.run.sources import public_values
from runner.run.turns import InTurn

MOST = 1000  # combinations
TAG = "sweep"


@dataclass(frozen=True)
class Combination:
    """Values of the swept parameters; `run` is None before it has run. `metrics` are the step's, as "step.name".

    `parameters` are what the notebooks get, `values` the same without credentials. `why` says why there are no metrics.
    """

    values: Mapping[str, str]
    parameters: Mapping[str, str]
    run: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class SweepResult:
    """`tried` has the best first, those without a value last. `metric` is None until it is known what to rank by."""

    step: str
    metric: str | None
    better: str
    tried: tuple[Combination, ...]
    winner: RunManifest | None = None

    def value(self, combination: Combination) -> Metric | None:
        return combination.metrics.get(self.metric) if self.metric is not None else None


@dataclass(frozen=True)
class Sweep:
    """What to try: all combinations of `grid`, `jobs` at once. `options.overrides` hold for all of them."""

    file: Path
    step: str
    grid: Mapping[str, Sequence[str]]
    metric: str | None
    options: Options
    jobs: int

    def combinations(self) -> list[Combination]:
        """Every combination, the last name's value changing fastest. Raises UsageError for too many."""
        count = math.prod(len(values) for values in self.grid.values())
        if count > MOST:
            raise UsageError(f"These are {count:,} combinations; {MOST:,} is the most. Leave values out.")
        products = (dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values()))
        return [Combination(public_values(parameters), parameters) for parameters in products]

    def plan(self, parameters: Mapping[str, str], targets: Sequence[str]) -> Plan:
        options = self.run_options(parameters, targets)
        return make_plan(
            self.file,
            profile=options.profile,
            overrides=options.overrides,
            targets=targets,
            secrets_here=options.on == "local",
        )

    def run_options(self, parameters: Mapping[str, str], targets: Sequence[str]) -> Options:
        overrides, tags = {**self.options.overrides, **parameters}, (*self.options.tags, TAG)
        return replace(self.options, register=False, tags=tags, targets=tuple(targets), overrides=overrides)

    def run(self, parameters: Mapping[str, str], targets: Sequence[str], world: World) -> RunManifest:
        return run(self.plan(parameters, targets), self.run_options(parameters, targets), world)


def sweep(
    task: Sweep,
    new_world: Callable[[], World],
    *,
    on_change: Callable[[SweepResult], None] = lambda _: None,
    watcher: RunWatcher | None = None,
) -> SweepResult:
    """Run every combination, then for the winner all steps that need no verdict.

    `new_world` gives each run its own world; `watcher` is told of the winner's. Raises UsageError for what cannot be
    ranked, as soon as that is known, and StepFailed where no combination gave a value.
    """
    step, metric = task.step, task.metric
    if metric is not None and metric.partition(".")[0] != step:
        raise UsageError(
            f"--metric {metric}: a sweep ranks by what {step} itself records, on validation rows. "
            "Choosing by what is measured on the test rows would leave nothing to measure the winner by."
        )
    combinations = task.combinations()
    # every mistake is reported before the first kernel starts
    plans = [task.plan(combination.parameters, (step,)) for combination in combinations]
    result = SweepResult(step, metric, "higher", tuple(combinations))
    on_change(result)
    _run_earlier_steps(task, plans, combinations, new_world)

    turns = threading.Semaphore(task.jobs)

    def try_one(number: int) -> Combination:
        world, combination = new_world(), combinations[number]
        if world.stop.is_set():
            return replace(combination, why="not started")
        options = replace(task.run_options(combination.parameters, (step,)), beside=task.jobs)
        world = replace(world, executor=InTurn(world.executor, turns))
        return _tried(combination, run(plans[number], options, world), step)

    # one run more than steps, so that a core does not wait while a run is sealed
    with ThreadPoolExecutor(task.jobs + 1) as pool:
        pending = {pool.submit(try_one, number): number for number in range(len(combinations))}
        try:
            for future in as_completed(pending):
                combinations[pending[future]] = tried = future.result()
                result = _ranked(result, tried, combinations)
                on_change(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # start nothing more
            raise
    world = new_world() if watcher is None else replace(new_world(), watcher=watcher)
    if world.stop.is_set():
        return result
    best = result.tried[0]
    if result.value(best) is None:
        raise StepFailed(
            f"No combination of the sweep gave a value to rank by. The first: {best.why or 'it has none'}."
        )
    targets = [planned.name for planned in task.plan(best.parameters, ()).steps if not planned.needs_verdict]
    result = replace(result, winner=task.run(best.parameters, targets, world))
    on_change(result)
    return result


def _run_earlier_steps(
    task: Sweep, plans: Sequence[Plan], combinations: Sequence[Combination], new_world: Callable[[], World]
) -> None:
    """Run what the step needs, once for each set of values that differs there: two combinations would do it at once."""
    done: set[str] = set()
    for plan, combination in zip(plans, combinations, strict=True):
        earlier = [planned for planned in plan.steps if planned.name != task.step and not planned.skip]
        work = repr([(planned.name, planned.parameters, planned.spec.inputs) for planned in earlier])
        world = new_world()
        if not earlier or work in done or world.stop.is_set():
            continue
        done.add(work)
        parameters = {
            name: value for name, value in combination.parameters.items() if not name.startswith(f"{task.step}.")
        }
        manifest = task.run(parameters, [planned.name for planned in earlier], world)
        if manifest.status == "failed":
            failed = next(state for state in manifest.steps if state.status == "failed")
            why = failed.result.error.evalue if failed.result and failed.result.error else "it failed"
            raise StepFailed(
                f"Step {failed.name}, which {task.step} needs, failed: {why}. See `runner show {manifest.run}`."
            )


def _tried(combination: Combination, manifest: RunManifest, step: str) -> Combination:
    state = manifest.step(step)
    if state.complete:
        own = {name: metric for name, metric in manifest.metrics.items() if name.partition(".")[0] == step}
        return replace(combination, run=manifest.run, metrics=own)
    error = state.result.error if state.result is not None else None
    why = f"{error.ename}: {error.evalue.splitlines()[0] if error.evalue else ''}" if error else state.status or ""
    return replace(combination, run=manifest.run, why=why)


def _ranked(result: SweepResult, tried: Combination, combinations: Sequence[Combination]) -> SweepResult:
    """The result with one more combination: the best first, equal ones in the order of the grid.

    Raises UsageError where it is not known by which metric, or this was not recorded.
    """
    metric, better = result.metric, result.better
    if tried.metrics:
        if metric is None:
            metric = _metric_with_direction(result.step, tried.metrics)
        if metric not in tried.metrics:
            raise UsageError(f"--metric {metric}: that was not recorded{nearest(metric, tried.metrics)}")
        better = tried.metrics[metric].better or "higher"
    result = replace(result, metric=metric, better=better)
    sign = -1.0 if better == "higher" else 1.0

    def rank(combination: Combination) -> tuple[bool, float]:
        value = result.value(combination)
        return (value is None, 0.0 if value is None else sign * value.value)

    return replace(result, tried=tuple(sorted(combinations, key=rank)))


def _metric_with_direction(step: str, recorded: Mapping[str, Metric]) -> str:
    """The one metric that says which way is better. Raises UsageError where there is none, or several."""
    directed = [name for name, metric in recorded.items() if metric.better is not None]
    if len(directed) == 1:
        return directed[0]
    names = ", ".join(directed or recorded)
    raise UsageError(f"Which metric ranks the sweep? {step} records {names or 'none'}: say --metric {step}.NAME.")
