"""What moto's CloudFormation lacks for the templates of infra/: CodeBuild's projects, ECR's EmptyOnDelete, and
AWS::NoValue within lists."""

from __future__ import annotations

from typing import Any

from moto.cloudformation import parsing
from moto.codebuild.models import CodeBuild, codebuild_backends
from moto.core.common_models import CloudFormationModel
from moto.ecr.models import Repository, ecr_backends


class CodeBuildProject(CloudFormationModel):
    """AWS::CodeBuild::Project, made in moto's CodeBuild; moto finds this class by its base."""

    def __init__(self, made: CodeBuild, name: str) -> None:
        self.made, self.name = made, name

    @property
    def physical_resource_id(self) -> str:
        return self.name

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return attr == "Arn"

    def get_cfn_attribute(self, attribute_name: str) -> str:
        assert attribute_name == "Arn"
        return self.made.arn

    @staticmethod
    def cloudformation_name_type() -> str:
        return "Name"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::CodeBuild::Project"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: dict[str, Any], account_id: str, region_name: str, **kwargs: Any
    ) -> CodeBuildProject:
        given, backend = cloudformation_json["Properties"], codebuild_backends[account_id][region_name]
        source = {key[0].lower() + key[1:]: value for key, value in given["Source"].items() if key != "BuildSpec"}
        backend.create_project(
            resource_name,
            given.get("Description"),
            {**source, "buildspec": given["Source"].get("BuildSpec", "")},
            small(given["Artifacts"]),
            small(given["Environment"]),
            given["ServiceRole"],
            None, None, given.get("TimeoutInMinutes"), None, None, None, None,
        )  # fmt: skip
        return cls(backend.codebuild_projects[resource_name], resource_name)

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: dict[str, Any], account_id: str, region_name: str
    ) -> None:
        codebuild_backends[account_id][region_name].delete_project(resource_name)

    def is_created(self) -> bool:
        return True


def small(value: Any) -> Any:
    """With the small first letters that CodeBuild's own calls have."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: small(item) for key, item in value.items()}
    return [small(item) for item in value] if isinstance(value, list) else value


def delete_repository(repository: Repository, account_id: str, region_name: str) -> None:
    """As with EmptyOnDelete, which infra/image.yaml has: moto keeps nothing of it."""
    ecr_backends[account_id][region_name].delete_repository(repository.name, force=True)


Repository.delete = delete_repository
_clean_json = parsing.clean_json


def clean_json(resource_json: Any, resources_map: Any) -> Any:
    """moto leaves a hole in a list where CloudFormation leaves the item out."""
    made = _clean_json(resource_json, resources_map)
    return [item for item in made if item is not None] if isinstance(resource_json, list) else made


parsing.clean_json = clean_json
