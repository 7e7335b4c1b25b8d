"""Optuna as a search uses it: which values to try next, and whether a trial that runs is worth its end.

It keeps nothing between two calls that a search's own record does not have: each answer follows from the seed and the
trials so far, so that a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from runner.errors import UsageError
from runner.records import Better
from runner.run.space import Range, Search

GUIDED, ATTEMPTS = 20, 200  # draws of a combination that is new: by the search's method, then at random


class Trial(Protocol):
    """What is known of one trial. `score` is None until it is complete."""

    @property
    def values(self) -> Mapping[str, str]: ...

    @property
    def state(self) -> str: ...

    @property
    def score(self) -> float | None: ...

    @property
    def reported(self) -> Mapping[int, float]: ...


class Study:
    """Safe to use from several threads. Raises UsageError where Optuna is not installed."""

    def __init__(self, search: Search) -> None:
        try:
            import optuna  # an extra, and most of a second
        except ImportError as error:
            raise UsageError("A search needs Optuna, which is not installed here: pip install optuna.") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna: Any = optuna
        self.search = search
        self.distributions = {name: self._distribution(drawn) for name, drawn in search.space.items()}
        self._complete: tuple[list[Trial], Any] = ([], None)  # what `outlasts` compares with, and a study of it
        self._lock = threading.Lock()

    def next_values(self, trials: Sequence[Trial], better: Better) -> dict[str, str] | None:
        """Values that no trial has had; None where such are not found any more."""
        tried = {tuple(trial.values.values()) for trial in trials}
        study = self._study(trials, better)
        for attempt in range(ATTEMPTS):
            study.sampler = self._sampler(f"{self.search.seed}/{len(trials)}/{attempt}", guided=attempt < GUIDED)
            asked = study.ask(self.distributions)
            study.tell(asked, state=self.optuna.trial.TrialState.FAIL)  # the trial itself may have rounded values
            values = {name: self._text(name, asked.params[name]) for name in self.search.space}
            if tuple(values.values()) not in tried:
                return values
        return None

    def outlasts(self, reported: Mapping[int, float], trials: Sequence[Trial], better: Better) -> bool:
        """Whether a trial that has reported so (step: value) is at its last step no worse than the median of the
        complete ones at that step; True while fewer than five are complete."""
        complete = [trial for trial in trials if trial.state == "complete"]
        with self._lock:
            known, study = self._complete
            if study is None or len(known) != len(complete) or any(map(operator.is_not, known, complete)):
                study = self._study(complete, better)
                self._complete = complete, study
            state = self.optuna.trial.TrialState.RUNNING
            trial = self.optuna.trial.create_trial(state=state, intermediate_values=dict(reported))
            return not self.optuna.pruners.MedianPruner().prune(study, trial)

    def _study(self, trials: Sequence[Trial], better: Better) -> Any:
        study = self.optuna.create_study(direction="maximize" if better == "higher" else "minimize")
        study.add_trials(list(map(self._frozen, trials)))
        return study

    def _frozen(self, trial: Trial) -> Any:
        states = self.optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}.get(trial.state)
        if state is states.COMPLETE and trial.score is None:
            state = states.FAIL
        return self.optuna.trial.create_trial(
            state=states.RUNNING if state is None else state,
            value=trial.score if state is states.COMPLETE else None,
            params={name: self._parameter(name, text) for name, text in trial.values.items()},
            distributions=self.distributions,
            intermediate_values=dict(trial.reported),
        )

    def _sampler(self, seed: str, *, guided: bool) -> Any:
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])
        if not guided or self.search.method == "random":
            return self.optuna.samplers.RandomSampler(seed=number)
        return self.optuna.samplers.TPESampler(seed=number, constant_liar=True)  # away from trials that run

    def _distribution(self, drawn: Any) -> Any:
        kinds = self.optuna.distributions
        if not isinstance(drawn, Range):
            return kinds.CategoricalDistribution(drawn.values)
        if drawn.whole:
            return kinds.IntDistribution(int(drawn.low), int(drawn.high), log=drawn.log)
        return kinds.FloatDistribution(drawn.low, drawn.high, log=drawn.log)

    def _text(self, name: str, value: Any) -> str:
        drawn = self.search.space[name]
        return drawn.text(value) if isinstance(drawn, Range) else str(value)

    def _parameter(self, name: str, text: str) -> Any:
        drawn = self.search.space[name]
        return text if not isinstance(drawn, Range) else int(text) if drawn.whole else float(text)
