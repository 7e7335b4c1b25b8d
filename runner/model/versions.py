"""The registry's records: what is asked for, what there is, and what happened to it."""

from __future__ import annotations

from typing import Any, Literal

from runner.records import Artifact, Metric, Record

Status = Literal["pending", "approved", "rejected"]
Decision = Literal["approved", "rejected"]


class NewVersion(Record, frozen=True, kw_only=True):
    """A model to register. `artifact.path` is relative to the run's folder; `sources` are hashes of the data."""

    name: str
    run: str
    sha256: str
    artifact: Artifact
    metrics: dict[str, Metric] = {}
    created_by: str
    commit: str | None = None
    sources: dict[str, str] = {}
    description: str = ""
    card: str = ""


class ModelVersion(Record, frozen=True, kw_only=True):
    """A registered version, with the state its events add up to."""

    name: str
    version: int
    status: Status
    run: str
    sha256: str
    artifact: Artifact
    metrics: dict[str, Metric]
    created: str
    created_by: str
    decided_by: str | None = None
    reason: str | None = None
    commit: str | None = None
    sources: dict[str, str] = {}
    description: str = ""
    card: str = ""


class Event(Record, frozen=True, kw_only=True):
    """One thing that happened to a version. `hash` covers all other fields, the previous event's hash among them."""

    seq: int  # 1, 2, … within one name
    name: str
    version: int
    kind: str  # registered, approved, rejected; later deployed, rolled back
    who: str
    at: str  # UTC
    why: str
    data: dict[str, Any] = {}
    previous: str
    hash: str
