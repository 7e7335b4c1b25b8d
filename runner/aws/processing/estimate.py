"""The bytes that a run would upload to S3, and its highest cost, before anything is uploaded or started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.aws.bucket import Bucket
from runner.aws.processing import wheels
from runner.aws.processing.bundle import NOTEBOOK, START, Bundle, code_bundle
from runner.aws.processing.executor import lock_wheels, packaging, runner_bundle
from runner.aws.processing.prices import Prices, project_prices
from runner.aws.processing.request import AFTER_STEP_S, job_timeout_s, limit_s
from runner.aws.session import Session
from runner.aws.settings import Settings, could_share, one_machine, settings
from runner.pipeline.plan import Plan
from runner.records import InputFact, StepSpec
from runner.run.retries import TRANSIENT_RETRIES


@dataclass(frozen=True)
class JobSplit:
    """How steps may be split into jobs. `jobs` counts the starts by instance type (with the kind of job, if it is not a
    processing job); `ceiling_usd` is the cost if each attempt at each step takes all its time, on spot too at the usual
    price, None where a price is not known; `chosen`: as pipeline.toml has it."""

    name: str
    jobs: dict[str, int]
    ceiling_usd: float | None
    chosen: bool


@dataclass(frozen=True)
class Estimate:
    """`ceiling_usd` is that of the chosen split, for every step that may run."""

    move_bytes: int
    ceiling_usd: float | None
    prices: str
    ways: list[JobSplit]


def estimate(
    session: Session,
    plan: Plan,
    names: Iterable[str],
    sources: Mapping[str, InputFact],
    *,
    undeclared: Mapping[str, Iterable[str]],
) -> Estimate:
    """For the steps of these names; `sources` are the inputs from outside the run, by "step.input", and `undeclared`
    the project's files that a step has read without their being inputs."""
    selected, packagings = set(names), set[tuple[str, ...]]()
    steps = [step for step in plan.steps if step.name in selected]
    missing: dict[str, int] = {}  # address -> bytes, so that what two steps need is counted once
    table = ""
    for step in steps:
        job_settings = settings(plan.pipeline, step.name)
        bucket = Bucket(session, job_settings.bucket, job_settings.prefix)
        key = (bucket.name, bucket.prefix, *packaging(job_settings))
        if key not in packagings:
            packagings.add(key)
            packages = lock_wheels(job_settings, plan.root)
            missing |= {bucket.address(wheel.key): wheel.size_bytes for wheel in wheels.missing(bucket, packages)}
            runner = runner_bundle(job_settings, packages, bucket, root=plan.root)
            missing |= _missing_bundle(runner, "bundles/", START, bucket)
        code = code_bundle(
            step.notebook.path.read_bytes(),
            notebook=step.spec.notebook,
            modules=step.modules,
            root=plan.root,
            include=job_settings.include,
            also=undeclared.get(step.name, ()),
        )
        missing |= _missing_bundle(code, "steps/", NOTEBOOK, bucket)
        missing |= _missing_inputs(step.name, sources, bucket)
        table = project_prices(job_settings, plan.root).source
    splits = job_splits(plan, [step.name for step in steps])
    ceiling = next((split.ceiling_usd for split in splits if split.chosen), 0.0)
    return Estimate(sum(missing.values()), ceiling, table, splits)


def job_splits(plan: Plan, steps: Sequence[str]) -> list[JobSplit]:
    """The different ways to split these steps, in their order, into jobs: each alone, together where that is possible,
    and as pipeline.toml has it."""
    groups = {
        "apart": [[step] for step in steps],
        "together": _grouped(steps, lambda *pair: could_share(plan.pipeline, *pair)),
        "as set": _grouped(steps, lambda *pair: one_machine(plan.pipeline, *pair)),
    }
    different: dict[str, list[list[str]]] = {}
    for name, jobs in groups.items():
        if jobs and jobs not in different.values():
            different[name] = jobs
    return [_split(name, jobs, plan, chosen=jobs == groups["as set"]) for name, jobs in different.items()]


def _grouped(steps: Sequence[str], fit: Callable[..., bool]) -> list[list[str]]:
    groups: list[list[str]] = []
    for step in steps:
        if groups and fit(groups[-1][0], step):
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def _split(name: str, groups: Sequence[Sequence[str]], plan: Plan, *, chosen: bool) -> JobSplit:
    jobs, costs = dict[str, int](), list[float | None]()
    for steps in groups:
        first = settings(plan.pipeline, steps[0])
        kind = f"{first.instance} as a {first.kind}" if first.trains else first.instance
        kind = f"{first.instance_count} × {kind}" if first.instance_count > 1 else kind
        jobs[kind] = jobs.get(kind, 0) + 1
        prices = project_prices(first, plan.root)
        costs += [most_usd(plan.pipeline.steps[step], settings(plan.pipeline, step), prices) for step in steps]
        saved = prices.of(first.instance, AFTER_STEP_S * (len(steps) - 1))
        costs.append(None if saved is None else -saved)
    known = [cost for cost in costs if cost is not None]
    return JobSplit(name, jobs, sum(known) if len(known) == len(costs) else None, chosen)


def most_usd(step: StepSpec | None, job_settings: Settings, prices: Prices) -> float | None:
    """The cost of a step if each attempt takes all its time on all its machines, and its instance waits unused where it
    is kept warm; None where that has no price."""
    attempts = 1 + max(step.retries if step is not None else 0, TRANSIENT_RETRIES)
    most_s = limit_s([job_timeout_s(step) if step is not None else None], job_settings) + job_settings.keep_warm_s
    price = prices.of(job_settings.instance, most_s * job_settings.instance_count)
    return None if price is None else attempts * price


def _missing_bundle(bundle: Bundle, below: str, last: str, bucket: Bucket) -> dict[str, int]:
    key = f"{below}{bundle.sha256}/"
    return {} if bucket.size(key + last) is not None else {bucket.address(key): bundle.size_bytes}


def _missing_inputs(step: str, sources: Mapping[str, InputFact], bucket: Bucket) -> dict[str, int]:
    missing = {}
    for name, fact in sources.items():
        if name.partition(".")[0] == step and fact.artifact is not None and not fact.listed and fact.as_ == "path":
            key = f"inputs/{fact.artifact.sha256}/"
            if not any(True for _ in bucket.keys(key)):
                missing[bucket.address(key)] = fact.artifact.size_bytes
    return missing
