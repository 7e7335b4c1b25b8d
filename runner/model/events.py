"""The chain of events of one model name: each event's hash covers the one before, so that no row can be altered,
removed or moved unnoticed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from runner.model.versions import Event, ModelVersion, Status

FIRST = "0" * 64  # what the first event has as its previous hash
STATES: dict[str, Status] = {
    "registered": "pending",
    "approved": "approved",
    "rejected": "rejected",
    "reopened": "pending",
}


def chained(event: Event) -> Event:
    """The event with its hash."""
    return msgspec.structs.replace(event, hash=digest(event))


def digest(event: Event) -> str:
    """SHA-256 of the event's JSON with sorted keys and an empty hash."""
    blank = msgspec.structs.replace(event, hash="")
    return hashlib.sha256(msgspec.json.encode(blank, order="sorted")).hexdigest()


def verify_chain(events: Sequence[Event]) -> str | None:
    """A sentence about the first event that is not as it was written; None where all are."""
    previous = FIRST
    for number, event in enumerate(events, 1):
        where = f"event {event.seq} ({event.kind} {event.name}/{event.version})"
        if event.seq != number:
            return f"{where} stands where event {number} was: one was removed or moved."
        if event.previous != previous:
            return f"{where} does not follow the event before it: one was altered, removed or moved."
        if digest(event) != event.hash:
            return f"{where} was altered: its content does not give its hash."
        previous = event.hash
    return None


def state_at(events: Sequence[Event], moment: str) -> dict[int, tuple[Status, Event | None]]:
    """Each version that was there at `moment` (UTC, as events have it), with its state then and the decision."""
    until = [event for event in events if event.at <= moment]
    return {version: state(until, version) for version in dict.fromkeys(event.version for event in until)}


def claim(version: ModelVersion) -> str:
    """The claim of an imported version, in words; "" for a version that was made here."""
    imported = version.imported
    if imported is None:
        return ""
    if not imported.version:
        return f"its run came from {imported.project} (imported, not checked)"
    status, decision = state(imported.events, imported.version)
    other = f" as {version.name}/{imported.version}" if imported.version != version.version else ""
    by = f" by {decision.who} on {decision.at[:10]}" if decision is not None else ""
    return f"{status} in {imported.project}{other}{by} (imported, not checked)"


def state(events: Sequence[Event], version: int) -> tuple[Status, Event | None]:
    """The version's state and the decision that made it, from its events in order."""
    status: Status = "pending"
    decision: Event | None = None
    for event in events:
        if event.version == version and event.kind in STATES:
            status = STATES[event.kind]
            decision = event if event.kind != "registered" else None
    return status, decision


def second_approval(events: Sequence[Event], version: int, target: str) -> Event | None:
    """The one for the target that was given since the version was last approved."""
    _, first = state(events, version)
    for event in events:
        after_first = first is None or event.seq > first.seq
        if event.version == version and event.kind == f"approved for {target}" and after_first:
            return event
    return None
