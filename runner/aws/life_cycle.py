"""Where a version is in its life, in the words of SageMaker's ModelLifeCycle: at a stage, serving or retired."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runner.model.served import CHANGES, SERVES, serves
from runner.model.versions import Event

SERVING, RETIRED = "Serving", "Retired"  # as infra/policies.yaml lets the deployer say
LONGEST_STAGE = 63  # letters, digits and `-` between them


def stage(target: str) -> str:
    """The target's stage: `production` is Production, as in SageMaker's own list of stages."""
    name = "-".join(re.findall("[A-Za-z0-9]+", target))[:LONGEST_STAGE].rstrip("-")
    return name[:1].upper() + name[1:]


def life_cycle(events: Sequence[Event], version: int) -> tuple[str, str] | None:
    """(stage, status) by the events of its name: of the target that it was brought to last and serves at, or else
    of the last one that it served at; None where it never served."""
    serving = serves(events)
    own = [event.data["target"] for event in events if event.version == version and event.kind in SERVES]
    still_served = [target for target in own if serving.get(target) == version]
    if not own:
        return None
    return stage((still_served or own)[-1]), SERVING if still_served else RETIRED


def changed(events: Sequence[Event]) -> dict[int, tuple[str, str]]:
    """(stage, status) of the version that the last event brought to a target or took from there, and of the one that
    served there before, where that changes."""
    if events[-1].kind not in CHANGES:
        return {}
    last, earlier = events[-1], events[:-1]
    before = serves(earlier).get(last.data["target"], last.version)
    current = {version: life_cycle(events, version) for version in sorted({last.version, before})}
    return {
        version: stage_now
        for version, stage_now in current.items()
        if stage_now is not None and (version == last.version or stage_now != life_cycle(earlier, version))
    }
