"""What a run would move to S3 and could cost at most, before anything is moved or started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.aws.processing import wheels
from runner.aws.processing.bundle import runner_bundle
from runner.aws.processing.executor import environment, lock, wheel_cache
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import limit_s
from runner.aws.session import Session
from runner.pipeline.remote import settings
from runner.records import InputFact, Pipeline


@dataclass(frozen=True)
class Estimate:
    """`ceiling_usd`: every step that may run, for as long as it is allowed to; None where a price is not known."""

    move_bytes: int
    ceiling_usd: float | None
    prices: str


def estimate(
    session: Session,
    pipeline: Pipeline,
    steps: Iterable[str],
    sources: Mapping[str, InputFact],
    *,
    root: Path,
) -> Estimate:
    """For these steps; `sources` are what comes from outside the run, by "step.input"."""
    move, ceiling = 0, 0.0
    known = True
    said = ""
    common: set[tuple[str, str]] = set()
    for step in steps:
        chosen = settings(pipeline, step)
        bucket = Bucket(session, chosen.bucket, chosen.prefix)
        if (chosen.lock, chosen.python) not in common:
            common.add((chosen.lock, chosen.python))
            if chosen.packages == "lock":
                found = wheels.wheels(
                    lock(chosen, root), python=chosen.python, platform=chosen.platform, cache=wheel_cache()
                )
                move += wheels.missing_bytes(bucket, found)
            made = runner_bundle(environment(chosen, root=root, keys=None))
            move += 0 if bucket.size(f"bundles/{made.sha256}/_run.py") is not None else made.size_bytes
        for key, fact in sources.items():
            if key.partition(".")[0] == step and fact.artifact is not None and not fact.listed and fact.as_ == "path":
                there = dict(bucket.keys(f"inputs/{fact.artifact.sha256}/"))
                move += 0 if there else fact.artifact.size_bytes
        prices = Prices.read(root / chosen.prices if chosen.prices else None)
        said = prices.source
        price = prices.of(chosen.instance, limit_s(pipeline.steps[step].timeout_s, chosen))
        known = known and price is not None
        ceiling += price or 0.0
    return Estimate(move, ceiling if known else None, said)
