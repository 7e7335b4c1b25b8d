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
from typing import Literal

from runner.errors import StepFailed, UsageError
from runner.manifest import RunManifest
from runner.pipeline.file import nearest
from runner.pipeline.plan import Plan, PlannedStep
from runner.pipeline.plan import plan as make_plan
from runner.records import Better, Metric
from runner.run.orchestrate import expect, run
from runner.run.ports import Options, RunWatcher, Silent, World
from runner.run.sources import public_values
from runner.run.space import MOST, Search
from runner.run.turns import InTurn

TAG = "sweep"
State = Literal["waiting", "running", "complete", "pruned", "failed", "interrupted"]
ENDED = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Combination:
    """Values of the swept parameters; `run` is None before it has run. `metrics` are the step's, as "step.name".

    `parameters` are what the notebooks get, `values` the same without credentials. `why` says why there are no metrics.
    `number` counts from 1 in the order in which they were made; `score` and `reported` (step: value) are of the metric
    that ranks.
    """

    values: Mapping[str, str]
    parameters: Mapping[str, str]
    number: int = 0
    state: State = "waiting"
    run: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    why: str = ""
    score: float | None = None
    reported: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepResult:
    """`tried` has the best first, those without a value last. `metric` is None until it is known what to rank by.

    Of a search `tried` has the trials that have begun, and `folder` is the name of its own below `sweeps/`.
    """

    step: str
    metric: str | None
    better: Better
    tried: tuple[Combination, ...]
    winner: RunManifest | None = None
    search: Search | None = None
    folder: str = ""

    def value(self, combination: Combination) -> Metric | None:
        return combination.metrics.get(self.metric) if self.metric is not None else None

    @property
    def names(self) -> list[str]:
        """Of the swept parameters."""
        return list(self.search.space if self.search is not None else self.tried[0].values)

    @property
    def best(self) -> Combination | None:
        """The best so far; None while none has a value."""
        return self.tried[0] if self.tried and self.value(self.tried[0]) is not None else None

    @property
    def total(self) -> int:
        return max(self.search.trials if self.search is not None else 0, len(self.tried))

    @property
    def ended(self) -> int:
        """How many have come to something, whatever it is."""
        return sum(tried.state in ENDED for tried in self.tried)

    def count(self, state: State) -> int:
        return sum(tried.state == state for tried in self.tried)


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
        return [Combination(public_values(chosen), chosen, number) for number, chosen in enumerate(products, 1)]

    def check_metric(self) -> None:
        """Raises UsageError for a metric of another step."""
        if self.metric is not None and self.metric.partition(".")[0] != self.step:
            raise UsageError(
                f"--metric {self.metric}: a sweep ranks by what {self.step} itself records, on validation rows. "
                "Choosing by what is measured on the test rows would leave nothing to measure the winner by."
            )

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
    step = task.step
    task.check_metric()
    combinations = task.combinations()
    # every mistake is reported before the first kernel starts; its libraries are loaded meanwhile
    plans = [task.plan(combinations[0].parameters, (step,))]
    executed = next((planned for planned in plans[0].steps if not planned.skip), None)
    if executed is None:
        raise UsageError(f"The profile skips {step}, so there is nothing to rank. Name another one, or none.")
    expect(executed, task.options, new_world())
    plans += [task.plan(combination.parameters, (step,)) for combination in combinations[1:]]
    result = SweepResult(step, task.metric, "higher", tuple(combinations))
    on_change(result)
    run_earlier_steps(task, plans, combinations, new_world)

    turns = threading.Semaphore(task.jobs)

    def try_one(number: int) -> Combination:
        world, combination = new_world(), combinations[number]
        if world.stop.is_set():
            return replace(combination, why="not started")
        options = replace(task.run_options(combination.parameters, (step,)), beside=task.jobs)
        world = replace(world, executor=InTurn(world.executor, turns))
        return tried(combination, run(plans[number], options, world), step)

    # one run more than steps, so that a core does not wait while a run is sealed
    with ThreadPoolExecutor(task.jobs + 1) as pool:
        pending = {pool.submit(try_one, number): number for number in range(len(combinations))}
        try:
            for future in as_completed(pending):
                combinations[pending[future]] = ended = future.result()
                result = ranked(result, ended, combinations)
                on_change(result)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # start nothing more
            raise
    return evaluate_best(task, result, new_world, on_change=on_change, watcher=watcher)


