"""One step with many values: a run for each combination of them, ranked by a metric that the step itself records.

What comes before the step is run once; only the winner goes on to what comes after, so that the test rows are looked at
once. Nothing registers. Each combination is a run of its own, so a sweep that was stopped goes on where it was when it
is started again, and `runner run` with the winner's values finds everything done.
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
from runner.pipeline.plan import Plan, plan
from runner.records import Metric, StepResult
from runner.run.orchestrate import run
from runner.run.ports import Executor, Options, Watcher, World
from runner.run.sources import recorded_values
from runner.step.execute import Progress

MOST = 1000  # combinations
TAG = "sweep"


@dataclass(frozen=True)
class Tried:
    """One combination; `run` is None until it has one. `metrics` are the step's, as "step.name"; `why` there are none.

    `given` is what the notebooks get, `values` what may be written down of it.
    """

    values: Mapping[str, str]
    given: Mapping[str, str]
    run: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Swept:
    """`tried` has the best first, those without a value last. `metric` is None until it is known what to rank by."""

    step: str
    metric: str | None
    better: str
    tried: tuple[Tried, ...]
    winner: RunManifest | None = None

    def value(self, tried: Tried) -> Metric | None:
        return tried.metrics.get(self.metric) if self.metric is not None else None


def combinations(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of the values, the last name's changing fastest. Raises UsageError for too many."""
    count = math.prod(len(values) for values in grid.values())
    if count > MOST:
        raise UsageError(f"These are {count:,} combinations; {MOST:,} is the most. Leave values out.")
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]


def sweep(
    file: Path,
    step: str,
    grid: Mapping[str, Sequence[str]],
    *,
    metric: str | None,
    options: Options,
    jobs: int,
    world: Callable[[], World],
    on_change: Callable[[Swept], None] = lambda _: None,
    watcher: Watcher | None = None,
) -> Swept:
    """Run every combination, `jobs` at once, then for the winner all that needs no verdict.

    `options.overrides` hold for all of them; `world` gives each run a world of its own; `watcher` is told of the
    winner's. Raises UsageError for what cannot be ranked, as soon as that is known, and StepFailed where no combination
    gave a value.
    """
    if metric is not None and metric.partition(".")[0] != step:
        raise UsageError(
            f"--metric {metric}: a sweep ranks by what {step} itself records, on validation rows. "
            "Choosing by what is measured on the test rows would leave nothing to measure the winner by."
        )
    tried = [Tried(recorded_values(given), given) for given in combinations(grid)]
    # every mistake is said before the first kernel starts
    plans = [_plan(file, options, one.given, (step,)) for one in tried]
    state = Swept(step, metric, "higher", tuple(tried))
    on_change(state)
    _what_comes_before(file, options, plans, tried, step, world)

    turns = threading.Semaphore(jobs)

    def try_(number: int) -> Tried:
        here = world()
        here = replace(here, executor=_InTurn(here.executor, turns))
        if here.stop.is_set():
            return replace(tried[number], why="not started")
        chosen = replace(_chosen(options, tried[number].given, (step,)), beside=jobs)
        return _tried(tried[number], run(plans[number], chosen, here), step)

    with ThreadPoolExecutor(jobs + 1) as pool:  # one run more than steps, so that sealing one keeps no core waiting
        pending = {pool.submit(try_, number): number for number in range(len(tried))}
        try:
            for future in as_completed(pending):
                tried[pending[future]] = ended = future.result()
                if state.metric is None and ended.metrics:
                    state = replace(state, metric=_ranked_by(step, ended.metrics))
                if state.metric is not None and ended.metrics:
                    state = replace(state, better=_direction(state.metric, ended))
                state = replace(state, tried=tuple(_ranked(state, tried)))
                on_change(state)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun never will
            raise
    here = world()
    here = here if watcher is None else replace(here, watcher=watcher)
    if here.stop.is_set():
        return state
    best = state.tried[0]
    if state.value(best) is None:
        raise StepFailed(
            f"No combination of the sweep gave a value to rank by. The first: {best.why or 'it has none'}."
        )
    whole = _plan(file, options, best.given, ())
    targets = tuple(planned.name for planned in whole.steps if not planned.needs_verdict)
    made = run(_plan(file, options, best.given, targets), _chosen(options, best.given, targets), here)
    state = replace(state, winner=made)
    on_change(state)
    return state


