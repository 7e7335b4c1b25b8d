"""A version's steps to its last target: approval, then one target after the other, as they require each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from runner.errors import Refused, UsageError
from runner.model.events import second_approval
from runner.model.served import CHANGES, SERVES, Deployment
from runner.model.versions import Registry
from runner.records import Target


@dataclass(frozen=True)
class ReleaseStep:
    """`target` is None for the approval itself."""

    what: Literal["approve", "approve for", "deploy"]
    target: str | None = None

    def sentence(self, label: str) -> str:
        match self.what:
            case "approve":
                return f"approve {label}"
            case "approve for":
                return f"approve {label} for {self.target}"
            case _:
                return f"deploy {label} to {self.target}"


def path_to(targets: Mapping[str, Target], to: str | None) -> list[str]:
    """The targets up to `to`, the first one first; by default up to the one that no other requires.

    Raises UsageError where there is none, or several.
    """
    required = {target.requires for target in targets.values()}
    ends = [name for name in targets if name not in required] if to is None else [to]
    if len(ends) != 1:
        raise UsageError(
            f"Which target is the last one? {', '.join(ends) or 'There are none.'} "
            "Name it: runner release … --to TARGET"
        )
    path: list[str] = []
    target: str | None = ends[0]
    while target is not None:
        if target not in targets:
            raise UsageError(f"There is no target {target!r}; there is {', '.join(targets) or 'none'}.")
        path.insert(0, target)
        target = targets[target].requires
    return path


def steps(
    registry: Registry, name: str, version: int, *, targets: Mapping[str, Target], to: str | None
) -> Iterator[ReleaseStep]:
    """What is to be done still, the next step once the one before it is done. Raises Refused for a rejected version."""
    path = path_to(targets, to)
    registered = registry.get(name, version)
    if registered.status == "rejected":
        raise Refused(f"{name}/{version} was rejected by {registered.decided_by}: {registered.reason}")
    if registered.status == "pending":
        yield ReleaseStep("approve")
    for target in path:
        events = [event for event in registry.events(name) if event.data.get("target") == target]
        changes = [event for event in events if event.kind in CHANGES]
        own = [event for event in changes if event.version == version and event.kind in SERVES]
        if own and (target != path[-1] or own[-1] == changes[-1]):
            continue  # has proved itself here, or serves here now
        if targets[target].second_approval and second_approval(registry.events(name), version, target) is None:
            yield ReleaseStep("approve for", target)
        yield ReleaseStep("deploy", target)


def release(
    registry: Registry,
    name: str,
    version: int,
    *,
    targets: Mapping[str, Target],
    to: str | None,
    may: Callable[[ReleaseStep], bool],
    do: Callable[[ReleaseStep], Deployment | None],
) -> list[ReleaseStep]:
    """Take the version all the way; the steps that were done. Again goes on where it stopped.

    `may` is asked before each step; Refused is raised where it says no, and whatever `do` raises.
    """
    done = []
    for step in steps(registry, name, version, targets=targets, to=to):
        if not may(step):
            raise Refused(
                f"Stopped before it would {step.sentence(f'{name}/{version}')}. The same command goes on there."
            )
        do(step)
        done.append(step)
    return done