def evaluate_best(
    task: Sweep,
    result: SweepResult,
    new_world: Callable[[], World],
    *,
    on_change: Callable[[SweepResult], None],
    watcher: RunWatcher | None,
) -> SweepResult:
    """Run the best combination on, through all steps that need no verdict. Raises StepFailed where none has a value."""
    world = new_world() if watcher is None else replace(new_world(), watcher=watcher)
    if world.stop.is_set():
        return result
    best = result.best
    if best is None:
        why = result.tried[0].why if result.tried else ""
        raise StepFailed(f"No combination of the sweep gave a value to rank by. The first: {why or 'it has none'}.")
    targets = [planned.name for planned in task.plan(best.parameters, ()).steps if not planned.needs_verdict]
    result = replace(result, winner=task.run(best.parameters, targets, world))
    on_change(result)
    return result


def run_earlier_steps(
    task: Sweep, plans: Sequence[Plan], combinations: Sequence[Combination], new_world: Callable[[], World]
) -> None:
    """Run what the step needs, once for each set of values that differs there: two combinations would do it at once."""
    done: set[str] = set()
    swept = next(planned for planned in plans[0].steps if planned.name == task.step)
    for plan, combination in zip(plans, combinations, strict=True):
        earlier = [planned for planned in plan.steps if planned.name != task.step and not planned.skip]
        work = repr([(planned.name, planned.parameters, planned.spec.inputs) for planned in earlier])
        world = new_world()
        if not earlier or work in done or world.stop.is_set():
            continue
        done.add(work)
        world = replace(world, watcher=_Ahead(earlier[-1].name, swept, task.options, world))
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


@dataclass(frozen=True)
class _Ahead(Silent):
    """Has the libraries of `step` loaded while `last` runs, the last step before it, which has its kernel by then."""

    last: str
    step: PlannedStep
    options: Options
    world: World

    def changed(self, manifest: RunManifest, step: str) -> None:
        if step == self.last and manifest.step(step).status == "running":
            expect(self.step, self.options, self.world)


def tried(combination: Combination, manifest: RunManifest, step: str) -> Combination:
    """The combination with what its run came to."""
    state = manifest.step(step)
    if state.complete:
        own = {name: metric for name, metric in manifest.metrics.items() if name.partition(".")[0] == step}
        return replace(combination, state="complete", run=manifest.run, metrics=own)
    error = state.result.error if state.result is not None else None
    why = f"{error.ename}: {error.evalue.splitlines()[0] if error.evalue else ''}" if error else state.status or ""
    ended: State = "pruned" if state.status == "pruned" else "failed" if state.status == "failed" else "interrupted"
    return replace(combination, state=ended, run=manifest.run, why=why)


def ranked(result: SweepResult, tried: Combination, combinations: Sequence[Combination]) -> SweepResult:
    """The result with one more combination: the best first, equal ones in the order of the grid.

    Raises UsageError where it is not known by which metric, or this was not recorded.
    """
    metric, better = result.metric, result.better
    if tried.state == "complete":
        if metric is None:
            metric = metric_with_direction(result.step, tried.metrics)
        if metric not in tried.metrics:
            raise UsageError(f"--metric {metric}: that was not recorded{nearest(metric, tried.metrics)}")
        better = tried.metrics[metric].better or "higher"
    result = replace(result, metric=metric, better=better)
    sign = -1.0 if better == "higher" else 1.0

    def rank(combination: Combination) -> tuple[bool, float]:
        value = result.value(combination)
        return (value is None, 0.0 if value is None else sign * value.value)

    return replace(result, tried=tuple(sorted(combinations, key=rank)))


def metric_with_direction(step: str, recorded: Mapping[str, Metric]) -> str:
    """The one metric that says which way is better. Raises UsageError where there is none, or several."""
    directed = [name for name, metric in recorded.items() if metric.better is not None]
    if len(directed) == 1:
        return directed[0]
    names = ", ".join(directed or recorded)
    raise UsageError(f"Which metric ranks the sweep? {step} records {names or 'none'}: say --metric {step}.NAME.")
