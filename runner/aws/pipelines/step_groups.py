"""The jobs of a SageMaker Pipeline: which steps each has, and which of them make the pins and judge the gate.

A step has a job of its own, unless `together` is set. Of the jobs that wait for no other, the first to start makes the
pins. The gate is judged in the job of the step that comes after all others before the gate; only without such a step it
has a job of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from runner.aws.pipelines.parameters import active
from runner.aws.settings import one_machine
from runner.pipeline.plan import Plan, PlannedStep


@dataclass(frozen=True)
class StepGroup:
    """The steps of one job, in order; the job has the name of the first.

    `first`: it waits for no other, so it may have to make the pins. `judges` is the step after which it judges the
    gate, or ""; `gated`: all its steps wait for a passing gate.
    """

    steps: tuple[PlannedStep, ...]
    first: bool
    judges: str
    gated: bool

    @property
    def name(self) -> str:
        return self.steps[0].name

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]

    @property
    def fetches(self) -> bool:
        """Whether the job itself downloads code and inputs: their addresses are known only in it."""
        return self.first or len(self.steps) > 1

    @property
    def looks(self) -> bool:
        """Whether the job itself looks for earlier results: it has to start whatever the service has cached."""
        return self.fetches or bool(self.judges)


def gated_steps(plan: Plan) -> set[str]:
    """The steps that run only after a passing gate: those that need the verdict, and what comes after them."""
    gated: set[str] = set()
    for step in active(plan):
        if step.needs_verdict or gated & set(step.needs):
            gated.add(step.name)
    return gated


def judging_step(plan: Plan) -> str:
    """The step that comes after all others that wait for no verdict, "" if there is none, or no gate."""
    gated, before = gated_steps(plan), dict[str, set[str]]()
    for step in active(plan):
        if step.name not in gated:
            before[step.name] = {step.name}.union(*(before.get(need, set()) for need in step.needs))
    last = (name for name, needed in before.items() if needed == before.keys())
    return next(last, "") if plan.judges else ""


def step_groups(plan: Plan) -> list[StepGroup]:
    """Every step that runs, in an order that respects every need."""
    gated, judge = gated_steps(plan), judging_step(plan)
    ordered = sorted(active(plan), key=lambda step: step.name in gated)  # which keeps the order of equals
    groups: list[list[PlannedStep]] = []
    for step in ordered:
        last = groups[-1][-1].name if groups else ""
        # where no step judges, the gate has a job of its own between the ungated steps and the gated ones
        parted = step.name in gated and last not in gated and not judge
        if groups and not parted and one_machine(plan.pipeline, last, step.name):
            groups[-1].append(step)
        else:
            groups.append([step])
    return [_group(steps, gated, judge) for steps in groups]


def _group(steps: list[PlannedStep], gated: set[str], judge: str) -> StepGroup:
    names = {step.name for step in steps}
    needed = set(itertools.chain.from_iterable(step.needs for step in steps if step.name not in gated))
    all_gated = names <= gated
    return StepGroup(tuple(steps), not all_gated and needed <= names, judge if judge in names else "", all_gated)
