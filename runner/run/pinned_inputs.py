"""What a run reads from outside, identified before its first kernel starts."""

from __future__ import annotations

from runner.manifest import Champion
from runner.pipeline.file import APPROVED, AT_TARGET, is_address, is_path
from runner.pipeline.plan import Plan
from runner.records import InputFact
from runner.run import sources
from runner.run.ports import World
from runner.run.target_inputs import of_target, pinned_version, window_of


def pinned(plan: Plan, world: World) -> tuple[dict[str, InputFact], Champion | None]:
    """Every input from outside, as "step.input", fetched where needed; and the approved version to compare with."""
    facts: dict[str, InputFact] = {}
    champion: Champion | None = None
    for step in plan.steps:
        for name, spec in step.spec.inputs.items():
            if step.skip:
                continue
            key = f"{step.name}.{name}"
            if not spec.from_:
                facts[key] = sources.absent("")
            elif is_path(spec.from_):
                facts[key] = sources.local(spec, plan.root, world.store)
            elif is_address(spec.from_):
                # a job reads from S3 itself; anything else is fetched first
                fetch = world.runtime is None or not spec.from_.startswith("s3://")
                facts[key] = sources.remote(spec, world.store, world.remote_for, fetch=fetch)
            elif spec.from_.startswith(APPROVED):
                version = world.registry.approved(spec.from_.removeprefix(APPROVED))
                facts[key] = pinned_version(spec.from_, version, world.store)
                if version is not None:
                    champion = Champion(
                        name=version.name, version=version.version, run=version.run, sha256=version.sha256
                    )
            elif spec.from_.startswith(AT_TARGET):
                facts[key] = of_target(spec, step.name, window_of(step), world)
    return facts, champion
