"""Model package groups and their versions.

They are kept here and not by moto, whose UpdateModelPackage forgets the approval, which knows no ClientToken and which
cannot delete. A version's number is never given twice, whatever was deleted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import cards
from .calls import Call
from .errors import ServiceError, refuse
from .gateway import Action
from .listing import sort, turn_page, was_made_between
from .permissions import context
from .tags import Tags

UNSET = ("Tags", "ClientToken")
PENDING = "PendingManualApproval"
GROUP_KEYS = ("ModelPackageGroupName", "ModelPackageGroupDescription", "ManagedConfiguration")
SUMMARY = (
    "ModelPackageName", "ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "ModelPackageDescription",
    "CreationTime", "ModelPackageStatus", "ModelApprovalStatus", "ModelLifeCycle", "ModelPackageRegistrationType",
)  # fmt: skip
CHANGEABLE = (
    "ModelApprovalStatus", "ApprovalDescription", "InferenceSpecification", "SourceUri", "ModelLifeCycle",
    "ModelPackageRegistrationType",
)  # fmt: skip
MAX_METADATA = 50


@dataclass
class Group:
    described: dict[str, Any]
    next_version: int = 1
    packages: list[str] = field(default_factory=list)


class Registry:
    """`tell` is called with the description of a package whenever its state changes.

    `look` is called with each container of a new version and refuses one whose image or archive is not there.
    """

    def __init__(
        self,
        name_arn: Callable[[str, str], str],
        tags: Tags,
        tell: Callable[[dict[str, Any]], None],
        look: Callable[[dict[str, Any]], None],
    ) -> None:
        self._name_arn = name_arn
        self._tags = tags
        self._tell = tell
        self._look = look
        self._lock = threading.RLock()
        self._groups: dict[str, Group] = {}
        self._packages: dict[str, dict[str, Any]] = {}
        self._tokens: dict[tuple[str, str], tuple[str, str]] = {}

    def actions(self) -> dict[tuple[str, str], Action]:
        made: dict[str, Action] = {
            "CreateModelPackageGroup": self.create_group,
            "DescribeModelPackageGroup": self.describe_group,
            "ListModelPackageGroups": self.list_groups,
            "DeleteModelPackageGroup": self.delete_group,
            "CreateModelPackage": self.create,
            "DescribeModelPackage": self.describe,
            "UpdateModelPackage": self.update,
            "ListModelPackages": self.list_packages,
            "DeleteModelPackage": self.delete,
        }
        return {("sagemaker", name): action for name, action in made.items()}

    def approval(self, arn: str) -> str | None:
        """The approval of a version, or None for what has none; raises ValidationException where there is no such."""
        return self._get(arn).get("ModelApprovalStatus")

    def container(self, arn: str) -> dict[str, Any]:
        """What a version is served from."""
        found: dict[str, Any] = self._get(arn)["InferenceSpecification"]["Containers"][0]
        return found

    def create_group(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        name = wanted["ModelPackageGroupName"]
        arn = self._name_arn("model-package-group", name)
        with self._lock:
            if name in self._groups:
                raise refuse(f"Model Package Group already exists: {arn}")
            made = {key: wanted[key] for key in GROUP_KEYS if key in wanted}
            made |= {"ModelPackageGroupArn": arn, "ModelPackageGroupStatus": "Completed", "CreationTime": time.time()}
            self._groups[name] = Group({**made, "CreatedBy": {}})
        self._tags.keep(arn, wanted.get("Tags"))
        return {"ModelPackageGroupArn": arn}

    def _group(self, name: str) -> Group:
        group = self._groups.get(name.rpartition("/")[2])
        if group is None:
            raise refuse(f"Model Package Group {name} does not exist.")
        return group

    def describe_group(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return self._group(call.parameters["ModelPackageGroupName"]).described

    def list_groups(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        found = [
            {key: value for key, value in group.described.items() if key != "CreatedBy"}
            for group in self._groups.values()
            if wanted.get("NameContains", "") in group.described["ModelPackageGroupName"]
            and was_made_between(wanted, group.described["CreationTime"])
        ]
        found = sort(found, wanted, {"": "CreationTime", "Name": "ModelPackageGroupName"}, order="Ascending")
        return turn_page(found, wanted, "ModelPackageGroupSummaryList")

    def delete_group(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            group = self._group(call.parameters["ModelPackageGroupName"])
            if group.packages:
                name = group.described["ModelPackageGroupName"]
                raise refuse(f"Model Package Group {name} is not empty; delete its model packages first.")
            del self._groups[group.described["ModelPackageGroupName"]]
        self._tags.forget(group.described["ModelPackageGroupArn"])
        return {}

    def create(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        if ("ModelPackageName" in wanted) == ("ModelPackageGroupName" in wanted):
            raise refuse("Exactly one of ModelPackageName and ModelPackageGroupName must be given.")
        for container in wanted.get("InferenceSpecification", {}).get("Containers", []):
            self._look(container)
        if "ModelCard" in wanted:
            cards.changed(None, wanted["ModelCard"])
        token = wanted.get("ClientToken")
        asked = json.dumps({key: value for key, value in wanted.items() if key != "ClientToken"}, sort_keys=True)
        with self._lock:
            if token is not None and (self._tokens.get((call.action, token)) or ("",))[0]:
                arn, before = self._tokens[call.action, token]
                if before != asked:
                    raise ServiceError("ConflictException", f"ClientToken {token} was used with another request: {arn}")
                return {"ModelPackageArn": arn}
            made = self._place(wanted) | {"CreatedBy": context(call) if call.identity else {}}
            self._packages[made["ModelPackageArn"]] = made
            if token is not None:
                self._tokens[call.action, token] = (made["ModelPackageArn"], asked)
        self._tags.keep(made["ModelPackageArn"], wanted.get("Tags"))
        self._tell(made)
        return {"ModelPackageArn": made["ModelPackageArn"]}

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What describe answers, under the next number of its group."""
        made = {key: value for key, value in wanted.items() if key not in UNSET}
        if "ModelPackageGroupName" in wanted:
            group = self._group(wanted["ModelPackageGroupName"])
            name = group.described["ModelPackageGroupName"]
            made |= {"ModelPackageGroupName": name, "ModelPackageVersion": group.next_version}
            made.setdefault("ModelApprovalStatus", PENDING)
            arn = self._name_arn("model-package", f"{name}/{group.next_version}")
            group.next_version += 1
            group.packages.append(arn)
        else:
            arn = self._name_arn("model-package", wanted["ModelPackageName"])
            if arn in self._packages:
                raise refuse(f"Model Package already exists: {arn}")
        status = [{"Name": arn, "Status": "Completed"}]
        return {
            **made,
            "ModelPackageArn": arn,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": status, "ImageScanStatuses": status},
            "CreationTime": time.time(),
            "CreatedBy": {},
        }

    def _get(self, name: str) -> dict[str, Any]:
        arn = name if name.startswith("arn:") else self._name_arn("model-package", name)
        if arn not in self._packages:
            raise refuse(f"ModelPackage {arn} does not exist.")
        return self._packages[arn]

    def describe(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        return self._get(call.parameters["ModelPackageName"])

    def update(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        """Changes what is sent and nothing else; metadata is merged key by key."""
        wanted = call.parameters
        with self._lock:
            package = self._get(wanted["ModelPackageArn"])
            metadata = {**package.get("CustomerMetadataProperties", {}), **wanted.get("CustomerMetadataProperties", {})}
            for key in wanted.get("CustomerMetadataPropertiesToRemove", ()):
                metadata.pop(key, None)
            if len(metadata) > MAX_METADATA:
                raise refuse(f"A model package takes at most {MAX_METADATA} customer metadata properties.")
            if "ModelApprovalStatus" in wanted and "ModelPackageVersion" not in package:
                raise refuse("ModelApprovalStatus applies to versioned model packages only.")
            if "ModelCard" in wanted:
                package["ModelCard"] = cards.changed(package.get("ModelCard"), wanted["ModelCard"])
            package |= {key: wanted[key] for key in CHANGEABLE if key in wanted}
            more = wanted.get("AdditionalInferenceSpecificationsToAdd", [])
            if more:
                package.setdefault("AdditionalInferenceSpecifications", []).extend(more)
            if metadata or "CustomerMetadataProperties" in package:
                package["CustomerMetadataProperties"] = metadata
            package |= {"LastModifiedTime": time.time(), "LastModifiedBy": context(call) if call.identity else {}}
        # as the service does: what the request named, whether or not it was another value before
        self._tell({**package, "UpdatedModelPackageFields": sorted(wanted.keys() - {"ModelPackageArn"})})
        return {"ModelPackageArn": package["ModelPackageArn"]}

    def list_packages(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        wanted = call.parameters
        group = wanted.get("ModelPackageGroupName")
        group = None if group is None else self._group(group).described["ModelPackageGroupName"]
        kind = wanted.get("ModelPackageType", "Versioned" if group else "Unversioned")
        found = []
        for package in self._packages.values():
            versioned = "ModelPackageVersion" in package
            name = package["ModelPackageGroupName" if versioned else "ModelPackageName"]
            if (
                (kind == "Both" or versioned == (kind == "Versioned"))
                and (group is None or group == package.get("ModelPackageGroupName"))
                and wanted.get("NameContains", "") in name
                and wanted.get("ModelApprovalStatus", package.get("ModelApprovalStatus"))
                == package.get("ModelApprovalStatus")
                and was_made_between(wanted, package["CreationTime"])
            ):
                found.append({key: package[key] for key in SUMMARY if key in package})
        found = sort(found, wanted, {"": "CreationTime", "Name": "ModelPackageArn"})
        return turn_page(found, wanted, "ModelPackageSummaryList")

    def delete(self, call: Call, environ: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            package = self._get(call.parameters["ModelPackageName"])
            arn = package["ModelPackageArn"]
            del self._packages[arn]
            for group in self._groups.values():
                if arn in group.packages:
                    group.packages.remove(arn)
        self._tags.forget(arn)
        return {}
