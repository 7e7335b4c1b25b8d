"""What a run would move to S3 and could cost at most, before anything is moved or started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.aws.bucket import Bucket
from runner.aws.processing import wheels
from runner.aws.processing.bundle import NOTEBOOK, START, Bundle, code_bundle
from runner.aws.processing.executor import runner_bundle
from runner.aws.processing.prices import Prices
from runner.aws.processing.request import AFTER_STEP_S, limit_s
from runner.aws.session import Session
from runner.aws.settings import Settings, could_share, lock_file, one_machine, settings
from runner.notebook.redaction import FORMS
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import InputFact, StepSpec
from runner.run.retries import TRANSIENT_RETRIES


@dataclass(frozen=True)
class JobSplit:
    """How steps may be put into jobs: as many starts by instance type, with what job it is where that is no processing
    job, and what they cost if each step and each attempt at it takes all the time it may, on spot too at the usual price;
    None where a price is not known. `chosen`: as pipeline.toml says."""

    name: str
    jobs: dict[str, int]
    ceiling_usd: float | None
    chosen: bool


@dataclass(frozen=True)
class Estimate:
    """`ceiling_usd`: of the chosen way, of every step that may run."""

    move_bytes: int
    ceiling_usd: float | None
    prices: str
    ways: list[JobSplit]


def estimate(
    session: Session,
    plan: Plan,
    steps: Iterable[str],
    sources: Mapping[str, InputFact],
    *,
    undeclared: Mapping[str, Iterable[str]],
) -> Estimate:
    """For these steps; `sources` are what comes from outside the run, by "step.input", and `undeclared` the project's
    files that a step has read without their being inputs."""
    wanted, common = set(steps), set[tuple[object, ...]]()
    missing: dict[str, int] = {}  # by address, so that what two steps need is counted once
    said = ""
    for step in plan.steps:
        if step.name not in wanted:
            continue
        chosen = settings(plan.pipeline, step.name)
        bucket = Bucket(session, chosen.bucket, chosen.prefix)
        packages = (chosen.bucket, chosen.prefix, chosen.lock, chosen.python, chosen.platform, chosen.packages)
        if packages not in common:
            common.add(packages)
            missing |= _packages(plan.root, chosen, bucket)
        missing |= _code(step, plan, chosen, bucket, undeclared.get(step.name, ()))
        missing |= _inputs(step.name, sources, bucket)
        said = Prices.read(plan.root / chosen.prices if chosen.prices else None).source
    found = ways(plan, [step.name for step in plan.steps if step.name in wanted])
    ceiling = next((way.ceiling_usd for way in found if way.chosen), 0.0)
    return Estimate(sum(missing.values()), ceiling, said, found)


def ways(plan: Plan, steps: Sequence[str]) -> list[JobSplit]:
    """The ways to put these steps, in their order, into jobs: apart, together where that is another one, and that of
    pipeline.toml where it is neither."""
    alone = [[step] for step in steps]
    kinds = {
        "apart": alone,
        "together": _grouped(steps, lambda *those: could_share(plan.pipeline, *those)),
        "as set": _grouped(steps, lambda *those: one_machine(plan.pipeline, *those)),
    }
    chosen, found = kinds["as set"], list[JobSplit]()
    for name, groups in kinds.items():
        if steps and groups not in [kinds[way.name] for way in found]:
            found.append(_way(name, groups, plan, chosen=groups == chosen))
    return found


def _grouped(steps: Sequence[str], fit: Callable[..., bool]) -> list[list[str]]:
    found: list[list[str]] = []
    for step in steps:
        if found and fit(found[-1][0], step):
            found[-1].append(step)
        else:
            found.append([step])
    return found


def _way(name: str, groups: Sequence[Sequence[str]], plan: Plan, *, chosen: bool) -> JobSplit:
    jobs, costs = dict[str, int](), list[float | None]()
    for steps in groups:
        made = settings(plan.pipeline, steps[0])
        kind = f"{made.instance} as a {made.kind}" if made.trains else made.instance
        jobs[kind] = jobs.get(kind, 0) + 1
        prices = Prices.read(plan.root / made.prices if made.prices else None)
        costs += [most_usd(plan.pipeline.steps[step], settings(plan.pipeline, step), prices) for step in steps]
        saved = prices.of(made.instance, AFTER_STEP_S * (len(steps) - 1))
        costs.append(None if saved is None else -saved)
    known = [cost for cost in costs if cost is not None]
    return JobSplit(name, jobs, sum(known) if len(known) == len(costs) else None, chosen)


def attempts(step: StepSpec | None) -> int:
    """How often a step is executed at most: the first time, and for what may be tried again."""
    return 1 + max(step.retries if step is not None else 0, TRANSIENT_RETRIES)


def most_usd(step: StepSpec | None, chosen: Settings, prices: Prices) -> float | None:
    """What a step costs if each attempt takes all the time it may, and its instance waits in vain where it is kept warm;
    None where that has no price."""
    most_s = limit_s([step.timeout_s if step is not None else None], chosen) + chosen.keep_warm_s
    price = prices.of(chosen.instance, most_s)
    return None if price is None else attempts(step) * price


def _packages(root: Path, chosen: Settings, bucket: Bucket) -> dict[str, int]:
    """The wheels and the runner that are not in the bucket, with their bytes."""
    found: dict[str, int] = {}
    keys, all_ = None, []
    if chosen.packages == "lock":
        all_ = wheels.wheels(
            lock_file(chosen, root), python=chosen.python, platform=chosen.platform, cache=wheels.kept_folder()
        )
        found = {bucket.address(wheel.key): wheel.size_bytes for wheel in wheels.missing(bucket, all_)}
        keys = wheels.described(bucket, all_)
    return found | _bundle(runner_bundle(chosen, all_, root=root, keys=keys), "bundles/", START, bucket)


def _code(step: PlannedStep, plan: Plan, chosen: Settings, bucket: Bucket, undeclared: Iterable[str]) -> dict[str, int]:
    made = code_bundle(
        step.notebook.path.read_bytes(),
        notebook=step.spec.notebook,
        modules=step.modules,
        root=plan.root,
        include=chosen.include,
        also=undeclared,
        forms=FORMS,
    )
    return _bundle(made, "steps/", NOTEBOOK, bucket)


def _bundle(made: Bundle, below: str, last: str, bucket: Bucket) -> dict[str, int]:
    key = f"{below}{made.sha256}/"
    return {} if bucket.size(key + last) is not None else {bucket.address(key): made.size_bytes}


def _inputs(step: str, sources: Mapping[str, InputFact], bucket: Bucket) -> dict[str, int]:
    found = {}
    for name, fact in sources.items():
        if name.partition(".")[0] == step and fact.artifact is not None and not fact.listed and fact.as_ == "path":
            key = f"inputs/{fact.artifact.sha256}/"
            if not any(True for _ in bucket.keys(key)):
                found[bucket.address(key)] = fact.artifact.size_bytes
    return found