@dataclass(frozen=True)
class _InTurn:
    """An executor that waits for its turn before it executes, and prepares nothing."""

    inner: Executor
    turns: threading.Semaphore

    def expect(self, notebook: Path, *, threads: int) -> None:
        """Others are executing already."""

    def prepare(self, folder: Path, *, cwd: Path | None, threads: int) -> None:
        """Others are executing already."""

    def run(
        self, folder: Path, *, cwd: Path | None, stop: threading.Event, on_progress: Callable[[Progress], None]
    ) -> StepResult:
        with self.turns:
            return self.inner.run(folder, cwd=cwd, stop=stop, on_progress=on_progress)

    def close(self) -> None:
        self.inner.close()


def _plan(file: Path, options: Options, values: Mapping[str, str], targets: Sequence[str]) -> Plan:
    overrides = {**options.overrides, **values}
    return plan(file, profile=options.profile, overrides=overrides, targets=targets, secrets_here=options.on == "local")


def _chosen(options: Options, values: Mapping[str, str], targets: tuple[str, ...]) -> Options:
    overrides = {**options.overrides, **values}
    return replace(options, register=False, tags=(*options.tags, TAG), targets=targets, overrides=overrides)


def _what_comes_before(
    file: Path, options: Options, plans: Sequence[Plan], tried: Sequence[Tried], step: str, world: Callable[[], World]
) -> None:
    """Run what the step needs once for each set of values that differs there, so that no two combinations do it at once."""
    done: set[str] = set()
    for made, one in zip(plans, tried, strict=True):
        earlier = [planned for planned in made.steps if planned.name != step and not planned.skip]
        given = repr([(planned.name, planned.parameters, planned.spec.inputs) for planned in earlier])
        here = world()
        if not earlier or given in done or here.stop.is_set():
            continue
        done.add(given)
        targets = tuple(planned.name for planned in earlier)
        values = {name: value for name, value in one.given.items() if not name.startswith(f"{step}.")}
        ended = run(_plan(file, options, values, targets), _chosen(options, values, targets), here)
        if ended.status == "failed":
            failed = next(state for state in ended.steps if state.status == "failed")
            said = failed.result.error.evalue if failed.result and failed.result.error else "it failed"
            raise StepFailed(f"Step {failed.name}, which {step} needs, failed: {said}. See `runner show {ended.run}`.")


def _tried(one: Tried, ended: RunManifest, step: str) -> Tried:
    state = next(state for state in ended.steps if state.name == step)
    own = {name: metric for name, metric in ended.metrics.items() if name.partition(".")[0] == step}
    if state.status in ("succeeded", "cached"):
        return replace(one, run=ended.run, metrics=own)
    error = state.result.error if state.result is not None else None
    said = f"{error.ename}: {error.evalue.splitlines()[0] if error.evalue else ''}" if error else state.status or ""
    return replace(one, run=ended.run, why=said)


def _ranked_by(step: str, recorded: Mapping[str, Metric]) -> str:
    """The one metric that says which way is better. Raises UsageError where there is none, or several."""
    directed = [name for name, metric in recorded.items() if metric.better is not None]
    if len(directed) == 1:
        return directed[0]
    some = ", ".join(directed or recorded)
    raise UsageError(f"Which metric ranks the sweep? {step} records {some or 'none'}: say --metric {step}.NAME.")


def _direction(metric: str, ended: Tried) -> str:
    if metric not in ended.metrics:
        raise UsageError(f"--metric {metric}: that was not recorded{nearest(metric, ended.metrics)}")
    return ended.metrics[metric].better or "higher"


def _ranked(state: Swept, tried: Sequence[Tried]) -> list[Tried]:
    """The best first; equal ones in the order of the grid, which a repetition keeps."""
    sign = -1.0 if state.better == "higher" else 1.0

    def key(one: Tried) -> tuple[bool, float]:
        found = state.value(one)
        return (found is None, 0.0 if found is None else sign * found.value)

    return sorted(tried, key=key)
