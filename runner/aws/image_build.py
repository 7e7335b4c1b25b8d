"""The build of an image of one's own, in the CodeBuild project of infra/image.yaml: started once, followed to its end.

<bucket>/<prefix>images/<server tag>/source.zip    Dockerfile, lock and this package: nothing of the project's data
                                     build.json    the build that was last started of it, to be followed again
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.aws.bucket import Bucket
from runner.aws.own_image import NO_REPOSITORY, OwnImage, image_details, needed_tags, own_image
from runner.aws.processing.bundle import zipped
from runner.aws.session import ABSENT, AwsError, Session
from runner.aws.settings import OWN, settings
from runner.errors import Detached, RemoteError, UsageError
from runner.records import Pipeline, SageMakerTargetSpec

RUNNING, GOOD = "IN_PROGRESS", "SUCCEEDED"
OTHER_BUILD_S = 120.0  # for its next tag, of an image whose layers are there already
LAST_LINES = 30  # of the log, in the error of a build that failed
DEPLOY = "Deploy infra/image.yaml, as docs/sagemaker.md, section 8, has it."


@dataclass(frozen=True)
class PushedImage:
    """The result of a push; `build` is CodeBuild's id."""

    addresses: list[str]
    outcome: Literal["there", "would build", "building", "built"]
    build: str = ""
    size_bytes: int | None = None  # of the image as it is kept


def push_all(
    session: Session, spec: Pipeline, root: Path, *, wait: bool, dry_run: bool, say: Callable[[str], None]
) -> list[PushedImage]:
    """Build each image that pipeline.toml asks for and that is not there.

    `say` gets the progress. Raises UsageError where none is asked for or infra/image.yaml is not deployed, RemoteError
    with the end of the log where a build failed, Detached where it is not waited for any more.
    """
    common = settings(spec)
    targets = [target for target in spec.targets.values() if isinstance(target, SageMakerTargetSpec)]
    serving = any(target.serving_image == OWN for target in targets)
    tags_of: dict[str, tuple[OwnImage, list[str]]] = {}
    for aws in (common, *(settings(spec, step) for step in spec.steps)):
        serves = serving and aws is common
        if OWN in (aws.image, aws.serving_image) or serves:
            image = own_image(spec.name, aws, session.region, root)
            tags = tags_of.setdefault(image.server, (image, []))[1]
            tags += [tag for tag in needed_tags(image, aws, serving=serves) if tag not in tags]
    if not tags_of:
        raise UsageError(
            'Nothing in pipeline.toml asks for an image of your own. Write [sagemaker] image = "own" for jobs, '
            '[targets.NAME] serving_image = "own" for an endpoint.'
        )
    bucket = Bucket(session, common.bucket, common.prefix)
    return [
        ImageBuild(bucket, image, common.poll_s).push(tags, wait=wait, dry_run=dry_run, say=say)
        for image, tags in tags_of.values()
    ]


