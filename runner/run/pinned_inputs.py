"""What a run depends on from outside, identified before its first kernel starts, and held to from then on."""

from __future__ import annotations

from runner.content import file_fact
from runner.errors import Refused
from runner.manifest import Champion
from runner.model.versions import ModelVersion
from runner.pipeline.file import APPROVED, is_address, is_path
from runner.pipeline.plan import Plan
from runner.records import InputFact
from runner.run import sources
from runner.run.ports import World
from runner.run.store import Store, facts_of


def pinned(plan: Plan, world: World) -> tuple[dict[str, InputFact], Champion | None]:
    """Everything the plan reads from outside, identified (and fetched) before the first kernel starts."""
    found: dict[str, InputFact] = {}
    champion: Champion | None = None
    for step in plan.steps:
        for name, spec in step.spec.inputs.items():
            if step.skip:
                continue
            key = f"{step.name}.{name}"
            if not spec.from_:
                found[key] = sources.absent("")
            elif is_path(spec.from_):
                found[key] = sources.local(spec, plan.root, world.store)
            elif is_address(spec.from_):
                # a job is given what lies in S3; anything else comes here first
                fetch = world.runtime is None or not spec.from_.startswith("s3://")
                found[key] = sources.remote(spec, world.store, world.remote_for, fetch=fetch)
            elif spec.from_.startswith(APPROVED):
                version = world.registry.approved(spec.from_.removeprefix(APPROVED))
                found[key] = _approved(spec.from_, version, world.store)
                if version is not None:
                    champion = Champion(
                        name=version.name, version=version.version, run=version.run, sha256=version.sha256
                    )
    return found, champion


def _approved(source: str, version: ModelVersion | None, store: Store) -> InputFact:
    """The approved version's folder; its bytes must still be those that were approved."""
    if version is None:
        return sources.absent(source)
    for path, fact in facts_of(version.artifact).items():
        if version.location and not store.here(fact):
            store.point(fact, version.location + path)
        if file_fact(store.object(fact)) != fact:
            raise Refused(
                f"The approved {version.label} was altered: object {fact.sha256[:12]} has other bytes. "
                f"Restore it, or revoke it with `runner reject {version.label} --reason …`."
            )
    return InputFact(source=source, artifact=version.artifact, version=version.label)
