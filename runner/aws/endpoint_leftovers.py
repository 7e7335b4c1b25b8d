"""Models and endpoint configurations that no endpoint of the project has, or goes back to.

They cost nothing and count in the account's quotas. Which there are is known by the history: the right to list them would
show everybody's. A name follows from what it stands for, so what is wanted once more, by `rollback` too, is made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from runner.aws.session import AwsError, Session
from runner.model.versions import Registry

LOOKED_AT = 5  # the last configurations of a target: earlier changes have seen to what was before them


def remove_leftovers(session: Session, registry: Registry, target: str, *, keep: Collection[str], begun: str) -> None:
    """The target's configurations but those to keep, and their models where no other configuration has them.

    `begun` is the kind of event that names a configuration. What cannot be removed, for want of a right say, is tried
    again at the next change.
    """
    made: dict[str, dict[str, None]] = {}  # by target, in the order of their last use
    events = [event for name in {one.name for one in registry.list()} for event in registry.events(name)]
    for event in sorted((one for one in events if one.kind == begun), key=lambda one: one.at):
        configs = made.setdefault(event.data["target"], {})
        for config in filter(None, (event.data["previous"], event.data["config"])):
            configs.pop(config, None)
            configs[config] = None
    elsewhere = [config for name, configs in made.items() if name != target for config in [*configs][-LOOKED_AT:]]
    used = {_model(session, config) for config in (*keep, *elsewhere)}
    for config in [one for one in made.get(target, ()) if one not in keep][-LOOKED_AT:]:
        model = _model(session, config)
        with contextlib.suppress(AwsError):
            if model and model not in used:
                _call(session, "delete_model", ModelName=model)
            if model:
                _call(session, "delete_endpoint_config", EndpointConfigName=config)


def _model(session: Session, config: str) -> str:
    """The configuration's model, "" where there is no such configuration."""
    with contextlib.suppress(AwsError):
        found = _call(session, "describe_endpoint_config", EndpointConfigName=config)
        return str(found["ProductionVariants"][0]["ModelName"])
    return ""


def _call(session: Session, action: str, **arguments: str) -> dict[str, Any]:
    return session.call("sagemaker", action, about=" ".join(arguments.values()), **arguments)