class ImageBuild:
    """The builds of one image; `bucket` has their source."""

    def __init__(self, bucket: Bucket, image: OwnImage, poll_s: float) -> None:
        self.bucket, self.session, self.image, self.poll_s = bucket, bucket.session, image, poll_s
        self.folder = f"images/{image.server}/"

    def push(self, tags: Sequence[str], *, wait: bool, dry_run: bool, say: Callable[[str], None]) -> PushedImage:
        """Ensure that the repository has the tags; errors are those of `push_all`."""
        addresses = [self.image.address(tag) for tag in tags]
        details = {tag: self._details(tag) for tag in tags}
        missing = [tag for tag in tags if details[tag] is None]
        if not missing:
            return PushedImage(addresses, "there", size_bytes=_size_bytes(details[tags[-1]]))
        if dry_run:
            return PushedImage(addresses, "would build")
        build = self._running() or self._start(missing)
        if not wait:
            return PushedImage(addresses, "building", build)
        ended = self._follow(build, say)
        if not self._arrived(missing):
            raise RemoteError(self._failure(ended))
        return PushedImage(addresses, "built", build, _size_bytes(self._details(missing[-1])))

    def _details(self, tag: str) -> dict[str, Any] | None:
        try:
            return image_details(self.session, self.image, tag)
        except AwsError as error:
            if error.code == NO_REPOSITORY:
                place = f"{self.image.name} in {self.image.region}"
                raise UsageError(f"There is no repository {place}. {DEPLOY}") from error
            raise

    def _arrived(self, tags: Sequence[str]) -> bool:
        """Whether all tags are there. Where some are, another build was first with them and is pushing the others."""
        until = time.monotonic() + OTHER_BUILD_S
        while True:
            present = [self._details(tag) is not None for tag in tags]
            if all(present) or not any(present) or time.monotonic() > until:
                return all(present)
            time.sleep(self.poll_s)

    def _running(self) -> str:
        """The build of the same content that somebody has started and that is running; "" where there is none."""
        try:
            build = str(json.loads(self.bucket.get(f"{self.folder}build.json") or b"{}")["id"])
        except (KeyError, TypeError, ValueError):  # none, or damaged: as if nobody had started one
            return ""
        description = self._describe(build)
        return build if description is not None and description["buildStatus"] == RUNNING else ""

    def _start(self, tags: Sequence[str]) -> str:
        key, name = f"{self.folder}source.zip", self.image.name
        self.bucket.put(key, zipped(self.image.files))
        variables = {"PYTHON": self.image.python, "TAGS": " ".join(tags)}
        try:
            reply = self.session.call(
                "codebuild",
                "start_build",
                about=f"CodeBuild project {name}",
                projectName=name,
                sourceTypeOverride="S3",
                sourceLocationOverride=self.bucket.address(key).removeprefix("s3://"),
                environmentVariablesOverride=[{"name": key, "value": text} for key, text in variables.items()],
                idempotencyToken=uuid.uuid4().hex,  # a lost reply starts nothing twice
            )
        except AwsError as error:
            if error.code in ABSENT:
                place = f"{name} in {self.image.region}"
                raise UsageError(f"There is no CodeBuild project {place}. {DEPLOY}") from error
            raise
        build = str(reply["build"]["id"])
        self.bucket.put(f"{self.folder}build.json", json.dumps({"id": build}).encode())
        return build

    def _follow(self, build: str, say: Callable[[str], None]) -> dict[str, Any]:
        """The build's description when it has ended. Raises Detached for Ctrl-C, which does not stop it."""
        began, phase = time.monotonic(), ""
        try:
            while (description := self._describe(build)) is not None:
                if description["buildStatus"] != RUNNING:
                    return description
                if description.get("currentPhase", "") != phase:
                    phase = str(description["currentPhase"])
                    say(f"{phase.lower().replace('_', ' ')} after {time.monotonic() - began:.0f} s")
                time.sleep(self.poll_s)
        except KeyboardInterrupt:
            raise Detached(f"The build {build} goes on; `runner image push` follows it again.", run="") from None
        raise RemoteError(f"CodeBuild does not know the build {build} any more. Start another: runner image push")

    def _describe(self, build: str) -> dict[str, Any] | None:
        reply = self.session.call("codebuild", "batch_get_builds", about=f"build {build}", ids=[build])
        return next(iter(reply["builds"]), None)

    def _failure(self, ended: dict[str, Any]) -> str:
        """What CodeBuild says of the phase that failed, and the end of the log."""
        failed = [phase for phase in ended.get("phases", []) if phase.get("phaseStatus") not in (None, GOOD)]
        reasons = [context.get("message", "") for phase in failed for context in phase.get("contexts", [])]
        if ended["buildStatus"] == GOOD:
            reasons = [f"it has pushed no {self.image.name}; is the project as infra/image.yaml has it?"]
        try:
            log = {"logGroupName": ended["logs"]["groupName"], "logStreamName": ended["logs"]["streamName"]}
            about = f"the log of {ended['id']}"
            page = self.session.call(
                "logs", "get_log_events", about=about, limit=LAST_LINES, startFromHead=False, **log
            )
            lines = [event["message"].rstrip("\n") for event in page["events"]]
        except KeyError:
            lines = ["It has no log: it ended before its first line."]
        except AwsError as error:
            lines = [f"Its log cannot be read: {error}"]
        reason = " ".join(filter(None, reasons))
        return "\n".join([f"The build {ended['id']} ended {ended['buildStatus']}. {reason}".rstrip(), *lines])


def _size_bytes(details: dict[str, Any] | None) -> int | None:
    return (details or {}).get("imageSizeInBytes")
