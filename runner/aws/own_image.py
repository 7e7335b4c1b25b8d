"""The image that `[sagemaker] image = "own"` and `serving_image = "own"` mean: its address, and whether it is there.

<project>-image              the repository, and the CodeBuild project that fills it: infra/image.yaml
    :<environment>           what jobs start, by the hash of Dockerfile, Python and lock
    :<environment>-<server>  what endpoints start, by that of this package too, which answers there
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.aws.package import serving_image
from runner.aws.processing.bundle import package_files
from runner.aws.session import DENIED, AwsError, Session, domain
from runner.aws.settings import OWN, Settings, lock_file
from runner.errors import UsageError

DOCKERFILE, LOCK = "infra/Dockerfile", "requirements.lock"  # in a build's folder
PUSH = "`runner image push`"
NO_REPOSITORY, NO_IMAGE = "RepositoryNotFoundException", "ImageNotFoundException"
TAG_CHARACTERS, SERVER_CHARACTERS = 16, 8  # of the hashes


@dataclass(frozen=True)
class OwnImage:
    """What an image is made of, and the names that follow from it. `files` are by path in the build's folder."""

    project: str
    account: str
    region: str
    python: str
    lock: str  # the file's name in the project, for sentences
    files: dict[str, bytes]

    @property
    def name(self) -> str:
        """Of the repository and of the CodeBuild project."""
        plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.project.lower())
        return f"{plain.strip('-')}-image"

    @property
    def environment(self) -> str:
        """The tag that jobs start."""
        content = hashlib.sha256(self.python.encode())
        for path in (DOCKERFILE, LOCK):
            content.update(hashlib.sha256(self.files[path]).digest())
        return content.hexdigest()[:TAG_CHARACTERS]

    @property
    def server(self) -> str:
        """The tag that endpoints start."""
        content = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            if path not in (DOCKERFILE, LOCK):
                content.update(path.encode() + b"\0" + hashlib.sha256(data).digest())
        return f"{self.environment}-{content.hexdigest()[:SERVER_CHARACTERS]}"

    def address(self, tag: str) -> str:
        return f"{self.account}.dkr.ecr.{self.region}.{domain(self.region)}/{self.name}:{tag}"


def own_image(project: str, aws: Settings, region: str, root: Path) -> OwnImage:
    """Raises UsageError where Dockerfile or lock is missing, or the role's ARN does not say whose account it is."""
    dockerfile = root / DOCKERFILE
    if not dockerfile.is_file():
        raise UsageError(f"There is no {dockerfile}, which an image of your own is made with. Take this project's.")
    account = aws.role.split(":")[4] if aws.role.count(":") >= 5 else ""
    if not account:
        raise UsageError(f"[sagemaker] role = {aws.role!r} is not an ARN, and names no account for the image.")
    files = {DOCKERFILE: dockerfile.read_bytes(), LOCK: lock_file(aws, root).read_bytes(), **package_files()}
    return OwnImage(project, account, region, aws.python, aws.lock, files)


def named(project: str, aws: Settings, region: str, root: Path) -> Settings:
    """The settings with an address in place of "own"; AWS is not asked."""
    if OWN not in (aws.image, aws.serving_image):
        return aws
    own = own_image(project, aws, region, root)
    image = own.address(own.environment) if aws.image == OWN else aws.image
    serving = own.address(own.server) if aws.serving_image == OWN else aws.serving_image
    return dataclasses.replace(aws, image=image, serving_image=serving)


def needed_tags(image: OwnImage, aws: Settings, *, serving: bool) -> list[str]:
    """The tags that a pipeline needs of it: `serving` where one of its targets asks for it, too."""
    tags = [image.environment] if aws.image == OWN else []
    return [*tags, image.server] if serving or aws.serving_image == OWN else tags


def serving(session: Session, project: str, aws: Settings, root: Path, image: str | None, *, what: str) -> str:
    """The address of the image that serves: `image`, the value of the key `what`, or SageMaker's XGBoost."""
    if image != OWN:
        return serving_image(session.region, image)
    own = own_image(project, aws, session.region, root)
    _require(session, own, own.server, key=what)
    return own.address(own.server)


def for_jobs(session: Session, project: str, aws: Settings, root: Path) -> Settings:
    """The settings with the address of an image that is there in place of "own"."""
    if aws.image == OWN:
        own = own_image(project, aws, session.region, root)
        _require(session, own, own.environment, key="[sagemaker] image")
    return named(project, aws, session.region, root)


def _require(session: Session, image: OwnImage, tag: str, *, key: str) -> None:
    """Raises UsageError where there is no such image, with what to do; the key of pipeline.toml asks for it."""
    if reason := lacking(session, image, tag):
        raise UsageError(f'{key} = "own", and {reason}: {PUSH} builds it.')


def lacking(session: Session, image: OwnImage, tag: str) -> str:
    """Why there is no such image; "" where there is one.

    Also "" for who may not look: a job or an endpoint without its image fails with a message when it starts.
    """
    try:
        if image_details(session, image, tag) is not None:
            return ""
        newest = max((details["imagePushedAt"] for details in _images(session, image)), default=None)
    except AwsError as error:
        if error.code in DENIED:
            return ""
        if error.code != NO_REPOSITORY:
            raise
        return f"there is no repository {image.name}; deploy infra/image.yaml"
    if newest is None:
        return f"{image.name} has no image yet"
    lacks = f"has no image of this {image.lock}{' with this program' * (tag == image.server)}"
    return f"{image.name} {lacks}, the newest is of {newest:%Y-%m-%d %H:%M} and was made of another one"


def image_details(session: Session, image: OwnImage, tag: str) -> dict[str, Any] | None:
    """ECR's entry of the tag. Raises AwsError where there is no repository, or the caller may not look."""
    try:
        return _images(session, image, imageIds=[{"imageTag": tag}])[0]
    except AwsError as error:
        if error.code == NO_IMAGE:
            return None
        raise


def _images(session: Session, image: OwnImage, **filters: Any) -> list[dict[str, Any]]:
    """A page of the repository's images."""
    repository = {"registryId": image.account, "repositoryName": image.name}
    reply = session.call("ecr", "describe_images", about=f"repository {image.name}", **repository, **filters)
    return list(reply["imageDetails"])
