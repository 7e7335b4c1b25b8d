"""The image that `[sagemaker] image = "own"` and `serving_image = "own"` mean: its address, and whether it is there.

<project>-image              the repository, and the CodeBuild project that fills it: infra/image.yaml
    :<environment>           what jobs start, by the hash of Dockerfile, Python and lock
    :<environment>-<server>  what endpoints start, by that of this package too, which answers there
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
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
        made = hashlib.sha256(self.python.encode())
        for path in (DOCKERFILE, LOCK):
            made.update(hashlib.sha256(self.files[path]).digest())
        return made.hexdigest()[:TAG_CHARACTERS]

    @property
    def server(self) -> str:
        """The tag that endpoints start."""
        made = hashlib.sha256()
        for path, data in sorted(self.files.items()):
            if path not in (DOCKERFILE, LOCK):
                made.update(path.encode() + b"\0" + hashlib.sha256(data).digest())
        return f"{self.environment}-{made.hexdigest()[:SERVER_CHARACTERS]}"

    def address(self, tag: str) -> str:
        return f"{self.account}.dkr.ecr.{self.region}.{domain(self.region)}/{self.name}:{tag}"


def own_image(project: str, chosen: Settings, region: str, root: Path) -> OwnImage:
    """Raises UsageError where Dockerfile or lock is missing, or the role's ARN does not say whose account it is."""
    dockerfile = root / DOCKERFILE
    if not dockerfile.is_file():
        raise UsageError(f"There is no {dockerfile}, which an image of your own is made with. Take this project's.")
    account = chosen.role.split(":")[4] if chosen.role.count(":") >= 5 else ""
    if not account:
        raise UsageError(f"[sagemaker] role = {chosen.role!r} is not an ARN, and names no account for the image.")
    files = {DOCKERFILE: dockerfile.read_bytes(), LOCK: lock_file(chosen, root).read_bytes(), **package_files()}
    return OwnImage(project, account, region, chosen.python, chosen.lock, files)


def named(project: str, chosen: Settings, region: str, root: Path) -> Settings:
    """The settings with an address in place of "own"; nobody is asked."""
    if OWN not in (chosen.image, chosen.serving_image):
        return chosen
    made = own_image(project, chosen, region, root)
    image = made.address(made.environment) if chosen.image == OWN else chosen.image
    serving = made.address(made.server) if chosen.serving_image == OWN else chosen.serving_image
    return dataclasses.replace(chosen, image=image, serving_image=serving)


def wanted(made: OwnImage, chosen: Settings, *, serving: bool) -> list[str]:
    """The tags that a pipeline needs of it: `serving` where one of its targets asks for it, too."""
    tags = [made.environment] if chosen.image == OWN else []
    return [*tags, made.server] if serving or chosen.serving_image == OWN else tags


def serving(session: Session, project: str, chosen: Settings, root: Path, asked: str | None, *, what: str) -> str:
    """The address of the image that serves: `asked`, as `what` in pipeline.toml has it, or SageMaker's XGBoost."""
    if asked != OWN:
        return serving_image(session.region, asked)
    made = own_image(project, chosen, session.region, root)
    require(session, made, made.server, what=what)
    return made.address(made.server)


def for_jobs(session: Session, project: str, chosen: Settings, root: Path) -> Settings:
    """The settings with the address of an image that is there in place of "own"."""
    if chosen.image == OWN:
        made = own_image(project, chosen, session.region, root)
        require(session, made, made.environment, what="[sagemaker] image")
    return named(project, chosen, session.region, root)


def require(session: Session, made: OwnImage, tag: str, *, what: str) -> None:
    """Raises UsageError where there is no such image, with what to do; `what` in pipeline.toml asks for it."""
    if said := lacking(session, made, tag):
        raise UsageError(f'{what} = "own", and {said}: {PUSH} builds it.')


def lacking(session: Session, made: OwnImage, tag: str) -> str:
    """Why there is no such image; "" where there is one. Who may not look goes on: a job or an endpoint that cannot have
    it says so when it starts."""
    try:
        if details(session, made, tag) is not None:
            return ""
        newest = max((one["imagePushedAt"] for one in _images(session, made)), default=None)
    except AwsError as error:
        if error.code in DENIED:
            return ""
        if error.code != NO_REPOSITORY:
            raise
        return f"there is no repository {made.name}; deploy infra/image.yaml"
    if newest is None:
        return f"{made.name} has no image yet"
    said = f"{made.name} has no image of this {made.lock}{' with this program' * (tag == made.server)}"
    return f"{said}, the newest is of {newest:%Y-%m-%d %H:%M} and was made of another one"


def details(session: Session, made: OwnImage, tag: str) -> dict[str, Any] | None:
    """What ECR has under the tag. Raises AwsError where there is no repository, or nobody may look."""
    try:
        return _images(session, made, imageIds=[{"imageTag": tag}])[0]
    except AwsError as error:
        if error.code == NO_IMAGE:
            return None
        raise


def _images(session: Session, made: OwnImage, **which: Any) -> Sequence[dict[str, Any]]:
    """A page of what the repository has."""
    found: Sequence[dict[str, Any]] = session.call(
        "ecr",
        "describe_images",
        about=f"repository {made.name}",
        registryId=made.account,
        repositoryName=made.name,
        **which,
    )["imageDetails"]
    return found
