"""What a run would do, and why, without doing it."""

from __future__ import annotations

from dataclasses import dataclass

from runner.gate import judge
from runner.pipeline.file import VERDICT
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import Artifact, InputFact, Metric, StepResult, Verdict, encode
from runner.run import folder as run_folder
from runner.run.cache import Cache
from runner.run.keys import step_key
from runner.run.pinned_inputs import pinned
from runner.run.ports import Options, Runtime, World


@dataclass(frozen=True)
class Expected:
    """`would` is run, cached, skip, or maybe: whether it runs depends on what steps before it give."""

    name: str
    would: str
    why: str


def preview(
    plan: Plan, options: Options, world: World, *, on_sources: dict[str, InputFact] | None = None
) -> list[Expected]:
    """What each step would do, in order. Remote sources are fetched for it; nothing is executed.

    `on_sources` is filled with what comes from outside the run, by "step.input".
    """
    world.store.prepare()
    with world.store.shared():
        return _previewed(plan, options, world, on_sources)


def _previewed(plan: Plan, options: Options, world: World, on_sources: dict[str, InputFact] | None) -> list[Expected]:
    sources, _ = pinned(plan, world)
    cache = Cache(world.store, plan.root)
    results: dict[str, StepResult] = {}
    expected: list[Expected] = []
    if on_sources is not None:
        on_sources.update(sources)
    for step in plan.steps:
        if options.force:
            expected.append(Expected(step.name, "skip" if step.skip else "run", step.skip or "forced"))
            continue
        expected.append(_expect(step, plan, sources, cache, results, world.runtime))
    cache.checked.save()
    return expected


def _expect(
    step: PlannedStep,
    plan: Plan,
    sources: dict[str, InputFact],
    cache: Cache,
    results: dict[str, StepResult],
    runtime: Runtime | None,
) -> Expected:
    if step.skip:
        return Expected(step.name, "skip", step.skip)
    waiting = [need for need in step.needs if need not in results]
    if waiting:
        return Expected(step.name, "maybe", f"depends on what {', '.join(waiting)} gives")
    verdict = _verdict(plan, sources, results) if step.needs_verdict else None
    if verdict is not None and verdict.outcome != "pass":
        return Expected(step.name, "skip", f"the gate's verdict is {verdict.outcome}")
    inputs: dict[str, InputFact] = {}
    for name, spec in step.spec.inputs.items():
        if f"{step.name}.{name}" in sources:
            inputs[name] = sources[f"{step.name}.{name}"]
        elif spec.from_ == VERDICT and verdict is not None:
            inputs[name] = _fact(encode(verdict))
        else:
            upstream, _, output = spec.from_.partition(".")
            inputs[name] = run_folder.as_input(results[upstream], output, spec.from_)
    found = cache.find(step, step_key(step, inputs, index_file=cache.packages_file, runtime=runtime))
    if found.state is None or found.state.result is None:
        return Expected(step.name, "run", found.why)
    results[step.name] = found.state.result
    return Expected(step.name, "cached", f"from {found.run}")


def _verdict(plan: Plan, sources: dict[str, InputFact], results: dict[str, StepResult]) -> Verdict:
    metrics: dict[str, Metric] = {}
    problems: dict[str, str] = {}
    for name, result in results.items():
        metrics |= {f"{name}.{key}": metric for key, metric in result.metrics.items()}
        problems |= {f"{name}.{key}": problem for key, problem in result.problems.items()}
    present = {key for key, fact in sources.items() if fact.present}
    present |= {
        f"{step.name}.{name}"
        for step in plan.steps
        for name in step.spec.inputs
        if f"{step.name}.{name}" not in sources
    }
    return judge(metrics, plan.pipeline.gate, problems=problems, present=present)


def _fact(data: bytes) -> InputFact:
    import hashlib

    found = Artifact(path="verdict.json", sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    return InputFact(source=VERDICT, artifact=found)
