"""The registry in SageMaker: a model package group per name, a model package per version, its history in S3.

What SageMaker keeps can be changed by anybody who may update a model package, and it forgets who decided and why. So
a version's state is what the events in S3 add up to, as in the local registry, and each access brings the two
together: a package of ours without an event gets one (a crash came between), a decision that was written down is
carried out (likewise), a state that was set in Studio is written down as an external decision; one that a package was
made with is not a decision. The event is always written before the package is changed: its number can be taken only
once, which decides between two that decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.creation import OURS, archive_key, creation, report_key, reports, value
from runner.aws.group import STATUS, Groups, Listed, carried_out, changed, described
from runner.aws.history import History, Objects
from runner.aws.package import Package, package, serving_image
from runner.aws.session import DENIED, AwsError, Session
from runner.errors import Refused, RegistryUnusable, Tampered, UsageError
from runner.escape import terminal
from runner.failpoint import reach
from runner.model.events import FIRST, STATES, chained, state, verify_chain
from runner.model.registry import NAME
from runner.model.versions import Decision, Event, ModelVersion, NewVersion, Status
from runner.records import utc_text

EVENT_OF = {"pending": "reopened", "approved": "approved", "rejected": "rejected"}  # the event that gives a state
STANDS = {"external": True}  # the data of an event that says what SageMaker has already
ATTEMPTS = 100  # to take a number while others take them; each failure is somebody's success

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployable:
    """What an endpoint is made of; the hash is the history's, not SageMaker's."""

    package: str  # ARN
    archive: str  # s3://…/model.tar.gz
    archive_sha256: str


@dataclass
class View:
    """One name's events and packages, brought together."""

    events: list[Event]
    packages: dict[int, Listed]
    objects: Objects = field(default_factory=dict)

    @property
    def registered(self) -> dict[int, Event]:
        found = {event.version: event for event in self.events if event.kind == "registered"}
        return dict(sorted(found.items()))


