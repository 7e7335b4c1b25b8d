"""The rules of every registry, wherever it keeps its events: who may decide, and what may follow what.

Pure: takes versions and events and raises an error, or gives the event or version that follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.errors import Refused, Tampered, UsageError
from runner.model.events import FIRST, STATES, chained, state, verify_chain
from runner.model.versions import Decision, Event, ModelVersion, NewVersion, Registry
from runner.records import ApprovalSpec, utc_text

ANYBODY = ApprovalSpec()
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")


@dataclass(frozen=True)
class Draft:
    """An event without its place in the history; `at` "" is the moment when it gets one."""

    name: str
    version: int
    kind: str
    who: str
    why: str
    data: dict[str, Any] = field(default_factory=dict)
    at: str = ""


@dataclass(frozen=True)
class Person:
    """Somebody who changes something. `known_by` says how that was known, and is kept with the change.

    `account`: of the process; `address`: the account of the pages' server, whose one-time address the person had;
    `jupyter`: the account, as Jupyter has let the person in; `password`; `header NAME`: as a proxy says.
    """

    who: str
    known_by: str = "account"

    @property
    def is_account(self) -> bool:
        return self.known_by in ("account", "address", "jupyter")


@dataclass(frozen=True)
class Decider:
    """Who decides, and the rules about that. `who` is `user@host`; `identity` the ARN where AWS knows the caller.

    `known_by` is as in `Person`, and is kept with the decision.
    """

    who: str
    identity: str = ""
    rules: ApprovalSpec = ANYBODY
    known_by: str = ""

    def __str__(self) -> str:
        return f"{self.who} ({_last_part(self.identity)})" if self.identity else self.who

    def check_named(self, label: str) -> None:
        """Raises Refused where [approval] by names others; whom AWS knows is called by ARN, or by its last part."""
        names = {self.identity, _last_part(self.identity)} if self.identity else _names_of(self.who)
        if self.rules.by and not names & set(self.rules.by):
            raise Refused(
                f"{self} may not decide on {label}: only {', '.join(self.rules.by)} may "
                "([approval] by in pipeline.toml)."
            )

    def check_not_starter(self, version: ModelVersion, *others: tuple[str, str]) -> None:
        """Raises Refused where [approval] not_starter keeps whoever started the run from approving.

        That is whoever registered an imported version, and whoever is said to have started its run; or one of `others`,
        each with their ARN.
        """
        claim = version.imported
        imported = () if claim is None else ((claim.started_by, claim.identity),)
        starters = ((version.created_by, version.identity), *imported, *others)
        if self.rules.not_starter and any(self.may_be(*starter) for starter in starters):
            raise Refused(
                f"{self} started the run of {version.label} and may not approve it "
                "([approval] not_starter in pipeline.toml). Somebody else has to; rejecting it is allowed."
            )

    def may_be(self, who: str, identity: str) -> bool:
        """Whether this may be one person: by their ARNs where AWS knows both, otherwise by what they can be called.

        An account's name on a machine proves little: who may use another account has its name, and in Studio all are
        `sagemaker-user`.
        """
        if self.identity and identity:
            return self.identity == identity
        return bool(_names_of(self.who, self.identity) & _names_of(who, identity))


def check_name(name: str, *, may_end_with_dash: bool = True) -> None:
    """Raises UsageError for what cannot be a model's name."""
    if not NAME.match(name) or (name.endswith("-") and not may_end_with_dash):
        raise UsageError(f"{name!r} is not a model name: letters, digits and `-`, at most 63.")


def check_chain(name: str, events: Sequence[Event]) -> None:
    """Raises Tampered unless the events are as they were written."""
    broken = verify_chain(events)
    if broken is not None:
        raise Tampered(f"The history of {name} was altered: {broken}")


def registered_before(new: NewVersion, events: Iterable[Event]) -> int | None:
    """The number of the version that the same run registered. Raises Refused where that has other bytes."""
    for event in events:
        if event.kind == "registered" and event.data.get("run") == new.run:
            before = str(event.data.get("sha256"))
            if before != new.sha256:
                raise Refused(
                    f"Run {new.run} registered {new.name}/{event.version} with other bytes before "
                    f"({before[:12]}, now {new.sha256[:12]}). A run registers one model."
                )
            return event.version
    return None


def check_decision(decision: Decision, version: int, events: Sequence[Event]) -> None:
    """A version is approved or rejected once, and an approved one may be rejected. Raises Refused for all else."""
    status, last = state(events, version)
    if status == "pending" or (status == "approved" and decision == "rejected"):
        return
    assert last is not None
    raise Refused(
        f"{last.name}/{version} is already {status}, by {last.who} at {last.at} ({last.why}). "
        f"It stays so; see `runner history {last.name}`."
    )


def check_approved(version: ModelVersion) -> None:
    if version.status != "approved":
        raise Refused(
            f"{version.label} is {version.status}; only an approved version is served. "
            f"See `runner models {version.name}`."
        )


def check_record(kind: str) -> None:
    """What changes a version's state is a decision, which is never recorded directly."""
    assert kind not in STATES, kind


def event_after(events: Sequence[Event], draft: Draft) -> Event:
    """The draft as the next event of its name, of which `events` has all."""
    seq, previous = (events[-1].seq + 1, events[-1].hash) if events else (1, FIRST)
    at = draft.at or utc_text()
    return chained(Event(**{**vars(draft), "at": at}, seq=seq, previous=previous, hash=""))


def model_version(facts: NewVersion, registered: Event, events: Sequence[Event], *, location: str = "") -> ModelVersion:
    """The version of these facts, with the state that the events of its name add up to."""
    status, decision = state(events, registered.version)
    return ModelVersion(
        **{name: getattr(facts, name) for name in NewVersion.__struct_fields__},
        version=registered.version,
        status=status,
        created=registered.at,
        decided_by=decision.who if decision else None,
        decided=decision.at if decision else None,
        reason=decision.why if decision else None,
        location=location,
    )


def highest_approved(versions: Iterable[ModelVersion]) -> ModelVersion | None:
    approved = (version for version in versions if version.status == "approved")
    return max(approved, key=lambda version: version.version, default=None)


def versions_of(registry: Registry, name: str) -> Sequence[ModelVersion]:
    """The versions of one name, none where there are none. Other names, which may be others', are not looked at."""
    try:
        return registry.list(name)
    except UsageError:
        return ()


def not_registered(name: str, version: int | None, highest: Mapping[str, int]) -> UsageError:
    """Names what there is instead; `highest` has the highest number of each name."""
    if name in highest:
        return UsageError(f"There is no {name}/{version}; its versions are 1 to {highest[name]}.")
    names = ", ".join(sorted(highest)) or "none yet; `runner check` says whether a run registers one"
    return UsageError(f"There is no registered model {name!r}. Registered: {names}.")


def _names_of(who: str, identity: str = "") -> set[str]:
    """What somebody can be called: `user@host`, `user`, and the ARN's last part, which is a user or a session."""
    return {name for name in (who, who.partition("@")[0], _last_part(identity)) if name}


def _last_part(arn: str) -> str:
    return arn.rpartition("/")[2]
