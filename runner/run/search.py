"""A sweep whose combinations are drawn one after the other, each by what the ones before it came to.

    runs/sweeps/<step>-<key>/sweep.json       the trials in their order, written before and after each
    runs/sweeps/<step>-<key>/reported/7.json  what the notebook of trial 7 reported, written before its run ends
    runs/sweeps/<step>-<key>/lock             held by flock while a process works on the search

The key is made of the command and of all that the step's result depends on. The same command thus finds its trials
again and goes on after them; what a trial came to is read from its run, and the record says which one that is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import msgspec

from runner.content import atomic_write, hold
from runner.errors import Refused, RunnerError
from runner.failpoint import reach
from runner.paths import FileName
from runner.pipeline.plan import Plan
from runner.records import FORMAT, Record, encode, read
from runner.run.cache import Cache
from runner.run.orchestrate import run
from runner.run.ports import RunWatcher, World
from runner.run.preview import preview
from runner.run.pruning import PrunedExecutor
from runner.run.space import Search
from runner.run.study import Study
from runner.run.sweep import (
    ENDED,
    Combination,
    State,
    Sweep,
    SweepResult,
    evaluate_best,
    metric_with_direction,
    ranked,
    run_earlier_steps,
    tried,
)

SWEEPS, FACTS, REPORTED, LOCK = "sweeps", "sweep.json", "reported", "lock"


class TriedRecord(Record, frozen=True, kw_only=True):
    """One combination, as it is now."""

    number: int
    values: dict[str, str]
    state: State
    run: FileName | None = None
    value: float | None = None
    why: str = ""


class ReportedRecord(Record, frozen=True, kw_only=True):
    """What one notebook reported, by name: (step, value) pairs in their order."""

    format: int = FORMAT
    values: dict[str, list[tuple[int, float]]]


class SweepRecord(Record, frozen=True, kw_only=True):
    """sweep.json: the combinations of a sweep, in the order in which they were made."""

    format: int = FORMAT
    step: str
    metric: str | None
    better: str
    winner: FileName | None
    search: dict[str, str | int | bool] | None  # how combinations are drawn; None where all are tried
    tried: list[TriedRecord]


def record_of(swept: SweepResult) -> SweepRecord:
    """What is kept of a sweep."""
    search = swept.search
    lines = []
    for entry in sorted(swept.tried, key=lambda entry: entry.number):
        value = swept.value(entry)
        lines.append(
            TriedRecord(
                number=entry.number,
                values=dict(entry.values),
                state=entry.state,
                run=entry.run,
                value=value.value if value is not None else None,
                why=entry.why,
            )
        )
    return SweepRecord(
        step=swept.step,
        metric=swept.metric,
        better=swept.better,
        winner=swept.winner.run if swept.winner else None,
        search={"method": search.method, "trials": search.trials, "seed": search.seed} if search else None,
        tried=lines,
    )


def write_record(file: Path, swept: SweepResult) -> None:
    """Replace sweep.json."""
    atomic_write(file, encode(record_of(swept)))


def search(
    task: Sweep,
    how: Search,
    new_world: Callable[[], World],
    *,
    on_change: Callable[[SweepResult], None] = lambda _: None,
    watcher: RunWatcher | None = None,
) -> SweepResult:
    """Run the trials that are missing, then for the best all steps that need no verdict.

    `task.grid` is not looked at. Raises as `runner.run.sweep.sweep`, and Refused where another process works on the
    same search.
    """
    task.check_metric()
    study = Study(how)
    # every mistake is reported before the first kernel starts
    corners = [Combination(values, values) for values in how.corners()]
    plans = [task.plan(corner.parameters, (task.step,)) for corner in corners]
    run_earlier_steps(task, plans[:1], corners[:1], new_world)
    world = new_world()
    empty = SweepResult(task.step, task.metric, "higher", (), search=how)
    if world.stop.is_set():
        return empty
    folder = world.store.root / SWEEPS / f"{task.step}-{_key(task, how, plans[0], world)}"
    with _owned(folder):
        trials = Trials(task, how, study, new_world, folder, replace(empty, folder=folder.name), on_change)
        trials.run()
        return evaluate_best(task, trials.result, new_world, on_change=trials.changed, watcher=watcher)


def _key(task: Sweep, how: Search, plan: Plan, world: World) -> str:
    """Twelve digits that equal searches have: the same command on a step that would give the same results."""
    key = preview(plan, task.run_options({}, (task.step,)), world).keys.get(task.step)
    own = {name.rpartition(".")[2] for name in how.space}
    facts = {
        "search": {"space": how.space, "method": how.method, "seed": how.seed, "prune": how.prune},
        "metric": task.metric,
        "on": task.options.on,
        "step": key and msgspec.structs.replace(
            key, parameters={name: value for name, value in key.parameters.items() if name not in own}
        ),
        # where an earlier step would run anew each time, nothing of an earlier search can be compared
        "alone": None if key is not None else world.store.runs(),
    }  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()[:12]


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Raises Refused where another process works on the search."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            hold(file, fcntl.LOCK_EX)
        except BlockingIOError:
            raise Refused(f"Another process works on this search: {folder}. Wait for it, or stop it.") from None
        yield


class Trials:
    """The trials of one search; `result` is always what its sweep.json holds.

    The thread that calls `run` owns them; threads that execute trials only read.
    """

    def __init__(
        self,
        task: Sweep,
        how: Search,
        study: Study,
        new_world: Callable[[], World],
        folder: Path,
        result: SweepResult,
        on_change: Callable[[SweepResult], None],
    ) -> None:
        self.task, self.how, self.study, self.new_world = task, how, study, new_world
        self.file, self.result, self.on_change = folder / FACTS, result, on_change
        self.trials: list[Combination] = []

    def run(self) -> None:
        """Execute what is missing, `task.jobs` at once; returns early where the world's `stop` is set."""
        self._take_known()
        stop = self.new_world().stop
        missing = [number for number, trial in enumerate(self.trials) if trial.state not in ENDED]
        with ThreadPoolExecutor(self.task.jobs) as pool:
            running: dict[Future[Combination], int] = {}
            try:
                while True:
                    while len(running) < self.task.jobs and not stop.is_set():
                        number = missing.pop(0) if missing else self._drawn()
                        if number is None:
                            break
                        self._set(number, replace(self.trials[number], state="running", why=""))
                        reach("trial about to run", str(number + 1))
                        running[pool.submit(self._executed, self.trials[number])] = number
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        number = running.pop(future)
                        self._set(number, future.result())
                        reach("trial recorded", str(number + 1))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # start nothing more
                raise

    def changed(self, result: SweepResult) -> None:
        self.result = result
        write_record(self.file, result)
        self.on_change(result)

    def _set(self, number: int, trial: Combination) -> None:
        """Take in how far the trial is, and write it down. Raises as `ranked`."""
        self.changed(self._ranked(number, trial))

    def _ranked(self, number: int, trial: Combination) -> SweepResult:
        trials = [*self.trials]
        trials[number] = trial
        result = ranked(self.result, trial, trials)
        value = result.value(trial)
        self.trials[number] = trial if value is None else replace(trial, score=value.value)
        return result

    def _take_known(self) -> None:
        """The trials of an earlier process. One that had not ended, whose run is gone, or that read a file which is no
        input and has changed, is to run again."""
        lines = read(SweepRecord, self.file).tried if self.file.exists() else []
        store = self.new_world().store
        cache = Cache(store, self.task.file.parent)
        for line in lines:
            trial = Combination(line.values, line.values, line.number)
            if line.state in ENDED and line.run is not None:
                with contextlib.suppress(RunnerError, OSError):
                    manifest = store.manifest(line.run)
                    known, result = tried(trial, manifest, self.task.step), manifest.step(self.task.step).result
                    if known.state == line.state and result is not None and not cache.changed(result.opened):
                        trial = known
            self.trials.append(trial)
        for number, trial in enumerate(self.trials):
            self.result = self._ranked(number, trial)
        metric = self.result.metric or ""
        self.trials = [replace(trial, reported=self._reported(trial, metric)) for trial in self.trials]
        self.changed(self._ranked(0, self.trials[0]) if self.trials else self.result)

    def _drawn(self) -> int | None:
        """The place of one more trial; None where there are enough, or nothing new is left to draw."""
        if len(self.trials) >= self.how.trials:
            return None
        values = self.study.next_values(self.trials, self.result.better)
        if values is None:
            return None
        self.trials.append(Combination(values, values, len(self.trials) + 1))
        return len(self.trials) - 1

    def _executed(self, trial: Combination) -> Combination:
        """In a thread of its own."""
        world, targets = self.new_world(), (self.task.step,)
        if world.stop.is_set():
            return replace(trial, state="waiting")
        file = self._reported_file(trial)

        def keep(reported: Mapping[str, Mapping[int, float]]) -> None:
            file.parent.mkdir(exist_ok=True)
            values = {name: list(by_step.items()) for name, by_step in reported.items()}
            atomic_write(file, encode(ReportedRecord(values=values)))

        executor = PrunedExecutor(world.executor, self.task.step, self._metric, self._outlasts, keep)
        options = replace(self.task.run_options(trial.parameters, targets), beside=self.task.jobs)
        plan = self.task.plan(trial.parameters, targets)
        ended = tried(trial, run(plan, options, replace(world, executor=executor)), self.task.step)
        reach("trial ended", str(trial.number))
        metric = self.result.metric
        if metric is None and ended.state == "complete":
            metric = metric_with_direction(self.task.step, ended.metrics)
        return replace(ended, reported=self._reported(trial, metric or ""))

    def _reported_file(self, trial: Combination) -> Path:
        return self.file.parent / REPORTED / f"{trial.number}.json"

    def _reported(self, trial: Combination, metric: str) -> dict[int, float]:
        """What the trial's notebook reported of the metric, whichever process executed it."""
        try:
            return dict(read(ReportedRecord, self._reported_file(trial)).values.get(_own(metric), []))
        except FileNotFoundError:
            return {}

    def _metric(self) -> str:
        return _own(self.result.metric or "")

    def _outlasts(self, reported: Mapping[int, float]) -> bool:
        return not self.how.prune or self.study.outlasts(reported, tuple(self.trials), self.result.better)


def _own(metric: str) -> str:
    """The metric's name as its notebook has it."""
    return metric.rpartition(".")[2]