class SageMakerRegistry:
    """Implements `runner.model.versions.Registry`; asks nothing of AWS before one of its methods is called.

    `bucket` stands at the project's prefix. `model_folder` gives the folder whose bytes are registered, `run_address`
    the address of a run's folder with the executed notebooks ("" where it has none). `cache` is a folder on this
    machine that remembers what was read of the history.
    """

    def __init__(
        self,
        session: Session,
        bucket: Bucket,
        *,
        model_folder: Callable[[NewVersion], Path],
        run_address: Callable[[str], str] | None = None,
        image: Callable[[], str] | None = None,
        tags: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.session, self.bucket = session, bucket
        self.model_folder, self.run_address = model_folder, run_address
        self.image = image  # that serves what is registered; asked when a version is made
        self.groups = Groups(session, dict(tags or {}))
        self.history = History(bucket, cache)
        self.own = value(bucket.address("registry/"))
        self._others: set[str] = set()  # packages in our groups that are not versions of ours

    def register(self, new: NewVersion) -> ModelVersion:
        if not NAME.match(new.name) or new.name.endswith("-"):
            raise UsageError(f"{new.name!r} is not a model name: letters, digits and `-`, at most 63.")
        image = self.image() if self.image is not None else serving_image(self.session.region)
        view = self._view(new.name)
        found = self._of_run(view, new)
        if found is not None:
            return found
        made = package(self.model_folder(new))
        if made.folder_sha256 != new.sha256:
            raise Tampered(
                f"The model of {new.run} has the hash {made.folder_sha256[:12]}; recorded is {new.sha256[:12]}."
            )
        if not view.packages:
            self.groups.make(new.name)
            reach("group made")
        self.history.keep_facts(new)
        reach("facts written")
        self._upload(new, made)
        reach("model uploaded")
        source = self.run_address(new.run) if self.run_address is not None else ""
        asked = creation(new, made, bucket=self.bucket, image=image, registry=self.own, source=source)
        try:
            arn = self.groups.add(new.name, asked)
        except AwsError as error:
            if error.code != "ConflictException":  # another process registers this run just now, as something else
                raise
            found = self._of_run(self._view(new.name), new)
            if found is None:
                raise
            return found
        reach("package created")
        found = self._of_run(self._view(new.name, made=arn), new)
        reach("registration recorded")
        if found is None:
            raise RegistryUnusable(f"{arn} was made and is not in the history of {new.name}. Run again.")
        return found

    def get(self, name: str, version: int) -> ModelVersion:
        view = self._view(name)
        if version not in view.registered:
            raise UsageError(self._unknown(name, version))
        return self._versions(view)[version]

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        listed = self.history.listed(name)
        views = [self._view(one, objects=listed[one]) for one in sorted(listed)]
        found = [version for view in views for version in self._versions(view).values()]
        if name is not None and not found:
            raise UsageError(self._unknown(name, None))
        return found

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        for _ in range(ATTEMPTS):
            view = self._view(name)
            if version not in view.registered:
                raise UsageError(self._unknown(name, version))
            status, last = state(view.events, version)
            if not (status == "pending" or (status == "approved" and decision == "rejected")):
                assert last is not None
                raise Refused(
                    f"{name}/{version} is already {status}, by {last.who} at {last.at} "
                    f"({last.why}). It stays so; see `runner history {name}`."
                )
            listed = view.packages.get(version) or self.groups.find(view.registered[version].data.get("package", ""))
            if listed is None:
                raise Refused(f"{name}/{version} was deleted in SageMaker, so nothing can be decided on it.")
            event = _next(name, view.events, version, decision, who=who, why=why, at=utc_text(), data=data or {})
            if self.history.append(event):
                break
        else:
            raise _busy(name)
        reach("decision recorded")
        view.events.append(event)
        try:
            self.groups.carry_out(listed, event)
        except AwsError as error:
            if error.code not in DENIED:
                said = f"{error} The decision is written down; the next `runner models` carries it out."
                raise AwsError(said, code=error.code) from error
            self._take_back(event, status)
            raise
        reach("decision carried out")
        return self._versions(view)[version]

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        assert kind not in STATES, kind
        for _ in range(ATTEMPTS):
            view = self._view(name)
            if version not in view.registered:
                raise UsageError(self._unknown(name, version))
            event = _next(name, view.events, version, kind, who=who, why=why, at=utc_text(), data=data or {})
            if self.history.append(event):
                self.groups.tell_stages(view.packages, [*view.events, event])
                return event
        raise _busy(name)

    def events(self, name: str) -> Sequence[Event]:
        listed = self.history.listed(name).get(name, {})
        found = self.history.events(name, listed)
        if verify_chain(found) is not None:  # the caller can say which event it is
            return found
        found = self._view(name, objects=listed).events
        if not found:
            raise UsageError(self._unknown(name, None))
        return found

    def approved(self, name: str) -> ModelVersion | None:
        found = [version for version in self._versions(self._view(name)).values() if version.status == "approved"]
        return found[-1] if found else None

    def deployable(self, name: str, version: int) -> Deployable:
        """What the version's endpoint is made of, whatever its state. Raises UsageError naming what there is."""
        event = self._view(name).registered.get(version)
        if event is None:
            raise UsageError(self._unknown(name, version))
        return Deployable(**{key: str(event.data[key]) for key in ("package", "archive", "archive_sha256")})

    # Bringing SageMaker and the history together

    def _view(self, name: str, *, objects: Objects | None = None, made: str | None = None) -> View:
        """The name's history after everything that SageMaker has and it lacks was added. `made` is a new package."""
        for _ in range(ATTEMPTS):
            objects = self.history.listed(name).get(name, {}) if objects is None else objects
            view = View(self.history.events(name, objects), {}, objects)
            broken = verify_chain(view.events)
            if broken is not None:
                raise Tampered(f"The history of {name} was altered: {broken}")
            if objects:
                view.packages = self.groups.packages(name)
            if made is not None:
                view.packages.setdefault(int(made.rpartition("/")[2]), Listed(made, "pending", "(run new)"))
            if self._caught_up(name, view):
                return view
            objects = None
        raise _busy(name)

    def _caught_up(self, name: str, view: View) -> bool:
        """Add what is missing; False where another process added something first."""
        for number, listed in sorted(view.packages.items()):
            event = self._missing(name, view, number, listed)
            if event is not None:
                try:
                    if not self.history.append(event):
                        return False
                except AwsError as error:
                    if error.code not in DENIED:
                        raise
                    log.warning("%s/%d: %s is not written down: %s", name, number, event.kind, terminal(str(error)))
                view.events.append(event)
        return True

    def _missing(self, name: str, view: View, number: int, listed: Listed) -> Event | None:
        if number not in view.registered:
            if listed.arn in self._others or not OURS.search(listed.description):
                return None
            return self._registration(name, view, number, listed)
        status, last = state(view.events, number)
        if listed.status == status:
            return None
        found = self.groups.describe(listed.arn)
        listed.status = STATUS.get(found.get("ModelApprovalStatus", ""), "pending")
        if listed.status == status:
            return None
        if status == "pending" and not changed(found):
            log.warning("%s/%d was made as %s, by no decision: it is pending", terminal(name), number, listed.status)
            return None
        applied = carried_out(found)
        if last is not None and last.data != STANDS and last.seq > applied:
            before, _ = state(view.events[: last.seq - 1], number)
            if listed.status == before:  # it was written down, and then the process died
                try:
                    self.groups.carry_out(listed, last)
                except AwsError as error:
                    if error.code not in DENIED:
                        raise
                    log.warning("%s/%d is %s, not yet in SageMaker: %s", name, number, status, terminal(str(error)))
                return None
        return _external(name, view.events, number, listed.status, found)

    def _registration(self, name: str, view: View, number: int, listed: Listed) -> Event | None:
        """The event of a package that has none; None where it is another registry's, or a second one of its run."""
        found = self.groups.describe(listed.arn)
        said = found.get("CustomerMetadataProperties", {})
        run, sha256 = said.get("runner-run", ""), said.get("runner-facts", "")
        runs = {event.data["run"] for event in view.registered.values()}
        if said.get("runner-registry") != self.own or run in runs:
            self._others.add(listed.arn)
            return None
        facts = self.history.facts(name, {run: sha256}, view.objects)[run]
        archive = found["InferenceSpecification"]["Containers"][0]["ModelDataUrl"]
        data = {
            "run": run, "sha256": facts.sha256, "facts_sha256": sha256,
            "package": listed.arn, "archive": archive, "archive_sha256": said.get("runner-archive", ""),
        }  # fmt: skip
        at = utc_text(found["CreationTime"])
        return _next(name, view.events, number, "registered", who=facts.created_by, why="", at=at, data=data)

    def _take_back(self, event: Event, status: Status) -> None:
        """Undo a decision that SageMaker does not permit whoever made it, so that nobody else carries it out."""
        for _ in range(ATTEMPTS):
            events = self.history.events(event.name, self.history.listed(event.name).get(event.name, {}))
            if state(events, event.version)[1] != event:
                return
            why = f"SageMaker does not permit {event.who} to decide"
            back = _next(
                event.name, events, event.version, EVENT_OF[status], who=event.who, why=why, at=utc_text(), data=STANDS
            )
            if self.history.append(back):
                return

    # What is read

    def _versions(self, view: View) -> dict[int, ModelVersion]:
        """The view's versions by number. Raises Tampered where the facts are not what was registered."""
        registered = view.registered
        if not registered:
            return {}
        name = next(iter(registered.values())).name
        wanted = {str(event.data.get("run")): str(event.data.get("facts_sha256")) for event in registered.values()}
        facts = self.history.facts(name, wanted, view.objects)
        return {
            number: self._version(facts[str(event.data["run"])], event, view.events)
            for number, event in registered.items()
        }

    def _version(self, facts: NewVersion, registered: Event, events: Sequence[Event]) -> ModelVersion:
        status, decision = state(events, registered.version)
        return ModelVersion(
            **{field: getattr(facts, field) for field in NewVersion.__struct_fields__},
            version=registered.version,
            status=status,
            created=registered.at,
            decided_by=decision.who if decision else None,
            decided=decision.at if decision else None,
            reason=decision.why if decision else None,
            location=self.bucket.address(f"models/{facts.sha256}/files/"),
        )

    def _of_run(self, view: View, new: NewVersion) -> ModelVersion | None:
        """The version that this run registered before. Raises Refused where that has other bytes."""
        for number, event in view.registered.items():
            if event.data.get("run") == new.run:
                existing = self._versions(view)[number]
                if existing.sha256 != new.sha256:
                    raise Refused(
                        f"Run {new.run} registered {new.name}/{number} with other bytes before "
                        f"({existing.sha256[:12]}, now {new.sha256[:12]}). A run registers one model."
                    )
                return existing
        return None

    def _unknown(self, name: str, version: int | None) -> str:
        known = {found.name: found.version for found in self.list()}
        if name in known:
            return f"There is no {name}/{version}; its versions are 1 to {known[name]}."
        there = ", ".join(sorted(known)) or "none yet; `runner check` says whether a run registers one"
        return f"There is no registered model {name!r}. Registered: {there}."

    # What is made

    def _upload(self, new: NewVersion, made: Package) -> None:
        for path, content in made.files.items():
            self.bucket.put(f"models/{new.sha256}/files/{path}", content)
        self.bucket.put(archive_key(made), made.archive)
        for name, content in reports(new, made).items():
            self.bucket.put(report_key(new, name), content)


def _next(
    name: str, events: Sequence[Event], version: int, kind: str, *, who: str, why: str, at: str, data: dict[str, Any]
) -> Event:
    """The event that would follow."""
    seq, previous = (events[-1].seq + 1, events[-1].hash) if events else (1, FIRST)
    return chained(
        seq=seq, name=name, version=version, kind=kind, who=who, at=at, why=why, data=data, previous=previous
    )


def _external(name: str, events: Sequence[Event], version: int, status: Status, found: dict[str, Any]) -> Event:
    """The event of a state that was set in SageMaker; `found` is the package's description."""
    by = found.get("LastModifiedBy", {})
    person = by.get("UserProfileName") or by.get("IamIdentity", {}).get("Arn", "").rpartition("/")[2]
    said = found.get("ApprovalDescription", "").strip()
    own = [event for event in events if event.version == version]
    if not said or said in {described(event) for event in own}:  # what an earlier decision left there
        said = "decided in SageMaker"
    at = max(utc_text(found["LastModifiedTime"]) if "LastModifiedTime" in found else utc_text(), own[-1].at)
    who = f"external ({person})" if person else "external"
    return _next(name, events, version, EVENT_OF[status], who=who, why=said, at=at, data=STANDS)


def _busy(name: str) -> RegistryUnusable:
    return RegistryUnusable(f"The history of {name} changed {ATTEMPTS} times in a row while it was read. Try again.")


def caller(session: Session) -> str:
    """The ARN of whoever is logged in."""
    return str(session.call("sts", "get_caller_identity", about="The caller")["Arn"])
