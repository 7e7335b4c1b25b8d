"""Tags of the things this double keeps itself; moto keeps those of its own."""

from __future__ import annotations

from typing import Any

from .calls import Call
from .gateway import Action


class Tags:
    def __init__(self) -> None:
        self._tags: dict[str, dict[str, str]] = {}

    def actions(self) -> dict[tuple[str, str], Action]:
        return {
            ("sagemaker", "ListTags"): self.list_tags,
            ("sagemaker", "AddTags"): self.add_tags,
            ("sagemaker", "DeleteTags"): self.delete_tags,
        }

    def keep(self, arn: str, tags: list[dict[str, str]] | None) -> None:
        """Makes `arn` one of ours, with the tags its request came with."""
        self._tags[arn] = {tag["Key"]: tag["Value"] for tag in tags or ()}

    def forget(self, arn: str) -> None:
        self._tags.pop(arn, None)

    def read(self, arn: str) -> list[dict[str, str]]:
        return [{"Key": key, "Value": value} for key, value in self._tags[arn].items()]

    def list_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        arn = call.parameters["ResourceArn"]
        return {"Tags": self.read(arn)} if arn in self._tags else None

    def add_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        arn = call.parameters["ResourceArn"]
        if arn not in self._tags:
            return None
        self._tags[arn] |= {tag["Key"]: tag["Value"] for tag in call.parameters["Tags"]}
        return {"Tags": self.read(arn)}

    def delete_tags(self, call: Call, environ: dict[str, Any]) -> dict[str, Any] | None:
        arn = call.parameters["ResourceArn"]
        if arn not in self._tags:
            return None
        for key in call.parameters["TagKeys"]:
            self._tags[arn].pop(key, None)
        return {}
