"""What a run would do, and why, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runner.content import bytes_fact
from runner.gate import judge
from runner.manifest import recorded
from runner.pipeline import mapping
from runner.pipeline.file import VERDICT
from runner.pipeline.plan import Plan, PlannedStep
from runner.records import Artifact, InputFact, InputSpec, Key, StepKey, StepResult, Verdict, encode
from runner.run import folder as run_folder
from runner.run.cache import Cache, Miss
from runner.run.keys import of_one, step_key
from runner.run.mapped import keys_of
from runner.run.orchestrate import VERDICT_FILE
from runner.run.pinned_inputs import pinned
from runner.run.ports import Options, Runtime, World


@dataclass(frozen=True)
class StepPreview:
    """`action` is run, cached, skip, or maybe: whether it runs depends on the results of steps before it."""

    name: str
    action: str
    why: str


@dataclass(frozen=True)
class Preview:
    """The steps in order, `sources`, what comes from outside the run, by "step.input", and the steps' known keys."""

    steps: list[StepPreview]
    sources: dict[str, InputFact]
    keys: dict[str, StepKey] = field(default_factory=dict)


def preview(plan: Plan, options: Options, world: World) -> Preview:
    """What each step would do. Remote sources are fetched for it; nothing is executed."""
    world.store.prepare()
    with world.store.shared():
        sources, _ = pinned(plan, world)
        if options.force:
            steps = [
                StepPreview(step.name, "skip" if step.skip else "run", step.skip or "forced") for step in plan.steps
            ]
            return Preview(steps, sources)
        previewed = _Previewed(plan, sources, Cache(world.store, plan.root), world.runtime)
        steps = [previewed.step(step) for step in plan.steps]
        previewed.cache.hashes.save()
        return Preview(steps, sources, previewed.keys)


@dataclass
class _Previewed:
    """The steps looked at so far; `results` has those of steps that would be cached, `keys` those that are known."""

    plan: Plan
    sources: dict[str, InputFact]
    cache: Cache
    runtime: Runtime | None
    results: dict[str, StepResult] = field(default_factory=dict)
    keys: dict[str, StepKey] = field(default_factory=dict)

    def step(self, step: PlannedStep) -> StepPreview:
        if step.skip:
            return StepPreview(step.name, "skip", step.skip)
        waiting = [need for need in step.needs if need not in self.results]
        if waiting:
            return StepPreview(step.name, "maybe", f"depends on what {', '.join(waiting)} gives")
        verdict = self._verdict() if step.needs_verdict else None
        if verdict is not None and verdict.outcome != "pass":
            return StepPreview(step.name, "skip", f"the gate's verdict is {verdict.outcome}")
        inputs = {name: self._input(f"{step.name}.{name}", spec, verdict) for name, spec in step.spec.inputs.items()}
        keys = keys_of(step, self.results, self.cache.store)
        key = step_key(step, inputs, index_file=self.cache.packages_file, runtime=self.runtime, keys=keys)
        self.keys[step.name] = key
        match = self.cache.find(step, key)
        if isinstance(match, Miss):
            return StepPreview(step.name, "run", self._missing_keys(step, key, keys) + match.why)
        self.results[step.name] = match.result
        return StepPreview(step.name, "cached", f"from {match.run}")

    def _missing_keys(self, step: PlannedStep, key: StepKey, keys: Sequence[Key]) -> str:
        """ "2 of 6 keys: " of a mapped step, those that were not executed before."""
        if not keys:
            return ""
        parameter, _ = mapping.source(step.spec)
        matches = [self.cache.find_key(step.name, of_one(key, parameter, value)) for value in keys]
        return f"{sum(isinstance(match, Miss) for match in matches):,} of {len(keys):,} keys: "

    def _input(self, key: str, spec: InputSpec, verdict: Verdict | None) -> InputFact:
        if key in self.sources:
            return self.sources[key]
        if spec.from_ == VERDICT and verdict is not None:
            fact = bytes_fact(encode(verdict))
            artifact = Artifact(path=VERDICT_FILE, sha256=fact.sha256, size_bytes=fact.size_bytes)
            return InputFact(source=VERDICT, artifact=artifact)
        return run_folder.upstream_input(spec.from_, self.results)

    def _verdict(self) -> Verdict:
        metrics, problems = recorded(self.results)
        inputs = {f"{step.name}.{name}" for step in self.plan.steps for name in step.spec.inputs}
        present = {key for key in inputs if key not in self.sources or self.sources[key].present}
        keyed = {name: result.mapped.keys for name, result in self.results.items() if result.mapped is not None}
        return judge(metrics, self.plan.pipeline.gate, problems=problems, present=present, keyed=keyed)
