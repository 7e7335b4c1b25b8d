"""Model package groups and their packages, as SageMaker has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.aws import life_cycle
from runner.aws.creation import line
from runner.aws.session import DENIED, AwsError, Session
from runner.escape import terminal
from runner.model.events import STATES
from runner.model.versions import Event, Status

STATUS: dict[str, Status] = {"PendingManualApproval": "pending", "Approved": "approved", "Rejected": "rejected"}
SERVICE = {status: word for word, status in STATUS.items()}
# the state of the model card after a decision; one that is archived takes no other text
CARD: dict[Status, str] = {"pending": "PendingReview", "approved": "Approved", "rejected": "Archived"}
CARRIED_OUT = "runner-decision"  # in a package's metadata: the number of the last event that was carried out on it
NOT_ALLOWED = "sagemaker:UpdateModelPackage is not allowed for it (Stages of infra/policies.yaml)"

log = logging.getLogger(__name__)


@dataclass
class ListedPackage:
    """A model package as a listing has it."""

    arn: str
    status: Status
    description: str


class Groups:
    """The calls; `tags` are those of the groups it makes."""

    def __init__(self, session: Session, tags: dict[str, str]) -> None:
        self.session, self.tags = session, [{"Key": key, "Value": value} for key, value in tags.items()]

    def make(self, name: str) -> None:
        """Make the group, unless it is there."""
        tags = {"Tags": self.tags} if self.tags else {}
        try:
            self._call("create_model_package_group", name, ModelPackageGroupName=name, **tags)
        except AwsError as error:
            if "already exists" not in str(error):
                raise

    def add(self, name: str, arguments: dict[str, Any]) -> str:
        """The ARN of the new package."""
        return str(self._call("create_model_package", name, **arguments)["ModelPackageArn"])

    def packages(self, name: str) -> dict[int, ListedPackage]:
        """The group's packages by version, empty where there is no group; a call per hundred."""
        order = {"SortBy": "CreationTime", "SortOrder": "Ascending"}
        about = f"model package {name}"
        pages = self.session.pages(
            "sagemaker", "list_model_packages", about=about, ModelPackageGroupName=name, MaxResults=100, **order
        )
        try:
            items = [item for page in pages for item in page.get("ModelPackageSummaryList", [])]
        except AwsError as error:
            if error.absent:
                return {}
            raise
        return {int(item["ModelPackageVersion"]): _listed(item) for item in items}

    def describe(self, arn: str) -> dict[str, Any]:
        return self._call("describe_model_package", arn, ModelPackageName=arn)

    def find(self, arn: str) -> ListedPackage | None:
        """The package as a listing would have it; None where it is gone."""
        about = f"model package {arn}"
        description = self.session.find("sagemaker", "describe_model_package", about=about, ModelPackageName=arn)
        return _listed(description) if description is not None else None

    def carry_out(self, listed: ListedPackage, event: Event) -> None:
        """Set the package's state to what the event says. Idempotent."""
        status = STATES[event.kind]
        # versions that were registered before there was one have none
        card = {"ModelCard": {"ModelCardStatus": CARD[status]}} if "ModelCard" in self.describe(listed.arn) else {}
        self._call(
            "update_model_package",
            f"{event.name}/{event.version}",
            ModelPackageArn=listed.arn,
            ModelApprovalStatus=SERVICE[status],
            ApprovalDescription=described(event),
            CustomerMetadataProperties={CARRIED_OUT: str(event.seq)},
            **card,
        )
        listed.status = status

    def tell_stages(self, packages: Mapping[int, ListedPackage], events: Sequence[Event]) -> None:
        """Set ModelLifeCycle as the last event says; the event stands, so a refusal of SageMaker is a warning."""
        for version, (stage, status) in life_cycle.changed(events).items():
            stage_now = {"Stage": stage, "StageStatus": status, "StageDescription": described(events[-1])}
            label = f"{events[-1].name}/{version}"
            if version not in packages:
                log.warning("%s is %s at %s, and its model package is gone", terminal(label), status.lower(), stage)
                continue
            arn = packages[version].arn
            try:
                self._call("update_model_package", label, ModelPackageArn=arn, ModelLifeCycle=stage_now)
            except AwsError as error:
                reason = NOT_ALLOWED if error.code in DENIED else terminal(str(error))
                where = f"{label} is {status.lower()} at stage {stage}"
                log.warning("SageMaker was not told that %s: %s", terminal(where), reason)
                return

    def _call(self, action: str, about: str, **arguments: Any) -> dict[str, Any]:
        return self.session.call("sagemaker", action, about=f"model package {about}", **arguments)


def _listed(item: dict[str, Any]) -> ListedPackage:
    status = STATUS.get(item.get("ModelApprovalStatus", ""), "pending")
    return ListedPackage(item["ModelPackageArn"], status, item.get("ModelPackageDescription", ""))


def carried_out(description: dict[str, Any]) -> int:
    """The number of the last event that was carried out on the package of this description; 0 for none."""
    return int(description.get("CustomerMetadataProperties", {}).get(CARRIED_OUT, 0))


def changed(description: dict[str, Any]) -> bool:
    """Whether somebody has updated the package of this description since it was made."""
    return "LastModifiedTime" in description and bool(description["LastModifiedTime"] > description["CreationTime"])


def described(event: Event) -> str:
    """A decision as SageMaker's description of it."""
    return line(f"{event.who}: {event.why}")
