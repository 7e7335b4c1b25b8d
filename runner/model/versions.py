"""The registry's records, what is asked for, what there is, what happened to it; and what a registry can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from runner.paths import FileName, Sha256
from runner.records import Artifact, Metric, Record

Status = Literal["pending", "approved", "rejected"]
Decision = Literal["approved", "rejected"]
StateChange = Literal["registered", "approved", "rejected", "reopened"]  # reopened: set to pending in SageMaker
Change = Literal["deployed", "rolled back", "removed"]  # at a target


class Claim(Record, frozen=True, kw_only=True):
    """What an imported run says of itself and its version where it came from. Shown, and never acted on."""

    project: str
    started_by: str
    identity: str = ""
    version: int = 0  # its number there; 0 where the run came without one
    events: list[Event] = []  # of that version


class NewVersion(Record, frozen=True, kw_only=True):
    """A model to register. `artifact.path` is relative to the run's folder; `sources` are hashes of the data.

    `created_by` started the run, or took it in where it was `imported`.
    """

    name: FileName
    run: FileName
    sha256: Sha256
    artifact: Artifact
    metrics: dict[str, Metric] = {}
    created_by: str
    identity: str = ""  # the ARN of who started the run, where AWS keeps the registry
    commit: str | None = None
    sources: dict[str, str] = {}
    description: str = ""
    card: str = ""
    imported: Claim | None = None


class ModelVersion(Record, frozen=True, kw_only=True):
    """A registered version, with the state its events add up to."""

    name: FileName
    version: int
    status: Status
    run: FileName
    sha256: Sha256
    artifact: Artifact
    metrics: dict[str, Metric]
    created: str
    created_by: str
    identity: str = ""
    decided_by: str | None = None
    decided: str | None = None  # UTC
    reason: str | None = None
    commit: str | None = None
    sources: dict[str, str] = {}
    description: str = ""
    card: str = ""
    imported: Claim | None = None
    location: str = ""  # address of the folder's files in S3, ends in `/`; "" where they are in the run alone

    @property
    def label(self) -> str:
        """NAME/VERSION, as commands take it."""
        return f"{self.name}/{self.version}"


class Event(Record, frozen=True, kw_only=True):
    """One thing that happened to a version. `hash` covers all other fields, the previous event's hash among them."""

    seq: int  # 1, 2, … within one name
    name: FileName
    version: int
    kind: str  # a StateChange, a Change at a target, "approved for TARGET" or what else is recorded
    who: str
    at: str  # UTC
    why: str
    data: dict[str, Any] = {}
    previous: str
    hash: str


class Registry(Protocol):
    """Versions of models, numbered per name without gaps. All raise RegistryUnusable where the store cannot be used."""

    def register(self, new: NewVersion) -> ModelVersion:
        """The new version, pending; the existing one where this run registered before. Refused if its bytes differ."""

    def get(self, name: str, version: int) -> ModelVersion:
        """Raises UsageError naming what there is."""

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        """By name and number."""

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        """pending → approved | rejected; approved → rejected. Anything else is Refused, naming who decided and when."""

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        """Add an event that changes no state (deployed, rolled back, removed, approved for …)."""

    def events(self, name: str) -> Sequence[Event]:
        """All events of the name, oldest first."""

    def approved(self, name: str) -> ModelVersion | None:
        """The highest approved version."""
