"""The registry in SageMaker: a model package group per name, a model package per version, its history in S3.

What SageMaker keeps can be changed by anybody who may update a model package, and it forgets who decided and why. So
a version's state is what the events in S3 add up to, as in the local registry, and each access brings the two
together: a package of ours without an event gets one (after a crash), a decision that was written down is carried out
(likewise), a state that was set in Studio is written down as an external decision; one that a package was made with is
not a decision. The event is always written before the package is changed: its number can be taken only once, which
decides between two that decide.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.aws.bucket import Bucket
from runner.aws.creation import OURS, archive_key, creation, report_key, reports, value
from runner.aws.group import STATUS, Groups, ListedPackage, carried_out, changed, described
from runner.aws.history import EVENT, History, Objects
from runner.aws.package import ModelSource, Package, package, serving_image
from runner.aws.session import DENIED, AwsError, Session
from runner.errors import Refused, RegistryUnusable, Tampered, UsageError
from runner.escape import terminal
from runner.failpoint import reach
from runner.model import registry_rules
from runner.model.events import state, verify_chain
from runner.model.registry_rules import Draft
from runner.model.versions import Decision, Event, ModelVersion, NewVersion, StateChange, Status
from runner.records import utc_text

# the event that gives a state
EVENT_OF: dict[Status, StateChange] = {"pending": "reopened", "approved": "approved", "rejected": "rejected"}
STANDS = {"external": True}  # the data of an event for a state that SageMaker has already
ATTEMPTS = 100  # to take a number while others take them; each failure is somebody's success

log = logging.getLogger(__name__)


@dataclass
class RegistryView:
    """One name's events and packages, brought together."""

    events: list[Event]
    packages: dict[int, ListedPackage]
    objects: Objects = field(default_factory=dict)

    @property
    def registered(self) -> dict[int, Event]:
        registrations = {event.version: event for event in self.events if event.kind == "registered"}
        return dict(sorted(registrations.items()))


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
        self.registry_id = value(bucket.address("registry/"))
        self._others: set[str] = set()  # packages in our groups that are not versions of ours

    def register(self, new: NewVersion) -> ModelVersion:
        registry_rules.check_name(new.name, may_end_with_dash=False)
        image = self.image() if self.image is not None else serving_image(self.session.region)
        view = self._view(new.name)
        existing = self._registered_before(view, new)
        if existing is not None:
            return existing
        archive = package(self.model_folder(new))
        if archive.folder_sha256 != new.sha256:
            raise Tampered(
                f"The model of {new.run} has the hash {archive.folder_sha256[:12]}; recorded is {new.sha256[:12]}."
            )
        if not view.packages:
            self.groups.make(new.name)
            reach("group made")
        self.history.keep_facts(new)
        reach("facts written")
        self._upload(new, archive)
        reach("model uploaded")
        source = self.run_address(new.run) if self.run_address is not None else ""
        request = creation(new, archive, bucket=self.bucket, image=image, registry=self.registry_id, source=source)
        try:
            arn = self.groups.add(new.name, request)
        except AwsError as error:
            if error.code == "ConflictException":  # another process registers this run just now, as something else
                existing = self._registered_before(self._view(new.name), new)
            if existing is None:
                raise
            return existing
        reach("package created")
        version = self._registered_before(self._view(new.name, new_package=arn), new)
        reach("registration recorded")
        if version is None:
            raise RegistryUnusable(f"{arn} was made and is not in the history of {new.name}. Run again.")
        return version

    def get(self, name: str, version: int) -> ModelVersion:
        view, _ = self._registered(name, version)
        return self._versions(view)[version]

    def list(self, name: str | None = None) -> Sequence[ModelVersion]:
        objects = self.history.listed(name)
        versions = [
            version
            for each in sorted(objects)
            for version in self._versions(self._view(each, objects=objects[each])).values()
        ]
        if name is not None and not versions:
            raise self._not_registered(name, None)
        return versions

    def decide(
        self, name: str, version: int, decision: Decision, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> ModelVersion:
        draft = Draft(name, version, decision, who=who, why=why, data=data or {})
        for _ in range(ATTEMPTS):
            view, registration = self._registered(name, version)
            registry_rules.check_decision(decision, version, view.events)
            status_before, _last = state(view.events, version)
            listed = view.packages.get(version) or self.groups.find(registration.data.get("package", ""))
            if listed is None:
                raise Refused(f"{name}/{version} was deleted in SageMaker, so nothing can be decided on it.")
            if (event := self._append(view, draft)) is not None:
                break
        else:
            raise _busy(name)
        reach("decision recorded")
        try:
            self.groups.carry_out(listed, event)
        except AwsError as error:
            if error.code not in DENIED:
                sentence = f"{error} The decision is written down; the next `runner models` carries it out."
                raise AwsError(sentence, code=error.code) from error
            self._take_back(event, status_before)
            raise
        reach("decision carried out")
        return self._versions(view)[version]

    def record(
        self, name: str, version: int, kind: str, *, who: str, why: str, data: dict[str, Any] | None = None
    ) -> Event:
        registry_rules.check_record(kind)
        draft = Draft(name, version, kind, who=who, why=why, data=data or {})
        for _ in range(ATTEMPTS):
            view, _registration = self._registered(name, version)
            if (event := self._append(view, draft)) is not None:
                self.groups.tell_stages(view.packages, view.events)
                return event
        raise _busy(name)

    def events(self, name: str) -> Sequence[Event]:
        objects = self._objects(name)
        events = self.history.events(name, objects)
        if verify_chain(events) is not None:  # the caller can say which event it is
            return events
        events = self._view(name, objects=objects).events
        if not events:
            raise self._not_registered(name, None)
        return events

    def approved(self, name: str) -> ModelVersion | None:
        return registry_rules.highest_approved(self._versions(self._view(name)).values())

    def deployable(self, name: str, version: int) -> ModelSource:
        """What the version's endpoint is made of, whatever its state, with the history's hash, not SageMaker's.

        Raises UsageError naming what there is.
        """
        _, event = self._registered(name, version)
        return ModelSource(**{key: str(event.data[key]) for key in ("package", "archive", "archive_sha256")})

    # Bringing SageMaker and the history together

    def _objects(self, name: str) -> Objects:
        return self.history.listed(name).get(name, {})

    def _view(self, name: str, *, objects: Objects | None = None, new_package: str | None = None) -> RegistryView:
        """The name's history, with what only SageMaker had added to it. `new_package` is an ARN."""
        for _ in range(ATTEMPTS):
            objects = self._objects(name) if objects is None else objects
            view = RegistryView(self.history.events(name, objects), {}, objects)
            registry_rules.check_chain(name, view.events)
            if objects:
                view.packages = self.groups.packages(name)
            if new_package is not None:
                view.packages.setdefault(
                    int(new_package.rpartition("/")[2]), ListedPackage(new_package, "pending", "(run new)")
                )
            if self._caught_up(name, view):
                return view
            objects = None
        raise _busy(name)

    def _registered(self, name: str, version: int) -> tuple[RegistryView, Event]:
        """The name's view, and the event of the version's registration. Raises UsageError naming what there is."""
        view = self._view(name)
        if version not in view.registered:
            raise self._not_registered(name, version)
        return view, view.registered[version]

    def _append(self, view: RegistryView, draft: Draft) -> Event | None:
        """The event as it was added to the history; None where another process added one first."""
        event = registry_rules.event_after(view.events, draft)
        if not self.history.append(event):
            return None
        view.events.append(event)
        return event

    def _caught_up(self, name: str, view: RegistryView) -> bool:
        """Add what is missing; False where another process added something first."""
        for number, listed in sorted(view.packages.items()):
            event = self._missing(name, view, number, listed)
            if event is not None:
                with _denied_is_a_warning(f"{name}/{number}: {event.kind} is not written down"):
                    if not self.history.append(event):
                        return False
                view.events.append(event)
        return True

    def _missing(self, name: str, view: RegistryView, number: int, listed: ListedPackage) -> Event | None:
        if number not in view.registered:
            if listed.arn in self._others or not OURS.search(listed.description):
                return None
            return self._registration(name, view, number, listed)
        status, last = state(view.events, number)
        if listed.status == status:
            return None
        description = self.groups.describe(listed.arn)
        listed.status = STATUS.get(description.get("ModelApprovalStatus", ""), "pending")
        if listed.status == status:
            return None
        if status == "pending" and not changed(description):
            log.warning("%s/%d was made as %s, by no decision: it is pending", terminal(name), number, listed.status)
            return None
        if last is not None and last.data != STANDS and last.seq > carried_out(description):
            before, _ = state(view.events[: last.seq - 1], number)
            if listed.status == before:  # it was written down, and then the process died
                with _denied_is_a_warning(f"{name}/{number} is {status}, not yet in SageMaker"):
                    self.groups.carry_out(listed, last)
                return None
        return _external(name, view.events, number, listed.status, description)

    def _registration(self, name: str, view: RegistryView, number: int, listed: ListedPackage) -> Event | None:
        """The event of a package that has none; None where it is another registry's, or a second one of its run."""
        description = self.groups.describe(listed.arn)
        properties = description.get("CustomerMetadataProperties", {})
        run, sha256 = properties.get("runner-run", ""), properties.get("runner-facts", "")
        runs = {event.data["run"] for event in view.registered.values()}
        if properties.get("runner-registry") != self.registry_id or run in runs:
            self._others.add(listed.arn)
            return None
        facts = self.history.facts(name, {run: sha256}, view.objects)[run]
        data = {
            "run": run,
            "sha256": facts.sha256,
            "facts_sha256": sha256,
            "package": listed.arn,
            "archive": description["InferenceSpecification"]["Containers"][0]["ModelDataUrl"],
            "archive_sha256": properties.get("runner-archive", ""),
        }
        at = utc_text(description["CreationTime"])
        draft = Draft(name, number, "registered", who=facts.created_by, why="", data=data, at=at)
        return registry_rules.event_after(view.events, draft)

    def _take_back(self, event: Event, status: Status) -> None:
        """Undo a decision that SageMaker does not permit whoever made it, so that nobody else carries it out."""
        why = f"SageMaker does not permit {event.who} to decide"
        draft = Draft(event.name, event.version, EVENT_OF[status], who=event.who, why=why, data=STANDS)
        for _ in range(ATTEMPTS):
            view = RegistryView(self.history.events(event.name, self._objects(event.name)), {})
            if state(view.events, event.version)[1] != event or self._append(view, draft) is not None:
                return

    # What is read

    def _versions(self, view: RegistryView) -> dict[int, ModelVersion]:
        """The view's versions by number. Raises Tampered where the facts are not what was registered."""
        registered = view.registered
        if not registered:
            return {}
        name = next(iter(registered.values())).name
        wanted = {str(event.data.get("run")): str(event.data.get("facts_sha256")) for event in registered.values()}
        facts_of_run = self.history.facts(name, wanted, view.objects)
        versions = {}
        for number, event in registered.items():
            facts = facts_of_run[str(event.data["run"])]
            location = self.bucket.address(f"models/{facts.sha256}/files/")
            versions[number] = registry_rules.model_version(facts, event, view.events, location=location)
        return versions

    def _registered_before(self, view: RegistryView, new: NewVersion) -> ModelVersion | None:
        number = registry_rules.registered_before(new, view.events)
        return None if number is None else self._versions(view)[number]

    def _not_registered(self, name: str, version: int | None) -> UsageError:
        objects = self.history.listed()
        own = self._versions(self._view(name, objects=objects[name])) if name in objects else {}
        # of other names no more is asked for: their groups may be others'
        highest = {other: 0 for other, keys in objects.items() if other != name and any(map(EVENT.match, keys))}
        return registry_rules.not_registered(name, version, highest | ({name: max(own)} if own else {}))

    # What is made

    def _upload(self, new: NewVersion, archive: Package) -> None:
        for path, content in archive.files.items():
            self.bucket.put(f"models/{new.sha256}/files/{path}", content)
        self.bucket.put(archive_key(archive), archive.archive)
        for name, content in reports(new, archive).items():
            self.bucket.put(report_key(new, name), content)


@contextlib.contextmanager
def _denied_is_a_warning(sentence: str) -> Iterator[None]:
    """What the caller may not do is left to another one; a warning says it."""
    try:
        yield
    except AwsError as error:
        if error.code not in DENIED:
            raise
        log.warning("%s: %s", terminal(sentence), terminal(str(error)))


def _external(name: str, events: Sequence[Event], version: int, status: Status, description: dict[str, Any]) -> Event:
    """The event of a state that was set in SageMaker; `description` is the package's."""
    by = description.get("LastModifiedBy", {})
    person = by.get("UserProfileName") or by.get("IamIdentity", {}).get("Arn", "").rpartition("/")[2]
    why = description.get("ApprovalDescription", "").strip()
    own = [event for event in events if event.version == version]
    if not why or why in {described(event) for event in own}:  # what an earlier decision left there
        why = "decided in SageMaker"
    at = max(utc_text(description["LastModifiedTime"]) if "LastModifiedTime" in description else utc_text(), own[-1].at)
    who = f"external ({person})" if person else "external"
    draft = Draft(name, version, EVENT_OF[status], who=who, why=why, data=STANDS, at=at)
    return registry_rules.event_after(events, draft)


def _busy(name: str) -> RegistryUnusable:
    return RegistryUnusable(f"The history of {name} changed {ATTEMPTS} times in a row while it was read. Try again.")


def caller(session: Session) -> str:
    """The ARN of whoever is logged in."""
    return str(session.call("sts", "get_caller_identity", about="The caller")["Arn"])
