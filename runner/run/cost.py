"""The billed time and the price of a run's jobs."""

from __future__ import annotations

from dataclasses import dataclass

from runner.errors import counted
from runner.manifest import RunManifest, StepState
from runner.records import RemoteJob


@dataclass(frozen=True)
class Cost:
    """`price_usd` is None where a job's instance is in no price table."""

    jobs: int
    billed_s: float
    price_usd: float | None

    def __str__(self) -> str:
        price = "price not known" if self.price_usd is None else f"{self.price_usd:.4f} USD by the price table"
        return f"{counted(self.jobs, 'job')}, {self.billed_s:.0f} s billed, {price}"


def cost(manifest: RunManifest) -> Cost | None:
    """The cost of this run's own jobs; None where it ran here."""
    jobs = [job for state in manifest.steps if (job := job_of(state)) is not None]
    if not jobs:
        return None
    prices = [job.price_usd for job in jobs]
    known = [price for price in prices if price is not None]
    return Cost(
        len({job.name for job in jobs}),
        sum(job.billed_s or 0.0 for job in jobs),
        sum(known) if len(known) == len(prices) else None,
    )


def job_of(state: StepState) -> RemoteJob | None:
    """The job that ran the step; None where it ran here, or the result is an earlier run's."""
    return state.result.remote if state.result is not None and state.status != "cached" else None
