"""Models and endpoint configurations that no endpoint of the project has, or goes back to.

They cost nothing and count in the account's quotas. The history tells which there are: the right to list them would
show everybody's. A name follows from its content, so what is needed once more, by `rollback` too, is made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from runner.aws.session import AwsError, Session
from runner.model.versions import Registry

LOOKED_AT = 5  # the last configurations of a target: earlier changes have removed those before them


def remove_leftovers(session: Session, registry: Registry, target: str, *, keep: Collection[str], begun: str) -> None:
    """The target's configurations but those to keep, and their models where no other configuration has them.

    `begun` is the kind of event that names a configuration. What cannot be removed, for lack of a right for example,
    is tried again at the next change.
    """
    configs_of: dict[str, dict[str, None]] = {}  # by target, in the order of their last use
    events = [event for name in {version.name for version in registry.list()} for event in registry.events(name)]
    for event in sorted((event for event in events if event.kind == begun), key=lambda event: event.at):
        configs = configs_of.setdefault(event.data["target"], {})
        for config in filter(None, (event.data["previous"], event.data["config"])):
            configs.pop(config, None)
            configs[config] = None
    elsewhere = [config for name, configs in configs_of.items() if name != target for config in [*configs][-LOOKED_AT:]]
    used = {_model(session, config) for config in (*keep, *elsewhere)}
    for config in [config for config in configs_of.get(target, ()) if config not in keep][-LOOKED_AT:]:
        model = _model(session, config)
        with contextlib.suppress(AwsError):
            if model and model not in used:
                _call(session, "delete_model", ModelName=model)
            if model:
                _call(session, "delete_endpoint_config", EndpointConfigName=config)


def _model(session: Session, config: str) -> str:
    """The configuration's model, "" where there is no such configuration."""
    with contextlib.suppress(AwsError):
        description = _call(session, "describe_endpoint_config", EndpointConfigName=config)
        return str(description["ProductionVariants"][0]["ModelName"])
    return ""


def _call(session: Session, action: str, **arguments: str) -> dict[str, Any]:
    return session.call("sagemaker", action, about=" ".join(arguments.values()), **arguments)
